"""How the process uses the machine: threads and memory."""

import subprocess
import sys

import pytest
import torch

from vae_lab.training.trainer import build_trainer
from vae_lab.utils import cpu


@pytest.mark.parametrize(
    ("cores", "processes", "asked", "threads"),
    [(8, 1, None, 8), (8, 2, None, 4), (2, 4, None, 1), (8, 1, "3", 3), (8, 2, "6", 4), (8, 1, "4,2", 4),
     (8, 1, "0", 8), (8, 1, "many", 8)],
)  # fmt: skip
def test_threads_are_the_cores_shared_by_processes_and_at_most_what_was_asked(
    monkeypatch, cores, processes, asked, threads
):
    monkeypatch.setattr(cpu, "num_cores", lambda: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert cpu.num_threads(processes) == threads


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="affinity is Linux's")
def test_cores_follow_the_affinity_of_the_process():
    code = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]);"
        "from vae_lab.utils.cpu import num_cores; print(num_cores())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.strip() == b"1"


@pytest.mark.parametrize(("asked", "expected"), [(2, 2), (1, 1), (None, 3)])
def test_a_run_takes_the_threads_it_is_given(monkeypatch, asked, expected):
    monkeypatch.setattr(cpu, "num_threads", lambda processes: 3)
    monkeypatch.setattr(cpu, "keep_freed_memory", lambda: True)
    before = torch.get_num_threads()
    try:
        build_trainer(accelerator="cpu", num_threads=asked)
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_kept_for_the_next_step():
    """Page faults of allocating and freeing 64 MB again and again: always by default, none once the heap has grown."""
    code = (
        "import resource, torch\n"
        "from vae_lab.utils.cpu import keep_freed_memory\n"
        "torch.set_num_threads(1)\n"
        "def faults():\n"
        "    for _ in range(10): torch.empty(2**24).fill_(1)\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(20): torch.empty(2**24).fill_(1)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "print(faults())\n"
        "assert keep_freed_memory()\n"
        "print(faults())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    faults = [int(line) for line in done.stdout.split()]
    assert faults[0] >= 20 and faults[1] < 20, faults
