"""Nothing that lies in a run directory, a checkpoint or a cache runs code, whatever it says; `trusted` lets it."""

import ast
import io
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from helpers.data import FAST
from helpers.refusals import refused
from omegaconf import OmegaConf

import vae_lab
from vae_lab.config.safety import checked_run_config, require_allowed_targets
from vae_lab.config.schema import conf_dir
from vae_lab.runs.stored_config import load_config, resumed_config
from vae_lab.utils.errors import UsageError

SOURCE = Path("run/.hydra/config.yaml")
QUIET = ("callbacks.images=null", "logger=none")


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def marker(tmp_path):
    """The file that hostile content would create; it is not there in the end."""
    path = tmp_path / "pwned"
    yield path
    assert not path.exists()


@pytest.fixture
def run(fast_run, tmp_path):
    """A run of the test's own."""
    hidden = shutil.ignore_patterns("images", "tensorboard")
    return Path(shutil.copytree(fast_run.run, tmp_path / "run", ignore=hidden))


def rewrite(run, key, value):
    """Put a value into the config of a run, as its author might."""
    file = run / ".hydra" / "config.yaml"
    config = OmegaConf.load(file)
    OmegaConf.update(config, key, value, force_add=True, merge=False)
    OmegaConf.save(config, file)


def refusal(content, source=SOURCE):
    with pytest.raises(UsageError) as caught:
        checked_run_config(OmegaConf.create(content), source)
    text = str(caught.value)
    assert str(source) in text and "trusted=true" in text and "load(run, trusted=True)" in text
    assert len(text.splitlines()) <= 4
    return text


# --- configs: every place, every trick ---------------------------------------------------------------------


def hostile(marker):
    return {"_target_": "os.system", "command": f"touch {marker}"}


PLACES = [
    "model",
    "model.prior",
    "model.encoder.activation",
    "data",
    "optimizer.algorithm",
    "logger.evil",
    "callbacks.evil",
    "trainer.max_time",
]


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("key", PLACES)
def test_a_target_is_refused_wherever_it_stands(command, run, marker, key, partial):
    rewrite(run, key, {**hostile(marker), "_partial_": partial})
    before = sorted(run.rglob("*"))
    refused(command(f"resume={run}"), f"{key}._target_", "os.system", "config.yaml", "trusted=true")
    assert sorted(run.rglob("*")) == before
    with pytest.raises(UsageError, match=r"os\.system"):
        vae_lab.load(run)


def test_a_target_in_a_list_and_in_place_of_the_trainer(command, run, marker):
    rewrite(run, "model.encoder.hidden", [400, [hostile(marker)]])
    refused(command(f"resume={run}"), "model.encoder.hidden[1][0]._target_", "os.system")
    rewrite(run, "model.encoder.hidden", [400])
    rewrite(run, "trainer._target_", "subprocess.call")
    refused(command(f"resume={run}"), "trainer._target_", "subprocess.call")
    with pytest.raises(UsageError, match=r"subprocess\.call"):
        vae_lab.load(run)


