"""Checkpoint files: which are written at once, which wait, what a crash leaves, and what a damaged one says."""

import random

import pytest
import torch
from helpers.commands import QUIET

from vae_lab.runs.checkpoint_io import AtomicCheckpointIO, load_checkpoint, write_checkpoint
from vae_lab.utils import files
from vae_lab.utils.errors import UsageError


@pytest.fixture
def best(tmp_path):
    return tmp_path / "checkpoints" / "best.ckpt"


@pytest.fixture
def last(best):
    return best.with_name("last.ckpt")


@pytest.fixture
def writer():
    return AtomicCheckpointIO(hold_best=True)


def state(step):
    return {"weight": torch.full((300,), float(step)), "global_step": step}


def step_of(path):
    return load_checkpoint(path)["global_step"]


def test_the_best_is_written_with_the_last(writer, best, last):
    held = state(1)
    writer.save_checkpoint(held, best)
    held["weight"] += 5  # training goes on
    assert not best.exists()
    writer.save_checkpoint(state(2), last)
    assert step_of(best) == 1 and load_checkpoint(best)["weight"][0] == 1 and step_of(last) == 2
    writer.save_checkpoint(state(3), best)
    writer.teardown()  # what is held now is later than the last state
    assert step_of(best) == 1
    writer.save_checkpoint(state(4), best)
    assert writer.load_checkpoint(best)["global_step"] == 4  # a reader sees what is held
    assert sorted(path.name for path in best.parent.iterdir()) == ["best.ckpt", "last.ckpt"]


def test_a_write_that_fails_leaves_the_last_good_one_and_names_it(writer, last, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    writer.save_checkpoint(state(1), last)
    monkeypatch.setattr(files, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        writer.save_checkpoint(state(2), last)
    assert caught.value.filename == str(last)
    assert step_of(last) == 1
    assert [path.name for path in last.parent.iterdir()] == ["last.ckpt"]


def test_every_flipped_bit_is_found_or_harmless(tmp_path):
    path = tmp_path / "last.ckpt"
    write_checkpoint(state(3), path)
    content, chance = path.read_bytes(), random.Random(0)
    found = 0
    for _ in range(100):
        damaged = bytearray(content)
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            assert load_checkpoint(path)["weight"].equal(state(3)["weight"]) and step_of(path) == 3
        except UsageError as error:
            assert str(path) in str(error)
            found += 1
    assert found > 50


# --- which weights are kept -------------------------------------------------------------------------------


def kept(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("count", "names", "resumed"),
    [
        (2, ["best.ckpt", "last.ckpt", "step=00000003.ckpt", "step=00000006.ckpt"], ["00000006", "00000009"]),
        (-1, ["best.ckpt", "last.ckpt", "step=00000003.ckpt", "step=00000006.ckpt"], None),
        (0, ["last.ckpt"], None),
    ],
)
def test_as_many_of_the_best_are_kept_as_asked_for(command, count, names, resumed):
    done = command(*QUIET, f"callbacks.best.save_top_k={count}")
    assert done.code == 0, done.stderr
    assert kept(done.run) == names
    if resumed:
        assert step_of(done.run / "checkpoints" / "best.ckpt") == 6
        more = command(f"resume={done.run}", "trainer.max_epochs=3")
        assert more.code == 0, more.stderr
        assert kept(done.run) == ["best.ckpt", "last.ckpt", *(f"step={step}.ckpt" for step in resumed)]


def test_a_run_that_was_moved_keeps_its_best(command):
    """A best score is forged that no later validation reaches: best.ckpt must stay the one of before."""
    done = command(*QUIET)
    moved = command.cwd / "elsewhere"
    done.run.rename(moved)
    path = moved / "checkpoints/last.ckpt"
    saved = torch.load(path)
    saved["callbacks"]["BestCheckpoint"]["best_k_models"] = {
        name: torch.tensor(0.0) for name in saved["callbacks"]["BestCheckpoint"]["best_k_models"]
    }
    saved["callbacks"]["BestCheckpoint"]["kth_value"] = torch.tensor(0.0)
    torch.save(saved, path)
    before = (moved / "checkpoints/best.ckpt").read_bytes()
    more = command(f"resume={moved}", "trainer.max_epochs=4")
    assert more.code == 0, more.stderr
    assert (moved / "checkpoints/best.ckpt").read_bytes() == before
