"""A run goes on when nobody reads what it prints, and tells in train.log why it failed."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from helpers.commands import QUIET
from omegaconf import OmegaConf

from vae_lab.callbacks.run_summary import memory_failure
from vae_lab.runs.cli import require_cache

PRINTS = """
    import os, sys
    from vae_lab.runs.cli import ignore_closed_streams
    ignore_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        print("a line", file=stream, flush=True)
    sys.exit(7)
"""


@pytest.mark.parametrize("how", ["pipe", "closed"])
def test_what_nobody_reads_is_dropped(how):
    """Before, a print would raise BrokenPipeError, and rich would end the process by SystemExit: 1."""
    reader, writer = os.pipe()
    os.close(reader)
    closed = (lambda: (os.close(1), os.close(2))) if how == "closed" else None
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PRINTS)], stdout=writer, stderr=writer, preexec_fn=closed, check=False
    )
    os.close(writer)
    assert done.returncode == 7


class Hungry(torch.nn.Module):
    def validation_step(self):
        return torch.empty(2**60)


def test_out_of_memory_names_the_batch_size_to_lower():
    data = OmegaConf.create({"batch_size": 128, "eval_batch_size": 500})
    for task, words in ((lambda: torch.empty(2**60), "data.batch_size below 128"),
                        (Hungry().validation_step, "data.eval_batch_size below 500")):  # fmt: skip
        with pytest.raises(RuntimeError) as caught:
            task()
        assert words in str(memory_failure(caught.value, data))
    assert memory_failure(RuntimeError("another"), data) is None


def test_the_reason_of_a_failure_stands_in_the_log(command):
    done = command(*QUIET, "optimizer.lr=1e30", "data.batch_size=100000000000")
    assert done.code == 1
    assert "optimiser step" in (done.run / "train.log").read_text()


def test_a_home_that_cannot_be_written_gets_a_temporary_cache(monkeypatch, capsys):
    monkeypatch.setenv("HOME", "/dev/null")
    monkeypatch.setenv("VAE_LAB_CACHE", "set, so that it is removed afterwards")
    monkeypatch.delenv("VAE_LAB_CACHE")
    for _ in range(2):
        require_cache()
    assert Path(os.environ["VAE_LAB_CACHE"]).is_dir()
    assert capsys.readouterr().err.count("cannot be written") == 1