@pytest.mark.parametrize(
    "target",
    [
        *("os.system", "posix.system", "builtins.eval", "builtins.exec", "subprocess.run", "pickle.loads"),
        *("functools.partial", "hydra.utils.instantiate", "hydra.utils.call", "importlib.import_module", "torch.load"),
        *("torch.hub.load", "torch.utils.cpp_extension.load", "torch.jit.load", "torch.compile", "numpy.load"),
        # Through an allowed module to what it imported.
        *("vae_lab.callbacks.workers.os.system", "vae_lab.callbacks.workers.pickle.loads"),
        *("vae_lab.callbacks.tensorboard.TensorBoardLogger", "vae_lab.training.trainer.Trainer"),
        *("torch.nn.modules.module.functools.partial", "torch.optim.optimizer.functools.partial"),
        *("vae_lab.networks.conv.math.prod", "vae_lab.inference.load", "vae_lab.likelihoods.torch.load"),
        *("vae_lab.likelihoods.nn.Linear", "vae_lab.second_stage.storage.fingerprint"),
        *("vae_lab.models.vae.__builtins__.eval", "vae_lab.models.vae.VAE.__init__.__globals__"),
        *("torch.nn._reduction.warnings", "torch.nn._reduction.get_enum"),
        # What writes or runs, of vae_lab and of Lightning.
        *("vae_lab.utils.files.write_atomically", "vae_lab.runs.cli.run_command", "vae_lab.runs.run_dir.RunDirectory"),
        *("vae_lab.runs.checkpoint_io.AtomicCheckpointIO", "vae_lab.training.build.build_node"),
        "vae_lab.callbacks.workers.ForkedWorkers",
        *("lightning.pytorch.callbacks.LambdaCallback", "lightning.pytorch.callbacks.ModelCheckpoint"),
        *("lightning.pytorch.loggers.WandbLogger", "lightning.pytorch.loggers.MLFlowLogger", "lightning.Trainer"),
        # No class: functions, methods, modules.
        *("torch.nn.modules.module.register_module_forward_hook", "torch.nn.utils.clip_grad_norm_", "torch.nn"),
        *("torch.optim.Optimizer.load_state_dict", "torch.nn.Module.apply", "vae_lab.models.vae.VAE.decode"),
        # Names that only look allowed, and no names.
        *("vae_lab.modelsx.VAE", "torch.nnx.Linear", "vae_lab.models.vae..VAE", ".vae_lab.models.vae.VAE"),
        *("vae_lab.models.vae.VAE ", "vae_lab.models", "vae_lab", "torch"),
        *("", "VAE", 3, None, True, ["os.system"], {"name": "os.system"}),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_none_of_the_parts_is_refused(target):
    text = refusal({"model": {"parts": [{"_target_": target}]}})
    assert text.startswith("model.parts[0]._target_: ") and str(target) in text


@pytest.mark.parametrize("target", ["torch.nn.Gelu", "vae_lab.models.vae.VEA", "vae_lab.callbacks.nothing.Here"])
def test_a_part_that_does_not_exist_is_told_as_ever(target):
    with pytest.raises(UsageError, match="does not exist"):
        require_allowed_targets({"model": {"_target_": target}}, SOURCE)


def test_a_module_is_not_imported_to_find_out(tmp_path, monkeypatch, marker):
    (tmp_path / "evil_module.py").write_text(f"open({str(marker)!r}, 'w')\nclass VAE: ...")
    monkeypatch.syspath_prepend(tmp_path)
    assert "evil_module.VAE" in refusal({"model": {"_target_": "evil_module.VAE"}})


def test_every_part_that_conf_names_is_allowed():
    nodes = [OmegaConf.load(file) for file in Path(conf_dir()).rglob("*.yaml")]
    contents = [OmegaConf.to_container(node) for node in nodes]
    for content in contents:
        content.pop("hydra", None)  # Hydra's own callbacks: of the command, not of the run
        require_allowed_targets(content, SOURCE)
    assert sum(str(content).count("_target_") for content in contents) > 40


def test_what_passes_is_what_it_was(run):
    content = OmegaConf.load(run / ".hydra" / "config.yaml")
    assert checked_run_config(content, SOURCE) == content
    assert OmegaConf.merge(load_config(run), {"trusted": True}) == load_config(run, trusted=True)


@pytest.mark.parametrize("values", [{"name": "../../x"}, {"version": "/etc"}, {"sub_dir": "~/x"}, {"version": "$HOME"}])
def test_a_logger_writes_into_the_run_only(values):
    node = {"_target_": "lightning.pytorch.loggers.CSVLogger", "_partial_": True, **values}
    (key,) = values
    assert refusal({"logger": {"csv": node}}).startswith(f"logger.csv.{key}: ")


# --- resolvers ---------------------------------------------------------------------------------------------


@pytest.fixture
def resolver():
    """One of the user's own, as many have it; what it was asked."""
    asked = []
    OmegaConf.register_new_resolver("eval", lambda text: asked.append(text) or "3", replace=True)
    yield asked
    OmegaConf.clear_resolver("eval")
    assert asked == []


@pytest.mark.parametrize(
    "values",
    [
        {"name": "${eval:1}"},
        {"name": "a ${oc.env:HOME} b ${eval:1}"},
        {"trainer": "${eval:1}"},
        {"trainer": {"max_epochs": "${eval:1}"}},
        {"model": {"a": [{"b": "${oc.env:NOTHING,${eval:1}}"}]}},
        {"model": {"a": "${oc.select:'${eval:1}'}"}},
        {"model": {"a": "${oc.decode:'${eval:1}'}"}},
        {"model": {"a": "${oc.create:'x: ${eval:1}'}"}},
        {"model": {"a": "eval", "b": "${${model.a}:1}"}},
        {"model": {"a": "$", "b": "{eval:1}", "c": "${model.a}${model.b}", "d": "${model.c}"}},
        {"model": {"a": "\\${eval:1}"}},
        {"name": Path("${eval:1}")},
        {"name": b"${eval:1}"},
        {"model": {"a": "${run_dir:pwned}"}},
        {"model": {"a": "${sweep_dir:pwned}"}},
    ],
    ids=str,
)
def test_no_resolver_is_called_that_does_more_than_read(values, resolver, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refusal(values)
    assert not list(tmp_path.iterdir())


def test_a_resolver_in_a_run_makes_no_folder(command, run, marker):
    rewrite(run, "trainer", f"${{run_dir:{marker}}}")
    refused(command(f"resume={run}"), "trainer:", "'run_dir'", "config.yaml")
    with pytest.raises(UsageError, match="run_dir"):
        vae_lab.load(run)
    (fresh,) = command(*FAST, *QUIET, f"init_from={run}", "trainer.max_epochs=1").cwd.glob("outputs/*/*")
    assert (fresh / "summary.json").is_file()  # weights alone are taken from that run


def test_the_environment_and_other_keys_may_be_referred_to(monkeypatch):
    monkeypatch.setenv("SOMEWHERE", "/data")
    written = {"data": {"root": "${oc.env:SOMEWHERE,x}", "folder": "${data.root}/set"}, "model": {"a": "${data.root}"}}
    config = checked_run_config(OmegaConf.create(written), SOURCE)
    monkeypatch.setenv("SOMEWHERE", "/elsewhere")
    assert OmegaConf.to_container(config) == {
        "data": {"root": "/data", "folder": "/data/set"},
        "model": {"a": "${data.root}"},
    }


def test_what_was_checked_is_what_is_built(run):
    """An override of the command line, harmless by itself, must not turn a reference to something else."""
    rewrite(run, "model.table", {"auto": "vae_lab.priors.fixed.StandardNormal", "cpu": "os.system"})
    rewrite(run, "model.prior", {"_target_": "${model.table.${trainer.accelerator}}", "_partial_": True})
    rewrite(run, "model.again", "${model.prior._target_}")
    config = resumed_config(run, ["trainer.accelerator=cpu"])
    assert config.trainer.accelerator == "cpu"
    assert config.model.prior._target_ == config.model.again == "vae_lab.priors.fixed.StandardNormal"


def test_a_target_behind_a_reference_is_refused(marker):
    text = refusal({"model": "${data.hidden}", "data": {"hidden": hostile(marker)}})
    assert text.startswith("data.hidden._target_")
    assert "os.system" in refusal({"name": "os.system", "model": {"_target_": "${name}"}})
    joined = {"model": {"a": "os", "b": {"_target_": "${model.a}.system"}}}
    assert refusal(joined).startswith("model.b._target_")


# --- files that are no configs -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "model: !!python/object/apply:os.system ['touch {marker}']",
        "!!python/object/apply:os.system ['touch {marker}']",
        "seed: !!python/name:os.system",
        "model: !!python/object/new:subprocess.Popen [['touch', '{marker}']]",
        "model: &again [*again]",
        "[1, 2]",
        "3",
        "model: {{",
        "seed: ${{eval",
        "\x00\x01",
    ],
)
def test_yaml_is_data(command, run, marker, text):
    (run / ".hydra" / "config.yaml").write_text(text.format(marker=marker))
    refused(command(f"resume={run}"), "config.yaml")
    with pytest.raises(UsageError, match=r"config\.yaml"):
        vae_lab.load(run)
    with pytest.raises(UsageError, match=r"config\.yaml"):
        vae_lab.load(run, trusted=True)


def test_a_path_is_no_hidden_text(command, run):
    """The one tag that OmegaConf knows; a text is made of it where the schema asks for one."""
    with (run / ".hydra/config.yaml").open("a") as file:
        file.write("\ninit_from: !!python/object/apply:pathlib.Path ['${run_dir:pwned}']\n")
    text = (run / ".hydra/config.yaml").read_text().replace("init_from: null\n", "")
    (run / ".hydra/config.yaml").write_text(text)
    refused(command(f"resume={run}"), "init_from:", "config.yaml", "trusted=true")


def plain_pickle(evil):
    return pickle.dumps(evil)


def torch_zip(evil):
    buffer = io.BytesIO()
    torch.save({"state_dict": evil, "global_step": 1}, buffer)
    return buffer.getvalue()


def legacy_torch(evil):
    buffer = io.BytesIO()
    torch.save({"state_dict": evil}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def zipped_pickle(evil):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(evil, protocol=2))
        archive.writestr("archive/version", "3")
    return buffer.getvalue()


def behind_a_zip(evil):
    """A pickle that ends with an empty archive, which is all that a reader of archives looks at."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w"):
        pass
    return pickle.dumps(evil, protocol=2) + buffer.getvalue()


FILES = [plain_pickle, torch_zip, legacy_torch, zipped_pickle, behind_a_zip]


@pytest.mark.parametrize("made", FILES)
def test_a_last_checkpoint_that_runs_code(command, run, marker, made):
    (run / "checkpoints/last.ckpt").write_bytes(made(Evil(marker)))
    refused(command(f"resume={run}"), "last.ckpt")
    refused(command(f"resume={run}", "trusted=true"), "last.ckpt")  # a checkpoint is never trusted


@pytest.mark.parametrize("made", FILES)
def test_a_best_checkpoint_that_runs_code(command, run, marker, made):
    (run / "checkpoints/best.ckpt").write_bytes(made(Evil(marker)))
    for trusted in (False, True):
        with pytest.raises(UsageError, match=r"best\.ckpt"):
            vae_lab.load(run, trusted=trusted)
    refused(command(*FAST, *QUIET, f"init_from={run}"), "best.ckpt")


def test_a_best_checkpoint_that_runs_code_at_the_test_of_a_resumed_run(command, run, marker):
    (run / "checkpoints/best.ckpt").write_bytes(torch_zip(Evil(marker)))
    refused(command(f"resume={run}", "trainer.max_epochs=3", "callbacks.best=null"), "best.ckpt", "run code")


@pytest.mark.parametrize("content", [plain_pickle, torch_zip], ids=["pickle", "torch"])
@pytest.mark.parametrize("name", ["index.json", "pixels.u8"])
def test_a_cache_that_would_run_code_is_made_again(command, pictures, marker, name, content):
    options = ("data=folder", f"data.folder={pictures}", "data.image_size=16", *FAST, *QUIET, "trainer.max_epochs=1")
    first = command(*options, "name=first")
    assert first.code == 0, first.stderr
    (path,) = first.cwd.glob(f"cache/*/{name}")
    whole = path.read_bytes()
    path.write_bytes(content(Evil(marker)))
    done = command(*options, "name=second")
    assert done.code == 0, done.stderr
    assert path.read_bytes() == whole


def test_bytes_of_a_cache_are_pixels(command, pictures, marker):
    options = ("data=folder", f"data.folder={pictures}", "data.image_size=16", *FAST, *QUIET, "trainer.max_epochs=1")
    (path,) = command(*options, "name=first").cwd.glob("cache/*/pixels.u8")
    code = pickle.dumps(Evil(marker))
    path.write_bytes(code + bytes(path.stat().st_size - len(code)))
    assert command(*options, "name=second").code == 0


def test_no_module_reads_what_could_run():
    """Of the readers that run code none is called, but torch's with weights only, and pickle's on what a fork left."""
    found = {}
    for file in sorted(Path(vae_lab.__file__).parent.rglob("*.py")):
        for call in ast.walk(ast.parse(file.read_text())):
            if isinstance(call, ast.Call):
                name = ast.unparse(call.func)
                weights_only = any(ast.unparse(word) == "weights_only=True" for word in call.keywords)
                readers = (
                    "pickle.",
                    "np.load",
                    "numpy.load",
                    "yaml.",
                    "marshal.",
                    "joblib.load",
                    "torch.jit.load",
                    "os.system",
                )
                runs = name in ("eval", "exec") or (name == "torch.load" and not weights_only)
                if runs or (name.startswith(readers) and "dump" not in name):
                    found.setdefault(file.name, []).append(name)
    assert found.pop("digits.py") == ["np.loadtxt"]  # text, of scikit-learn's own file
    assert found == {"workers.py": ["pickle.load"]}


# --- trust -------------------------------------------------------------------------------------------------


def test_a_users_own_class_needs_trust_once_it_is_in_a_run(command):
    own = "helpers.named.OwnEncoder"
    done = command(*FAST, *QUIET, "trainer.max_epochs=1", f"model.encoder._target_={own}")
    assert done.code == 0, done.stderr
    hash_before = done.summary["config_hash"]
    words = ("model.encoder._target_", own, "config.yaml", "trusted=true")
    refused(command(f"resume={done.run}", "trainer.max_epochs=2"), *words)
    refused(command(f"resume={done.run}", "trainer.max_epochs=2", "trusted=false"), *words)
    with pytest.raises(UsageError, match=own.replace(".", r"\.")):
        vae_lab.load(done.run)
    resumed = command(f"resume={done.run}", "trainer.max_epochs=2", "trusted=true")
    assert resumed.code == 0, resumed.stderr
    assert (resumed.summary["status"], resumed.summary["epochs"]) == ("completed", 2)
    assert resumed.summary["config_hash"] == hash_before
    assert type(vae_lab.load(done.run, trusted=True).model.encoder).__name__ == "OwnEncoder"
    other = command(*FAST, *QUIET, "trainer.max_epochs=1", f"init_from={done.run}", "name=other")
    assert other.code == 0, other.stderr  # takes the weights and builds nothing


def test_a_run_cannot_trust_itself(command, run, marker):
    rewrite(run, "trusted", True)
    rewrite(run, "model.prior", hostile(marker))
    refused(command(f"resume={run}"), "model.prior._target_")
    with pytest.raises(UsageError, match="trusted=true"):
        vae_lab.load(run)


def test_what_the_command_line_names_for_a_resumed_run_is_free(command, run):
    own = "+callbacks.mine={_target_: lightning.pytorch.callbacks.LambdaCallback}"
    done = command(f"resume={run}", "trainer.max_epochs=3", *QUIET, own)
    assert done.code == 0, done.stderr


def test_an_older_run_without_the_key_loads(run):
    file = run / ".hydra" / "config.yaml"
    file.write_text("".join(line for line in file.read_text().splitlines(keepends=True) if "trusted" not in line))
    assert load_config(run).trusted is False
    assert vae_lab.load(run).sample(1).shape == (1, 1, 28, 28)
