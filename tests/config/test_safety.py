"""Nothing in a run directory, a checkpoint or a cache runs code; `trusted=true` allows it for the config."""

import io
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from helpers.commands import QUIET
from helpers.refusals import refused
from omegaconf import OmegaConf

import vae_lab
from vae_lab.config.safety import require_harmless
from vae_lab.utils.errors import UsageError

SOURCE = Path("run/.hydra/config.yaml")


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def marker(tmp_path):
    """The file that hostile content would create; it must not exist at the end."""
    path = tmp_path / "pwned"
    yield path
    assert not path.exists()


@pytest.fixture
def run(fast_run, tmp_path):
    """A run of the test's own."""
    hidden = shutil.ignore_patterns("images", "tensorboard")
    return Path(shutil.copytree(fast_run.run, tmp_path / "run", ignore=hidden))


def refusal(content, source=SOURCE):
    with pytest.raises(UsageError) as caught:
        require_harmless(OmegaConf.create(content), source)
    text = str(caught.value)
    assert str(source) in text and "trusted=true" in text and "load(run, trusted=True)" in text
    assert len(text.splitlines()) <= 4
    return text


def test_a_run_with_a_hostile_target_is_refused_though_it_trusts_itself(command, run, marker):
    file = run / ".hydra" / "config.yaml"
    hostile = {"_target_": "os.system", "_partial_": True, "command": f"touch {marker}"}
    OmegaConf.save(OmegaConf.merge(OmegaConf.load(file), {"trusted": True, "logger": {"evil": hostile}}), file)
    before = sorted(run.rglob("*"))
    refused(command(f"resume={run}"), "logger.evil._target_", "os.system", "config.yaml", "trusted=true")
    assert sorted(run.rglob("*")) == before
    with pytest.raises(UsageError, match=r"os\.system"):
        vae_lab.load(run)


@pytest.mark.parametrize(
    "target",
    [
        *("os.system", "builtins.eval", "subprocess.run", "pickle.loads", "functools.partial"),
        *("hydra.utils.instantiate", "torch.load", "torch.hub.load", "torch.jit.load", "torch.compile", "numpy.load"),
        # Through an allowed package to what it imports, to private names and to methods.
        *("vae_lab.callbacks.checkpoint.os.system", "torch.nn.modules.module.functools.partial"),
        *("vae_lab.training.trainer.Trainer", "vae_lab.likelihoods.nn.Linear", "vae_lab.likelihoods.Normal"),
        *("vae_lab.models.vae.__builtins__.eval", "vae_lab.models.VAE.__init__.__globals__", "torch.nn._reduction"),
        *("torch.optim.Optimizer.load_state_dict", "torch.nn.Module.apply", "vae_lab.models.VAE.decode"),
        # What writes, runs functions or uses the network.
        *("vae_lab.utils.files.write_atomically", "vae_lab.runs.cli.run_command", "vae_lab.runs.run_dir.RunDirectory"),
        *("vae_lab.training.build.build_node", "lightning.Trainer", "lightning.pytorch.callbacks.LambdaCallback"),
        *("lightning.pytorch.callbacks.ModelCheckpoint", "lightning.pytorch.loggers.CometLogger"),
        # Names that only look allowed, and no names.
        *("vae_lab.modelsx.VAE", "torch.nnx.Linear", "vae_lab.models..VAE", "vae_lab.models.VAE "),
        *("vae_lab.models", "torch", "", "VAE", "${name}", 3, None, True, ["os.system"], {"name": "os.system"}),
    ],
    ids=str,
)  # fmt: skip
def test_a_target_that_is_no_part_of_a_model_is_refused(target):
    text = refusal({"name": "os.system", "model": {"parts": [{"_target_": target}]}})
    assert text.startswith("model.parts[0]._target_: ") and str(target) in text


def test_a_module_is_not_imported_before_its_name_is_checked(tmp_path, monkeypatch, marker):
    (tmp_path / "evil_module.py").write_text(f"open({str(marker)!r}, 'w')\nclass VAE: ...")
    monkeypatch.syspath_prepend(tmp_path)
    assert "evil_module.VAE" in refusal({"model": {"_target_": "evil_module.VAE"}})


