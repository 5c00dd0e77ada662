"""Parts and config files of one's own: what docs/your_own_parts.md and docs/your_pictures.md say, word for word."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import QUIET
from helpers.data import write_pictures
from helpers.refusals import refused
from omegaconf import OmegaConf
from PIL import Image

import vae_lab
from vae_lab.utils.errors import UsageError

DOCS = Path(__file__).parents[1] / "docs"
FILE = re.compile(r"^`([\w/]+\.(?:py|yaml))`\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAM = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^ {4}(?:PYTHONPATH=(\w+) )?python -m ([\w.]+) (.*)$", re.MULTILINE)
RUN = re.compile(r"outputs/[\w-]+/DATE_TIME")
BRIEF = (*QUIET, "trainer.max_epochs=1", "trainer.limit_train_batches=1")
MEASURES = ("evaluation.quality=null", "evaluation.representation=null", "evaluation.baseline=false",
            "evaluation.cost=false", "evaluation.likelihood.num_samples=5")  # fmt: skip


class Page:
    """A page of docs/: writes its files into a folder, and has its commands and programs."""

    def __init__(self, name, folder):
        text = (DOCS / name).read_text()
        for path, content in FILE.findall(text):
            write(folder / path, content)
        self.commands = [(path, module, shlex.split(words)) for path, module, words in COMMAND.findall(text)]
        self.programs = PROGRAM.findall(FILE.sub("", text))


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def newest(folder):
    return max(folder.glob("outputs/*/*/summary.json"), key=lambda it: it.stat().st_mtime_ns).parent


def run_program(command, folder, text):
    write(folder / "program.py", RUN.sub(str(newest(folder)), text))
    return command(module="program", cwd=folder)


@pytest.mark.slow
def test_parts_of_your_own(command, tmp_path):
    study = tmp_path / "study"
    page = Page("your_own_parts.md", study)
    write(study / "my_project/__init__.py", "")
    for path, module, words in page.commands:
        known = [RUN.sub(str(newest(study)), word) if "DATE_TIME" in word else word for word in words]
        quick = ["trainer.max_epochs=2"] if any(word.startswith("resume=") for word in words) else BRIEF
        more = MEASURES if module == "vae_lab.evaluate" else quick
        folder, env = (tmp_path, {"PYTHONPATH": path}) if path else (study, {})
        done = command(*known, *more, module=module, cwd=folder, **env)
        assert done.code == 0, (known, done.stderr)
    assert len(page.commands) == 7
    run = newest(study)
    with pytest.raises(UsageError, match=r"(?s)my_project.regularizers.Sparsity, .*vae_lab.load\(run, trusted=True\)"):
        vae_lab.load(run)
    quick = ", ".join(map(repr, BRIEF))
    done = run_program(command, study, page.programs[0].replace('"trainer.max_epochs=5"', quick) + "print(lab)")
    assert "LaplacePrior" in done.stdout, done.stderr


def test_pictures_of_your_own(command, tmp_path):
    page = Page("your_pictures.md", tmp_path)
    write_pictures(tmp_path / "pictures", size=24)
    Image.fromarray(np.zeros((50, 40, 3), np.uint8)).save(tmp_path / "mine.png")
    for _, module, words in page.commands:
        done = command(*words, *QUIET, "trainer.max_steps=3", "second_stage=null", module=module)
        assert done.code == 0, (words, done.stderr)
    run = newest(tmp_path)
    assert run.parent.name == "my_pictures"
    done = run_program(command, tmp_path, page.programs[0] + "print(*lab.encode(image).mean.shape)")
    assert done.stdout == "1 64\n", done.stderr
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = command(f"resume={run}", "trainer.max_steps=5", cwd=elsewhere)  # without the experiment file
    assert done.code == 0, done.stderr
    assert OmegaConf.load(run / ".hydra/config.yaml").data.folder == str(tmp_path / "pictures")
    assert list(elsewhere.iterdir()) == []


MINE = "# @package _global_\n"
OPTIONS = {
    "vae_lab.train": ("experiment", f"{MINE}name: of my own"),
    "vae_lab.search": ("search", f"{MINE}search: {{space: ['seed=choice(7,8)']}}"),
    "vae_lab.evaluate": ("evaluation", "split: val"),
    "vae_lab.fit_prior": ("second_stage", f"{MINE}second_stage: {{name: of my own}}"),
}


@pytest.mark.parametrize("module", OPTIONS)
def test_every_command_finds_config_files_in_the_current_folder_and_in_a_given_one(command, tmp_path, module):
    group, content = OPTIONS[module]
    write(tmp_path / f"conf/{group}/mine.yaml", content)
    write(tmp_path / "empty/note.txt", "")
    here = command("--cfg", "job", f"{group}=mine", module=module)
    there = command("--cfg", "job", "--config-dir", "../conf", f"{group}=mine", module=module, cwd=tmp_path / "empty")
    assert here.code == there.code == 0, here.stderr + there.stderr
    assert content.rpartition(": ")[2].strip("{}[]'") in here.stdout == there.stdout
    refused(command("--cfg", "job", f"{group}=mine", module=module, cwd=tmp_path / "empty"), f"{group}=mine", "./conf")


LIKELIHOOD = """
from torch.distributions import Normal
from vae_lab.likelihoods import Likelihood
class Mine(Likelihood):
    def __init__(self, image):
        super().__init__()
        self.num_channels = image.channels
    def forward(self, params):
        return Normal(params, 1.0)
"""


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("mine", "_target_: nowhere.Mine", ["No module named 'nowhere'", "in the folder that holds it, or install it"]),
        ("mine", "_target_: mine.Mime\n_partial_: true", ["mine.Mime", "did you mean mine.Mine?"]),
        ("mine", "_target_: mine.Mine", ["model.likelihood", "needs 'image'", "_partial_: true"]),
        ("mine", "_target_: mine.Mine\n_partial_: true", ["event ()", "expected (1, 8) and (1, 28, 28)"]),
        ("bernoulli", "_target_: mine.Mine\n_partial_: true", ["conf/model/likelihood/bernoulli.yaml", "rename"]),
    ],
)
def test_what_is_missing_in_a_part_is_said(command, tmp_path, name, content, words):
    write(tmp_path / "mine.py", LIKELIHOOD)
    write(tmp_path / f"conf/model/likelihood/{name}.yaml", content)
    refused(command(f"model/likelihood={name}", *QUIET), *words)
    assert not list(tmp_path.glob("outputs/*/*"))


def test_a_file_that_vae_labs_file_hides_is_named(command, tmp_path):
    """Chosen on the command line it is refused; by a default or an experiment file, there is a warning."""
    write(tmp_path / "conf/experiment/mine.yaml", f"{MINE}defaults: [override /model/encoder: mlp]")
    write(tmp_path / "conf/model/encoder/mlp.yaml", "hidden: [1]")
    write(tmp_path / "other/data/digits.yaml", "batch_size: 1")
    refused(command("--config-dir=other", "data=digits", *QUIET), "other/data/digits.yaml", "rename")
    done = command("--config-dir=other", "experiment=mine", *QUIET)
    assert done.code == 0, done.stderr
    for name in ("conf/model/encoder/mlp.yaml", "other/data/digits.yaml"):
        assert f"{tmp_path / name}: not read" in done.stderr
