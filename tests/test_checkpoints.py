"""Checkpoint files: which are written at once, which wait, and what a reader sees meanwhile."""

import pytest
import torch

from vae_lab.checkpoints import AtomicCheckpointIO, load_checkpoint


@pytest.fixture
def best(tmp_path):
    return tmp_path / "checkpoints" / "best.ckpt"


@pytest.fixture
def writer(best):
    writer = AtomicCheckpointIO(seconds_held=1000.0)
    writer.may_wait.add(best)
    return writer


def state(value):
    return {"weight": torch.full((3,), float(value))}


def value(path):
    return load_checkpoint(path)["weight"][0].item()


def test_a_file_that_may_wait_is_written_the_first_time_and_then_held(writer, best):
    writer.save_checkpoint(state(1), best)
    held = state(2)
    writer.save_checkpoint(held, best)
    held["weight"] += 5  # training goes on
    assert value(best) == 1
    writer.flush()
    assert value(best) == 2


def test_any_other_file_is_written_at_once_and_what_waits_before_it(writer, best):
    last = best.with_name("last.ckpt")
    for k in (1, 2):
        writer.save_checkpoint(state(k), best)
    for k in (3, 4):
        writer.save_checkpoint(state(k), last)
        assert value(last) == k
    assert value(best) == 2


def test_after_the_fit_nothing_waits(writer, best):
    for k in (1, 2):
        writer.save_checkpoint(state(k), best)
    writer.teardown()
    assert value(best) == 2
    writer.save_checkpoint(state(3), best)
    assert value(best) == 3


def test_a_look_writes_what_has_waited_long_enough(writer, best):
    for k in (1, 2):
        writer.save_checkpoint(state(k), best)
    writer.look()
    assert value(best) == 1
    writer.seconds_held = 0.0
    writer.look()
    assert value(best) == 2


def test_a_reader_through_the_writer_sees_the_last_one(writer, best):
    for k in (1, 2):
        writer.save_checkpoint(state(k), best)
    assert writer.load_checkpoint(best)["weight"][0] == 2


def test_a_removed_file_is_written_again(writer, best):
    for k in (1, 2):
        writer.save_checkpoint(state(k), best)
    writer.remove_checkpoint(best)
    writer.flush()
    assert not best.exists()
    writer.save_checkpoint(state(3), best)
    assert value(best) == 3