@pytest.mark.parametrize(
    "values",
    [
        {"name": "a ${oc.env:HOME} b ${eval:1}"},
        {"trainer": {"max_epochs": "${eval:1}"}},
        {"model": {"a": [{"b": "${oc.env:NOTHING,${eval:1}}"}]}},
        {"model": {"a": "${oc.select:'${eval:1}'}"}},
        {"model": {"a": "${oc.decode:'${eval:1}'}"}},
        {"model": {"a": "${oc.create:'x: ${eval:1}'}"}},
        {"model": {"a": "eval", "b": "${${model.a}:1}"}},
        {"model": {"a": "$", "b": "{eval:1}", "c": "${model.a}${model.b}", "d": "${model.c}"}},
        {"model": {"a": "\\${eval:1}"}},
        {"name": "${oc.env:HOSTILE}"},
        {"name": Path("${eval:1}")},
        {"name": b"${eval:1}"},
    ],
    ids=str,
)  # fmt: skip
def test_no_interpolation_runs_code(values, monkeypatch):
    called = []
    OmegaConf.register_new_resolver("eval", lambda text: called.append(text) or "3", replace=True)
    monkeypatch.setenv("HOSTILE", "${eval:1}")
    try:
        refusal(values)
    finally:
        OmegaConf.clear_resolver("eval")
    assert called == []


def test_references_to_the_environment_and_to_other_keys_are_kept(monkeypatch):
    monkeypatch.setenv("SOMEWHERE", "/data")
    config = OmegaConf.create({"root": '${oc.env:SOMEWHERE,"~/x"}', "folder": "${root}/set"})
    require_harmless(config, SOURCE)
    assert config.folder == "/data/set"


@pytest.mark.parametrize(
    "text",
    [
        "model: !!python/object/apply:os.system ['touch {marker}']",
        "init_from: !!python/object/apply:pathlib.Path ['${{eval:1}}']",  # the one tag that OmegaConf knows
        "model: &again [*again]",
        "[1, 2]",
        "model: {{",
        "seed: ${{eval",
        "\x00\x01",
    ],
)
def test_yaml_runs_no_code(run, marker, text):
    (run / ".hydra" / "config.yaml").write_text(text.format(marker=marker))
    with pytest.raises(UsageError, match=r"config\.yaml"):
        vae_lab.load(run)


def torch_zip(evil):
    buffer = io.BytesIO()
    torch.save({"state_dict": evil, "global_step": 1}, buffer)
    return buffer.getvalue()


def test_a_checkpoint_runs_no_code(command, run, marker):
    for content in (pickle.dumps, torch_zip):
        for name in ("best", "last"):
            (run / "checkpoints" / f"{name}.ckpt").write_bytes(content(Evil(marker)))
        with pytest.raises(UsageError, match=r"best\.ckpt"):
            vae_lab.load(run, trusted=True)  # a checkpoint is never trusted
    refused(command(*QUIET, f"init_from={run}"), "best.ckpt")
    refused(command(f"resume={run}", "trusted=true"), "last.ckpt")


def test_a_class_of_the_user_needs_trust_once_it_is_in_a_run(command):
    own = "helpers.named.OwnEncoder"
    done = command(*QUIET, "trainer.max_epochs=1", f"model.encoder._target_={own}")
    assert done.code == 0, done.stderr
    refused(command(f"resume={done.run}"), "model.encoder._target_", own, "config.yaml", "trusted=true")
    mine = "+callbacks.mine={_target_: lightning.pytorch.callbacks.LambdaCallback}"  # the command line is trusted
    resumed = command(f"resume={done.run}", "trainer.max_epochs=2", "trusted=true", mine)
    assert resumed.code == 0, resumed.stderr
    assert (resumed.summary["status"], resumed.summary["epochs"]) == ("completed", 2)
    assert type(vae_lab.load(done.run, trusted=True).model.encoder).__name__ == "OwnEncoder"


@pytest.mark.parametrize(
    "values", [{"name": "../../x"}, {"version": "/etc"}, {"sub_dir": "~/x"}, {"version": "${name}"}]
)
def test_a_logger_writes_only_into_the_run(values):
    node = {"_target_": "lightning.pytorch.loggers.CSVLogger", "_partial_": True, **values}
    (key,) = values
    assert refusal({"name": "a", "logger": {"csv": node}}).startswith(f"logger.csv.{key}: ")
