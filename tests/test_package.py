"""What is installed: a wheel that carries its config, and commands that start without the heavy libraries."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONF = {f"vae_lab/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
HEAVY = ("torch", "torchvision", "torchmetrics", "lightning", "numpy", "sklearn", "matplotlib", "tensorboard", "PIL")


def python(*argv: str, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess:
    hidden = {"VAE_LAB_DATA", "HYDRA_FULL_ERROR", "PYTHONPATH"}
    env = {key: value for key, value in os.environ.items() if key not in hidden}
    env |= {"PYTHONPATH": str(path)} if path else {}
    options = {"cwd": cwd, "env": env, "capture_output": True, "text": True, "timeout": 60}
    done = subprocess.run([sys.executable, *argv], check=False, **options)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    python("-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), ".", cwd=ROOT)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_a_wheel_carries_every_config_file_and_module(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert "vae_lab/conf/train.yaml" in CONF
    assert names >= CONF
    assert "vae_lab/py.typed" in names  # type checkers read the annotations
    assert names >= {str(path.relative_to(ROOT)) for path in (ROOT / "vae_lab").rglob("*.py")}
    assert {name.split("/")[0] for name in names} == {"vae_lab", wheel.stem.rsplit("-", 3)[0] + ".dist-info"}
    assert not [name for name in names if "__pycache__" in name or name.endswith((".ckpt", ".pt"))]
    assert [name for name in names if name.endswith("licenses/LICENSE")]


def test_an_installed_command_finds_its_config_from_any_folder(unpacked, tmp_path):
    done = python("-m", "vae_lab.train", "--cfg", "job", "model=conv", "data=mnist", cwd=tmp_path, path=unpacked)
    assert "_target_: vae_lab.networks.ConvEncoder" in done.stdout
    assert "_target_: vae_lab.data.sets.mnist" in done.stdout
    assert list(tmp_path.iterdir()) == []  # printed, nothing run, no folder made
    code = (
        "import vae_lab.config.schema; print(vae_lab.config.schema.__file__); print(vae_lab.config.schema.conf_dir())"
    )
    module, conf = python("-c", code, cwd=tmp_path, path=unpacked).stdout.split()
    assert Path(module).parents[1] == Path(conf).parent == unpacked / "vae_lab"


def test_a_folder_conf_beside_the_command_adds_to_an_installed_config_and_not_to_a_checkout(unpacked, tmp_path):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 77\n")
    words, given = ("-m", "vae_lab.train", "--cfg", "job", "experiment=mine"), ("--config-dir", str(tmp_path / "conf"))
    for cwd, more in ((tmp_path, ()), (unpacked, given)):
        assert "\nseed: 77\n" in python(*words, *more, cwd=cwd, path=unpacked).stdout
    assert "mine" in python("-m", "vae_lab.train", "--help", cwd=tmp_path, path=unpacked).stdout
    assert "current folder" not in python("-m", "vae_lab.train", "--info", "searchpath", cwd=ROOT).stdout


def light(argument: str, cwd: Path) -> subprocess.CompletedProcess:
    """vae_lab.train with an argument that needs nothing heavy."""
    code = f"""
import atexit, runpy, sys
atexit.register(lambda: print("HEAVY", [name for name in {HEAVY!r} if name in sys.modules]))
sys.argv = ["vae_lab.train", {argument!r}]
try:
    runpy.run_module("vae_lab.train", run_name="__main__", alter_sys=True)
except SystemExit as stop:
    print("CODE", stop.code)
"""
    done = python("-c", code, cwd=cwd, path=ROOT)
    assert "HEAVY []" in done.stdout
    return done


def test_a_misspelt_key_is_refused_without_anything_heavy(tmp_path):
    done = light("trainer.max_epoch=3", tmp_path)
    assert "CODE 2" in done.stdout and "max_epochs" in done.stderr and "Traceback" not in done.stderr


def test_help_is_whole_and_imports_nothing_heavy(tmp_path):
    text = light("--help", tmp_path).stdout
    assert list(tmp_path.iterdir()) == []
    for group in ("data: arrays, digits, dsprites, fashion_mnist, folder, mnist, parquet,", "model: conv, ladder,",
                  "trainer: auto, cpu, ddp, default, gpu", "debug: fast\n", "model/likelihood: bernoulli,",
                  "optimizer/schedule: constant,", "objective/bound: dreg, elbo, importance_weighted"):  # fmt: skip
        assert group in text, group
    for name in (ROOT / "conf" / "experiment").glob("*.yaml"):
        assert name.stem in text
    for example in ("model=conv data=pokemon", "-m model=mlp,conv", "resume=outputs/", "tensorboard --logdir outputs"):
        assert example in text, example
    assert "  latent_dim: " in text and "  max_epochs: " in text
