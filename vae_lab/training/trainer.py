"""Build Lightning's Trainer from a config, with checks and defaults for several optimiser steps per call."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.loggers import Logger

from vae_lab.runs.checkpoint_io import AtomicCheckpointIO
from vae_lab.training.ddp import AllReduceStrategy
from vae_lab.training.nonfinite import OnNonFinite
from vae_lab.utils import cpu
from vae_lab.utils.errors import UsageError

DEFAULT_LOG_EVERY_N_STEPS = 50
GPU_NAMES = ("gpu", "cuda")
PRECISIONS = ("32-true", "bf16-mixed", "32")


def build_trainer(
    *,
    default_root_dir: str | Path = ".",
    callbacks: Iterable[Callback] = (),
    logger: Iterable[Logger] = (),
    steps_per_execution: int | Literal["auto"] = "auto",
    limit_train_batches: int | float | None = None,
    num_threads: int | None = None,
    keep_freed_memory: bool = True,
    channels_last: bool = True,
    compile: bool | Literal["reduce-overhead"] = False,
    cuda_graphs: bool = False,
    on_nonfinite: OnNonFinite = "stop",
    hold_best: bool = False,
    matmul_precision: Literal["highest", "high", "medium"] | None = None,
    **options: Any,
) -> Trainer:
    """A Trainer that writes below `default_root_dir`; options are Lightning's, named and typed in `TrainerConfig`.

    steps_per_execution and limit_train_batches are read by the data module, which forms the calls; channels_last,
    compile, cuda_graphs and on_nonfinite by `build`, for the step. hold_best: see
    `AtomicCheckpointIO`. The progress bar is a callback of vae_lab.
    UsageError: an unavailable device, or an option incompatible with several steps per call.
    """
    require_supported(options, steps_per_execution, limit_train_batches)
    require_compiler(compile)
    require_threads(num_threads)
    torch.set_num_threads(num_threads or cpu.num_threads(num_processes(options)))
    if matmul_precision is not None:
        torch.set_float32_matmul_precision(matmul_precision)
    trainer = _lightning_trainer(options, default_root_dir, list(callbacks), list(logger), hold_best)
    require_reduction(trainer)
    require_graphs(trainer, cuda_graphs)
    if trainer.strategy.root_device.type == "cpu":
        cpu.disable_nvml_check()
        if keep_freed_memory:
            cpu.keep_freed_memory()
    return trainer


def _lightning_trainer(
    options: dict[str, Any], folder: str | Path, callbacks: list[Callback], loggers: list[Logger], hold_best: bool
) -> Trainer:
    """Lightning's Trainer with the given options, overridden where vae_lab needs its own."""
    summarize = options.get("enable_model_summary") is not False
    ours = {
        "default_root_dir": folder,
        "callbacks": [callback for callback in callbacks if summarize or not isinstance(callback, ModelSummary)],
        "enable_model_summary": False,  # the summary is among the callbacks, or disabled
        "logger": loggers or False,
        "strategy": AllReduceStrategy() if options.get("strategy") == "ddp" else options.get("strategy", "auto"),
        "log_every_n_steps": options.get("log_every_n_steps") or DEFAULT_LOG_EVERY_N_STEPS,
        "enable_progress_bar": False,
        "plugins": [AtomicCheckpointIO(hold_best)],
    }
    if options.get("accelerator", "auto") == "auto":  # Lightning would also choose devices that are not supported here
        ours["accelerator"] = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return Trainer(**options | ours)
    except MisconfigurationException as error:
        raise UsageError(f"trainer: {error}") from error


def num_processes(options: dict[str, Any]) -> int:
    """Number of training processes of this run on this machine."""
    devices = options.get("devices", 1)
    return devices if isinstance(devices, int) and devices > 0 else 1


def require_supported(options: dict[str, Any], steps: int | str, limit: int | float | None) -> None:
    """UsageError for options that this hardware or several optimiser steps per call do not allow."""
    require_accelerator(options.get("accelerator", "auto"))
    require_precision(options.get("precision", "32-true"))
    require_steps(steps)
    require_limit(limit)
    require_time(options.get("max_time"))
    interval = options.get("val_check_interval")
    if interval not in (None, 1.0):
        raise UsageError(
            f"trainer.val_check_interval={interval}: a call of the trainer runs several optimiser steps, so batches "
            "cannot be counted. Use trainer.check_val_every_n_epoch, or a smaller trainer.limit_train_batches"
        )


