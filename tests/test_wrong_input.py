"""A wrong request is told in a few lines and exit code 2; a failed run keeps what it had."""

import gzip
import json
import struct

import pytest
import torch
from helpers.commands import QUIET
from helpers.refusals import refused


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.latent_dimm=3"], ["latent_dimm", "model.latent_dim"]),
        (["model.latent_dim=two"], ["model.latent_dim", "two"]),
        (["data.binarize=dynamc"], ["data.binarize", "dynamic"]),
        (["model.latent_dim=0"], ["model.latent_dim", "at least 1"]),
        (["trainer.steps_per_execution=0"], ["steps_per_execution"]),
        (["trainer.num_threads=-1"], ["trainer.num_threads=-1", "integer of at least 1"]),
        (["trainer.accelerator=mps"], ["float64", "trainer=cpu"]),
        (["trainer.precision=16-mixed"], ["bf16-mixed"]),
        (["trainer=cpu", "trainer.devices=2"], ["trainer=ddp"]),
        (["trainer=cpu", "trainer.devices=-1"], ["trainer", "devices", "int > 0"]),
        (["trainer.accelerator=tpu"], ["trainer.accelerator=tpu", "auto, cpu or gpu"]),
        (["trainer.strategy=ddp_spawn"], ["trainer.strategy=ddp_spawn", "auto, or ddp"]),
        (["trainer.limit_val_batches=0.001"], ["less than one batch", "trainer.limit_val_batches=1"]),
        (["trainer.overfit_batches=1.5"], ["trainer.overfit_batches=1.5", "a fraction in (0, 1]"]),
        (["trainer.min_epochs=-1"], ["min_epochs=-1", "at least 0"]),
        (["trainer.deterministic=x"], ["deterministic=x", "true, false or warn"]),
        (["trainer.check_val_every_n_epoch=0"], ["check_val_every_n_epoch=0", "at least 1"]),
        (["trainer.val_check_interval=0.5"], ["check_val_every_n_epoch"]),
        (["trainer.gradient_clip_val=1"], ["optimizer.clip_norm"]),
        (["trainer.accumulate_grad_batches=2"], ["optimizer.accumulate"]),
        (["data.folder=X"], ["data.folder", "data=folder"]),
        (["data=celeba"], ["data=celeba", "data=folder data.folder=PATH", "data=torchvision data.dataset=CelebA"]),
        (["name=it's"], ["""name=it's""", "\"name='it\\'s'\""]),
        (["objective/bound=importance_weighted"], ["num_samples"]),
        (["optimized_metric=val/bits_per_dim", "model/likelihood=laplace"], ["logistic_mixture", "val/elbo"]),
        (["callbacks.best.monitor=val/bits_per_dim", "model/likelihood=gaussian"], ["a density", "logistic_mixture"]),
        (["model/posterior=nearest_code"], ["model.prior", "codes", "model/prior=uniform_codes"]),
        (["model/prior=class_gaussian"], ["model.conditional=true"]),
        (["model/prior=vamp", "model.conditional=true"], ["labels", "class_gaussian"]),
        (["model=spatial", "model/decoder=mlp"], ["model.decoder", "model=spatial"]),
        (["objective/regularizers=[mmd]", "objective.regularizers.mmd.weight=-1"], ["mmd.weight", "at least 0"]),
        (["objective/regularizers=[total_correlation]", "model=ladder"], ["total_correlation", "model=mlp"]),
        (["data/corruption=masked", "data.corruption.probability=2"], ["data.corruption.probability", "[0, 1]"]),
        (["second_stage=flow", "model=ladder"], ["second_stage"]),
        (["callbacks=null"], ["callbacks.images", "~callbacks.images"]),
        (["callbacks.best.monitor=val/bits_per_dim"], ["lower val/bits_per_dim is better", "callbacks.best.mode=min"]),
        (["optimized_metric=val/elboo"], ["optimized_metric=val/elboo", "did you mean val/elbo?"]),
        (["optimized_metric=val/bits_per_dim", "model/posterior=delta"], ["no density", "val/log_px"]),
        (["trainer.max_epochs=-5"], ["max_epochs", "-5"]),
        (["init_from=nowhere"], ["nowhere"]),
        (["model/likelihood=gaussian_color"], ["1 channel", "model/likelihood=gaussian_optimal"]),
        (["data.batch_size=1", "model/likelihood=gaussian_optimal"], ["data.batch_size=2 or more", "=gaussian,"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_overrides(command, overrides, words):
    refused(command(*overrides), *words)
    assert not list(command.cwd.glob("outputs/*/*"))  # nothing is left behind


HEADER = "# @package _global_\n"
FILES = {
    "tab": (f"{HEADER}model:\n\tlatent_dim: 3", ["tab.yaml, line 3", "spaces, not tabs"]),
    "brace": (f"{HEADER}model: {{latent_dim: 3", ["brace.yaml, line 2", "expected ',' or '}'"]),
    "twice": (f"{HEADER}seed: 1\nseed: 2", ["twice.yaml, line 3", "duplicate key seed"]),
    "reference": (f"{HEADER}model:\n  latent_dim: ${{nowhere.x}}", ["model.latent_dim", "'nowhere.x' not found"]),
    "open": (f"{HEADER}seed: ${{oops", ["${oops"]),
    "package": ("model:\n  latent_dim: 3", ["experiment/package.yaml", "`# @package _global_`"]),
    "override": ("defaults: [override /model: conv]", ["experiment/override.yaml", "`# @package _global_`"]),
    "bom": (f"\ufeff{HEADER}model:\n  latent_dim: 3", ["experiment/bom.yaml", "byte order mark"]),
}


@pytest.mark.parametrize("name", FILES)
def test_wrong_experiment_files(command, tmp_path, name):
    text, words = FILES[name]
    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / f"conf/experiment/{name}.yaml").write_text(text, "utf-8")
    refused(command("seed=1", "--config-dir", "conf", f"experiment={name}"), *words)  # a flag between overrides


def test_a_refused_request_leaves_the_folder_that_the_user_chose_as_it_was(command, tmp_path):
    for holds in ([], ["notes.txt"]):
        chosen = tmp_path / f"chosen_{len(holds)}"
        chosen.mkdir()
        for name in holds:
            (chosen / name).touch()
        refused(command("hydra.run.dir=.", "model.latent_dim=0", cwd=chosen), "model.latent_dim")
        assert [path.name for path in chosen.iterdir()] == holds


def test_an_endless_schedule_and_a_missing_gpu_or_folder(command, tmp_path):
    refused(command("data=folder", "data.folder=nowhere"), "nowhere", "data=digits")
    endless = ("trainer.max_epochs=-1", "trainer.max_time=00:00:00:05", "optimizer/schedule=cosine")
    refused(command(*endless), "set trainer.max_epochs")
    if not torch.cuda.is_available():
        refused(command("trainer=gpu"), "CUDA", "trainer=cpu")
    (tmp_path / "empty").mkdir()
    refused(command("data=folder", "data.folder=empty"), "empty", "data=digits")
    refused(
        command("data=pokemon", "data.root=nothing"), "nothing/pokemon", "vae_lab.data.download pokemon", "data=digits"
    )


def test_a_bad_picture_is_named_and_can_be_skipped(command, pictures):
    good = (pictures / "000.png").read_bytes()
    (pictures / "sub.png").write_bytes(good[: len(good) // 2])
    options = ("data=folder", f"data.folder={pictures}", "data.image_size=16", *QUIET,
               "trainer.max_epochs=1")  # fmt: skip
    refused(command(*options), "sub.png", "data.on_bad_image=skip")
    done = command(*options, "data.on_bad_image=skip")
    assert done.code == 0, done.stderr
    warning, *others = done.summary["warnings"]
    assert all(other.startswith("trainer.limit_") for other in others)
    assert warning.startswith("1 picture") and "sub.png" in warning


def write_idx(path, array_shape, magic=None, cut=0):
    header = struct.pack(">I", magic or 0x800 + len(array_shape)) + struct.pack(f">{len(array_shape)}I", *array_shape)
    size = torch.tensor(array_shape).prod().item()
    path.write_bytes((header + bytes(size))[: None if not cut else -cut])


@pytest.fixture
def mnist_files(tmp_path):
    raw = tmp_path / "data/MNIST/raw"
    raw.mkdir(parents=True)
    for name, count in (("train", 60_000), ("t10k", 10_000)):
        write_idx(raw / f"{name}-images-idx3-ubyte", (count, 28, 28))
        write_idx(raw / f"{name}-labels-idx1-ubyte", (count,))
    return raw


@pytest.mark.parametrize("fault", ["cut", "magic", "gzip"])
def test_broken_idx_files(command, mnist_files, fault):
    path = mnist_files / "t10k-images-idx3-ubyte"
    if fault == "cut":
        write_idx(path, (10_000, 28, 28), cut=10)
    elif fault == "magic":
        write_idx(path, (10_000, 28, 28), magic=0x1234)
    else:
        path.unlink()
        (mnist_files / f"{path.name}.gz").write_bytes(gzip.compress(bytes(1000))[:-20])
    refused(command("data=mnist"), "t10k-images-idx3-ubyte")


def test_an_image_size_that_cannot_be_halved(command, pictures):
    options = ("model=conv", "data=folder", f"data.folder={pictures}", "data.image_size=50")
    refused(command(*options, "model.decoder.channels=[8,8,8]"), "50x50", "data.image_size=48")


def test_bernoulli_over_colour_pictures(command, pictures):
    done = command("data=folder", f"data.folder={pictures}", "data.image_size=16", "model/likelihood=bernoulli")
    refused(done, "gaussian_optimal", "grey_values=true")


def test_a_folder_that_holds_a_run_is_not_written_into(command, fast_run):
    before = {path: path.read_bytes() for path in fast_run.run.rglob("*") if path.is_file()}
    refused(command(*QUIET, f"hydra.run.dir={fast_run.run}"), str(fast_run.run))
    refused(command(f"resume={fast_run.run}", "objective.beta=2"), "objective.beta", "trainer, logger, callbacks")
    assert {path: path.read_bytes() for path in fast_run.run.rglob("*") if path.is_file()} == before


def test_a_damaged_checkpoint_is_found(command):
    done = command(*QUIET)
    path = done.run / "checkpoints/last.ckpt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    refused(command(f"resume={done.run}"), "damaged")
    path.write_bytes(data[: len(data) // 2])
    refused(command(f"resume={done.run}"), "incomplete", "resume=RUN/checkpoints/best.ckpt")


def test_a_non_finite_loss_stops_training_and_keeps_the_last_good_checkpoint(command):
    good = command(*QUIET, "trainer.max_epochs=1")
    kept = good.run / "checkpoints/last.ckpt"
    before = kept.read_bytes()
    # A Gaussian of tiny scale and an absurd learning rate: log p(x|z) overflows within an epoch.
    bad = command("init_from=" + str(good.run), *QUIET, "optimizer.lr=1e30", "name=bad")
    assert bad.code == 1, bad.stderr
    assert "Traceback" not in bad.stderr
    assert "optimiser step" in bad.stderr and ("log_px" in bad.stderr or "kl" in bad.stderr)
    (folder,) = bad.cwd.glob("outputs/bad/*")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "failed" and "optimiser step" in summary["error"]
    state = torch.load(folder / "checkpoints/last.ckpt")["state_dict"]  # before the step that was not finite
    assert all(value.isfinite().all() for value in state.values())
    assert kept.read_bytes() == before
