"""Two processes with the variables that torchrun sets."""

import os
import runpy
import socket
import sys
from pathlib import Path

import torch.multiprocessing


def torchrun(module: str, words: list[str], folder: Path) -> tuple[list[int], list[str]]:
    """Run `python -m MODULE WORDS` in a folder as two processes; exit codes, and what each has written to stderr."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (module, words, folder, port)
    started = torch.multiprocessing.start_processes(_process, arguments, 2, False, start_method="fork")
    for process in started.processes:
        process.join(60)
    said = [(folder / f"output{rank}.txt").read_text() for rank in (0, 1)]
    return [process.exitcode for process in started.processes], said


def _process(rank: int, module: str, words: list[str], folder: Path, port: int) -> None:
    os.chdir(folder)
    os.environ |= {"TORCHELASTIC_RUN_ID": "run", "TORCHELASTIC_RESTART_COUNT": "0", "GROUP_RANK": "0",
                   "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    sys.stderr = Path(f"output{rank}.txt").open("w", buffering=1)  # noqa: SIM115
    sys.argv = [module, *words]
    code = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    sys.stderr.flush()
    os._exit(code or 0)