def require_accelerator(accelerator: str) -> None:
    """UsageError for a GPU that is unavailable or lacks float64."""
    if accelerator == "mps":
        raise UsageError(
            "trainer.accelerator=mps: sums are kept in float64, which Apple GPUs do not support. Use trainer=cpu"
        )
    if accelerator in GPU_NAMES and not torch.cuda.is_available():
        raise UsageError(
            f"trainer.accelerator={accelerator}: no CUDA device is visible to torch {torch.__version__} here.\n"
            "Use trainer=cpu (or trainer=auto, which uses a GPU if there is one)"
        )


def require_precision(precision: str | int) -> None:
    """UsageError unless weights are float32, with bfloat16 mixed precision at most."""
    if str(precision) not in PRECISIONS:
        raise UsageError(
            f"trainer.precision={precision}: expected one of {', '.join(PRECISIONS)}. float16 overflows in "
            "log-densities and its loss scaling hides a non-finite loss; images and densities are float32"
        )


def require_reduction(trainer: Trainer) -> None:
    """UsageError for several devices without gradient averaging."""
    if trainer.world_size > 1 and not isinstance(trainer.strategy, AllReduceStrategy):
        raise UsageError(
            f"{trainer.world_size} devices under trainer.strategy={type(trainer.strategy).__name__} would each train "
            "a separate model. Use trainer=ddp (trainer.strategy=ddp), or trainer.devices=1"
        )


def require_compiler(compile: bool | str) -> None:
    """UsageError where torch.compile needs a C++ compiler (no GPU) and finds none."""
    if not compile or torch.cuda.is_available():
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        found = shutil.which(get_cpp_compiler())
    except InvalidCxxCompiler:
        found = None
    if found is None:
        tried = f"{os.environ['CXX']}, from environment variable CXX" if os.environ.get("CXX") else "g++ and clang++"
        raise UsageError(
            f"trainer.compile=true: no C++ compiler found (looked for {tried}).\n"
            "Install one (Debian: apt install g++), or leave trainer.compile=false"
        )


def require_threads(threads: int | None) -> None:
    """UsageError unless None or at least 1."""
    if threads is not None and threads < 1:
        raise UsageError(
            f"trainer.num_threads={threads}: expected an integer of at least 1, or null for the physical cores "
            f"({cpu.num_threads()} here)"
        )


def require_graphs(trainer: Trainer, cuda_graphs: bool) -> None:
    """UsageError for CUDA graphs without a GPU, or with several."""
    device = trainer.strategy.root_device.type
    if cuda_graphs and (device != "cuda" or trainer.world_size > 1):
        found = f"{trainer.world_size} devices" if device == "cuda" else f"the device {device}"
        raise UsageError(
            f"trainer.cuda_graphs=true with {found}: a step can only be recorded on one CUDA device. "
            "Use trainer=gpu, or leave trainer.cuda_graphs=false"
        )


def require_time(time: object) -> None:
    """UsageError unless a duration in one of Lightning's formats."""
    written = isinstance(time, str) and re.fullmatch(r"\d+:\d\d:\d\d:\d\d", time)
    if time is not None and not written and not isinstance(time, Mapping):
        raise UsageError(
            f"trainer.max_time={time}: expected days, hours, minutes and seconds as '00:12:00:00' (in quotes), or a "
            "mapping: {hours: 12}"
        )


def require_limit(limit: int | float | None) -> None:
    """UsageError unless a number of batches or a fraction of them."""
    count = isinstance(limit, int) and limit >= 1
    if limit is not None and not count and not (isinstance(limit, float) and 0 < limit <= 1):
        raise UsageError(
            f"trainer.limit_train_batches={limit}: expected a number of batches from 1, or a fraction in (0, 1]"
        )


def require_steps(steps: int | str) -> None:
    """UsageError unless at least 1 or `auto`."""
    if steps != "auto" and not (isinstance(steps, int) and steps >= 1):
        raise UsageError(f"trainer.steps_per_execution={steps}: expected an integer of at least 1, or auto")
