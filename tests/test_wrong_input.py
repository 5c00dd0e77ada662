"""A wrong request is told in a few lines and exit code 2; a failed run keeps what it had."""

import gzip
import json
import struct

import pytest
import torch
from helpers.data import FAST
from helpers.refusals import refused
from PIL import Image


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.latent_dimm=3"], ["latent_dimm", "model.latent_dim"]),
        (["modle=conv"], ["modle", "model"]),
        (["model=cnov"], ["cnov", "model=conv"]),
        (["data=mnits"], ["data=mnist"]),
        (["trainer.max_epoch=3"], ["trainer.max_epochs"]),
        (["+model.encoder.hiden=[3]"], ["hiden", "hidden"]),
        (["seed=abc"], ["seed", "abc", "Integer"]),
        (["trainer.max_epochs=many"], ["trainer.max_epochs", "many"]),
        (["model.latent_dim=two"], ["model.latent_dim", "two"]),
        (["data.binarize=dynamc"], ["data.binarize", "dynamic"]),
        (["optimizer.lr=fast"], ["optimizer.lr", "fast"]),
        (["model.latent_dim=0"], ["model.latent_dim", "at least 1"]),
        (["model.encoder.hidden=12"], ["model.encoder.hidden", "12"]),
        (["trainer.steps_per_execution=0"], ["steps_per_execution"]),
        (["trainer.steps_per_execution=many"], ["steps_per_execution", "'auto'", "integer"]),
        (["trainer.num_threads=-1"], ["trainer.num_threads=-1", "integer of at least 1"]),
        (["trainer.accelerator=mps"], ["float64", "trainer=cpu"]),
        (["data.device_resident=maybe"], ["data.device_resident", "'auto'", "true or false"]),
        (["trainer.precision=16-mixed"], ["bf16-mixed"]),
        (["trainer.precision=64-true"], ["bf16-mixed"]),
        (["trainer=cpu", "trainer.devices=2"], ["trainer=ddp"]),
        (["trainer.limit_train_batches=0"], ["trainer.limit_train_batches"]),
        (["objective/bound=importance_weighted"], ["num_samples"]),
        (["objective/bound=dreg"], ["num_samples must be at least 2"]),
        (["optimized_metric=val/bits_per_dim", "model/likelihood=laplace"], ["logistic_mixture", "val/elbo"]),
        (["callbacks.best.monitor=val/bits_per_dim", "model/likelihood=gaussian"], ["a density", "logistic_mixture"]),
        (["model/posterior=nearest_code"], ["model.prior", "codes", "model/prior=uniform_codes"]),
        (["model/prior=uniform_sphere"], ["model.prior", "vectors", "model/prior=standard_normal"]),
        (["model/prior=class_gaussian"], ["model.conditional=true"]),
        (["model/prior=vamp", "model.conditional=true"], ["labels", "class_gaussian"]),
        (["model=spatial", "model/decoder=mlp"], ["model.decoder", "model=spatial"]),
        (["objective/regularizers=[mmd]", "objective.regularizers.mmd.wieght=1"], ["wieght", "weight"]),
        (["objective/regularizers=[mmd]", "objective.regularizers.mmd.weight=-1"], ["mmd.weight", "at least 0"]),
        (["objective/regularizers=[total_correlation]", "model=ladder"], ["total_correlation", "model=mlp"]),
        (["data/corruption=masked", "data.corruption.probability=2"], ["data.corruption.probability", "[0, 1]"]),
        (["second_stage=flow", "model=ladder"], ["second_stage"]),
        (["callbacks=null"], ["callbacks.images", "~callbacks.images"]),
        (["callbacks.best.monitor=val/bits_per_dim"], ["lower val/bits_per_dim is better", "callbacks.best.mode=min"]),
        (["callbacks.best.monitor=kl/layer_9", "model=ladder"], ["no such metric", "kl/layer_0"]),
        (["optimized_metric=val/elboo"], ["optimized_metric=val/elboo", "did you mean val/elbo?"]),
        (["optimized_metric=val/bits_per_dim", "model/posterior=delta"], ["no density", "val/log_px"]),
        (["model/prior=vamp", "model/posterior=planar"], ["model/prior=vamp", "choose"]),
        (["data.batch_size=0"], ["data.batch_size", "at least 1"]),
        (["optimizer.ema_decay=1.5"], ["optimizer.ema_decay"]),
        (["trainer.max_epochs=-5"], ["max_epochs", "-5"]),
        (["data=folder", "data.folder="], ["data.folder"]),
        (["model/likelihood=gaussian_color"], ["1 channel", "model/likelihood=gaussian_optimal"]),
        (["data.batch_size=1", "model/likelihood=gaussian_optimal"], ["data.batch_size=2 or more", "=gaussian,"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_overrides(command, overrides, words):
    refused(command(*overrides), *words)
    assert not list(command.cwd.glob("outputs/*/*"))  # nothing is left behind


def test_a_schedule_that_ends_with_a_training_without_an_end(command):
    endless = ("trainer.max_epochs=-1", "trainer.max_time=00:00:00:05", "optimizer/schedule=cosine")
    refused(command(*endless), "set trainer.max_epochs")


def test_a_gpu_that_is_not_there(command):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    refused(command("trainer=gpu"), "CUDA", "trainer=cpu")


def test_a_missing_or_empty_folder(command, tmp_path):
    refused(command("data=folder", "data.folder=nowhere"), "nowhere", "data=digits")
    (tmp_path / "empty").mkdir()
    refused(command("data=folder", "data.folder=empty"), "empty", "data=digits")
    refused(command("data=folder"), "data.folder")
    refused(
        command("data=pokemon", "data.root=nothing"), "nothing/pokemon", "vae_lab.data.download pokemon", "data=digits"
    )


@pytest.mark.parametrize("content", [b"", b"not a picture", "truncated"])
def test_a_bad_picture_is_named_and_can_be_skipped(command, pictures, content):
    good = (pictures / "000.png").read_bytes()
    (pictures / "sub.png").write_bytes(good[: len(good) // 2] if content == "truncated" else content)
    options = ("data=folder", f"data.folder={pictures}", "data.image_size=16", *FAST, "callbacks.images=null")
    refused(command(*options), "sub.png", "data.on_bad_image=skip")
    done = command(*options, "data.on_bad_image=skip")
    assert done.code == 0, done.stderr
    warning, *others = done.summary["warnings"]
    assert all(other.startswith("trainer.limit_") for other in others)
    assert warning.startswith("1 picture") and "sub.png" in warning


def test_a_picture_above_max_pixels(command, pictures):
    Image.new("L", (300, 300)).save(pictures / "huge.png")
    refused(command("data=folder", f"data.folder={pictures}", "data.max_pixels=10000"), "huge.png", "data.max_pixels")


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


def test_resume_of_what_is_no_run(command, tmp_path):
    refused(command("resume=nowhere"), "nowhere", "no such folder")
    (tmp_path / "folder").mkdir()
    refused(command("resume=folder"), "folder", "run directory")
    assert not list((tmp_path / "folder").iterdir())


@pytest.mark.parametrize("override", ["data=mnist", "model.latent_dim=3", "objective.beta=2", "seed=3"])
def test_resume_with_overrides_it_cannot_take(command, fast_run, override):
    before = (fast_run.run / "summary.json").read_bytes()
    refused(command(f"resume={fast_run.run}", override), override.split("=")[0], "trainer, logger, callbacks")
    assert (fast_run.run / "summary.json").read_bytes() == before


def test_a_folder_that_holds_a_run_is_not_written_into(command, fast_run):
    before = {path: path.read_bytes() for path in fast_run.run.rglob("*") if path.is_file()}
    refused(command(*FAST, f"hydra.run.dir={fast_run.run}"), str(fast_run.run))
    assert {path: path.read_bytes() for path in fast_run.run.rglob("*") if path.is_file()} == before


def test_an_output_folder_that_cannot_be_written(command, tmp_path):
    (tmp_path / "outputs").write_text("a file, not a folder")
    refused(command(*FAST), "outputs")


def test_init_from_what_is_no_run(command):
    refused(command(*FAST, "init_from=nowhere"), "nowhere")


def test_a_damaged_checkpoint_is_found(command):
    done = command(*FAST, "callbacks.images=null")
    path = done.run / "checkpoints/last.ckpt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    refused(command(f"resume={done.run}"), "damaged")
    path.write_bytes(data[: len(data) // 2])
    refused(command(f"resume={done.run}"), "incomplete", "resume=RUN/checkpoints/best.ckpt")


def test_a_non_finite_loss_stops_training_and_keeps_the_last_good_checkpoint(command):
    good = command(*FAST, "callbacks.images=null", "trainer.max_epochs=1")
    kept = good.run / "checkpoints/last.ckpt"
    before = torch.load(kept)
    # A Gaussian of tiny scale and an absurd learning rate: log p(x|z) overflows within an epoch.
    bad = command("init_from=" + str(good.run), *FAST, "callbacks.images=null", "optimizer.lr=1e30", "name=bad")
    assert bad.code == 1, bad.stderr
    assert "Traceback" not in bad.stderr
    assert "optimiser step" in bad.stderr and ("log_px" in bad.stderr or "kl" in bad.stderr)
    (folder,) = bad.cwd.glob("outputs/bad/*")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "failed" and "optimiser step" in summary["error"]
    state = torch.load(folder / "checkpoints/last.ckpt")["state_dict"]  # before the step that was not finite
    assert all(value.isfinite().all() for value in state.values())
    assert torch.equal(
        torch.load(kept)["state_dict"]["model.encoder.1.weight"], before["state_dict"]["model.encoder.1.weight"]
    )


def test_a_late_non_finite_loss_leaves_the_checkpoints_before_it(command):
    good = command(*FAST, "callbacks.images=null", "trainer.max_epochs=2", "trainer.log_every_n_steps=1")
    path = good.run / "checkpoints/last.ckpt"
    saved = torch.load(path)
    saved["optimizer_states"][0]["state"][0]["exp_avg"].fill_(float("nan"))
    torch.save(saved, path)
    size = path.stat().st_mtime_ns
    bad = command(f"resume={good.run}", "trainer.max_epochs=4")
    assert bad.code == 1, bad.stderr
    assert "optimiser step 8" in bad.stderr  # step 7 spoils the weights, step 8 shows it
    assert path.stat().st_mtime_ns == size
    assert bad.summary["status"] == "failed"
