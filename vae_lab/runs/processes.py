"""The processes of one run on several devices: its own, which `device_processes` starts, or those of torchrun.

Lightning would start them with the command line of the whole program, which may be a sweep, a worker or a notebook.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.utils import get_original_cwd

from vae_lab.config.schema import conf_dir
from vae_lab.utils.errors import UsageError

if TYPE_CHECKING:
    from vae_lab.utils.distributed import Share

VARIABLES = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SECONDS_TO_END = 20.0  # for processes of a run that has failed


def by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_first_process() -> bool:
    """Whether this process writes the files of its run."""
    return os.environ.get("RANK" if by_torchrun() else "LOCAL_RANK", "0") == "0"


def share_with_others(value: str | None) -> str:
    """The value of the first process of torchrun, in all of them; empty if it has none."""
    from torch.distributed.rendezvous import rendezvous

    store, rank, _ = next(rendezvous("env://"))
    key = f"vae_lab/{os.environ['TORCHELASTIC_RESTART_COUNT']}"
    if rank == 0:
        store.set(key, value or "")
    try:
        return str(store.get(key).decode())
    except RuntimeError:  # the first process, which keeps the store, has refused the request and ended
        return ""


@contextmanager
def group_of_torchrun() -> Iterator[Share]:
    """Make one group of the processes that torchrun has started, if it has; the share of this one."""
    import torch.distributed as dist

    from vae_lab.utils.distributed import Share

    if not by_torchrun():
        yield Share()
        return
    dist.init_process_group("gloo")  # for results, which are on the CPU
    try:
        yield Share(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


@contextmanager
def device_processes(count: int, folder: Path) -> Iterator[None]:
    """Start the other count - 1 processes of the run in `folder`, each of which runs this job; wait for their end.

    count: 0 for a run that is not distributed. UsageError: a config that only this process has.
    """
    if count == 0 or by_torchrun() or not is_first_process():
        yield
        return
    command, before = _command(folder) if count > 1 else [], {name: os.environ.get(name) for name in VARIABLES}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    values = ("0", "0", str(count), "127.0.0.1", str(port))
    os.environ.update(zip(VARIABLES, values, strict=True))
    others: list[subprocess.Popen[bytes]] = []
    ended = threading.Event()
    try:
        for rank in range(1, count):
            env = os.environ | {"LOCAL_RANK": str(rank)}
            others.append(subprocess.Popen(command, env=env, cwd=get_original_cwd()))
        threading.Thread(target=_watch, args=(others, ended), daemon=True).start()
        yield
    finally:
        ended.set()
        _end(others)
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _command(folder: Path) -> list[str]:
    """The command of the current job alone."""
    config = HydraConfig.get()
    sources = {source.provider: source.path for source in config.runtime.config_sources}
    if sources["main"] != conf_dir():
        raise UsageError(
            "trainer.devices: only a command can start the other processes of a config composed elsewhere\n"
            "train on one device, or give overrides instead of a config"
        )
    directory = QuotedString(str(folder), Quote.single).with_quotes()
    extra = ["--config-dir", sources["command-line"]] if "command-line" in sources else []
    words = [*config.overrides.task, f"hydra.run.dir={directory}"]
    return [sys.executable, "-m", "vae_lab.train", *words, *extra]


def _watch(others: Sequence[subprocess.Popen[bytes]], ended: threading.Event) -> None:
    """End this process, too, if it waits in vain for one that has failed, as an operation on GPUs would for long."""
    while not ended.wait(1.0):
        if any(other.poll() for other in others) and not ended.wait(SECONDS_TO_END):
            sys.stderr.write("error: another process of this run has failed; its message is above\n")
            _end(others, 0.0)
            os.kill(os.getpid(), signal.SIGTERM if os.name == "nt" else signal.SIGKILL)


def _end(others: Sequence[subprocess.Popen[bytes]], seconds: float = SECONDS_TO_END) -> None:
    """Leave the process group and wait for the others, which end by themselves unless the run has failed."""
    import torch.distributed as dist

    end = time.monotonic() + seconds
    for other in others:
        with suppress(subprocess.TimeoutExpired):
            other.wait(max(0.0, end - time.monotonic()))
        other.kill()
    if seconds and dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
