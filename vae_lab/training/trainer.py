"""Build Lightning's Trainer from a config, with checks and defaults for several optimiser steps per call."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ModelSummary
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler

from vae_lab.runs.checkpoint_io import AtomicCheckpointIO
from vae_lab.training.ddp import AllReduceStrategy
from vae_lab.training.nonfinite import OnNonFinite
from vae_lab.utils import cpu
from vae_lab.utils.errors import UsageError

SHARDED = {
    "fsdp": ".\nSharded weights would need sharded optimisers, moving averages and checkpoints, which vae_lab does not "
    "have. For a large ladder: trainer=ddp, optimizer.accumulate, a smaller data.batch_size"
}
DEFAULT_LOG_EVERY_N_STEPS = 50
GPU_NAMES = ("gpu", "cuda")
PRECISIONS = ("32-true", "bf16-mixed", "32")
PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}


def build_trainer(
    *,
    default_root_dir: str | Path = ".",
    callbacks: Iterable[Callback] = (),
    logger: Iterable[Logger] = (),
    steps_per_execution: int | Literal["auto"] = "auto",
    limit_train_batches: int | float | None = None,
    overfit_batches: int | float = 0.0,
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

    Some options are only checked here: the data module, which forms the calls, and `build` read them from the config.
    hold_best: see `AtomicCheckpointIO`. UsageError: an unavailable device, or an option incompatible with several steps
    per call.
    """
    limits = {"limit_train_batches": limit_train_batches, "overfit_batches": overfit_batches or None}
    _refuse(_wrong_options(options, steps_per_execution, limits, num_threads, compile))
    devices = options.get("devices", 1)  # on this machine
    torch.set_num_threads(num_threads or cpu.num_threads(devices if isinstance(devices, int) else 1))
    torch.set_float32_matmul_precision(matmul_precision or "highest")  # an earlier job may have chosen another
    trainer = _lightning_trainer(options, default_root_dir, list(callbacks), list(logger), hold_best)
    _refuse(_wrong_devices(trainer, cuda_graphs))
    if trainer.strategy.root_device.type == "cpu":
        # Lightning looks for GPUs in each step: asking the driver's library takes 0.3 ms, and torch caches no answer.
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
        if keep_freed_memory:
            cpu.keep_freed_memory()
    return trainer


def best_by(trainer: Trainer) -> tuple[str, str]:
    """Metric and mode (max or min) of the best validation: those of best.ckpt, if it is kept."""
    kept = [it for it in trainer.checkpoint_callbacks if isinstance(it, ModelCheckpoint)]
    return next(((it.monitor, it.mode) for it in kept if it.monitor), ("val/elbo", "max"))


def _lightning_trainer(
    options: dict[str, Any], folder: str | Path, callbacks: list[Callback], loggers: list[Logger], hold_best: bool
) -> Trainer:
    """Lightning's Trainer with the given options, overridden where vae_lab needs its own."""
    elastic = "TORCHELASTIC_RUN_ID" in os.environ and options.get("strategy") == "ddp"
    if elastic:  # torchrun says how many
        options["devices"] = int(os.environ["LOCAL_WORLD_SIZE"])
        options["num_nodes"] = int(os.environ["WORLD_SIZE"]) // options["devices"]
    summarize = options.get("enable_model_summary") is not False
    ours = {
        "default_root_dir": folder,
        "callbacks": [callback for callback in callbacks if summarize or not isinstance(callback, ModelSummary)],
        "enable_model_summary": False,  # the summary is among the callbacks, or disabled
        "logger": loggers or False,
        "strategy": AllReduceStrategy() if options.get("strategy") == "ddp" else options.get("strategy", "auto"),
        "log_every_n_steps": options.get("log_every_n_steps") or DEFAULT_LOG_EVERY_N_STEPS,
        "enable_progress_bar": False,
        "plugins": [AtomicCheckpointIO(hold_best), *([] if elastic else [LightningEnvironment()])],
    }
    if profiler := PROFILERS.get(str(options.get("profiler"))):  # Lightning's own would only log, and is silenced
        ours["profiler"] = profiler(dirpath=folder, filename="profile")
    if options.get("accelerator", "auto") == "auto":  # Lightning would also choose devices that are not supported here
        ours["accelerator"] = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return Trainer(**options | ours)
    except (MisconfigurationException, TypeError, ImportError) as error:  # TypeError: devices, on the CPU
        raise UsageError(f"trainer: {error}") from error


def _refuse(found: Iterable[str]) -> None:
    """UsageError of the first message, if there is any."""
    for message in found:
        raise UsageError(message)


def _wrong_options(
    options: dict[str, Any],
    steps: int | str,
    limits: dict[str, int | float | None],
    threads: int | None,
    compile: bool | str,
) -> Iterator[str]:
    """Messages about options that this hardware or several optimiser steps per call do not allow."""
    accelerator, precision = options.get("accelerator", "auto"), options.get("precision", "32-true")
    if accelerator == "mps":
        yield "trainer.accelerator=mps: sums are kept in float64, which Apple GPUs do not support. Use trainer=cpu"
    if accelerator not in ("auto", "cpu", "mps", *GPU_NAMES):
        yield f"trainer.accelerator={accelerator}: expected auto, cpu or gpu"
    if (strategy := options.get("strategy", "auto")) not in ("auto", "ddp"):
        yield f"trainer.strategy={strategy}: expected auto, or ddp for one process a device{SHARDED.get(strategy, '')}"
    yield from _wrong_processes(strategy, options.get("num_nodes", 1))
    if accelerator in GPU_NAMES and not torch.cuda.is_available():
        yield (
            f"trainer.accelerator={accelerator}: no CUDA device is visible to torch {torch.__version__} here.\n"
            "Use trainer=cpu (or trainer=auto, which uses a GPU if there is one)"
        )
    if (deterministic := options.get("deterministic")) not in (None, True, False, "warn"):
        yield f"trainer.deterministic={deterministic}: expected true, false or warn"
    yield from _wrong_numbers(options, limits, threads)
    if str(precision) not in PRECISIONS:
        yield (
            f"trainer.precision={precision}: expected one of {', '.join(PRECISIONS)}. float16 overflows in "
            "log-densities and its loss scaling hides a non-finite loss; images and densities are float32"
        )
    if steps != "auto" and not (isinstance(steps, int) and steps >= 1):
        yield f"trainer.steps_per_execution={steps}: expected an integer of at least 1, or auto"
    time = options.get("max_time")
    if not (time is None or isinstance(time, Mapping) or re.fullmatch(r"\d+:\d\d:\d\d:\d\d", str(time))):
        yield (
            f"trainer.max_time={time}: expected days, hours, minutes and seconds as '00:12:00:00' (in quotes), or a "
            "mapping: {hours: 12}"
        )
    if (interval := options.get("val_check_interval")) not in (None, 1.0):
        yield (
            f"trainer.val_check_interval={interval}: a call of the trainer runs several optimiser steps, so batches "
            "cannot be counted. Use trainer.check_val_every_n_epoch, or a smaller trainer.limit_train_batches"
        )
    if compile and not torch.cuda.is_available():
        yield from _missing_compiler()


def _wrong_processes(strategy: str, num_nodes: int) -> Iterator[str]:
    """Messages about processes that nobody would start, or that would not know of each other."""
    started = int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1
    if started > 1 and strategy != "ddp":
        yield f"torchrun started {started} processes under trainer.strategy={strategy}: use trainer=ddp"
    if num_nodes > 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        yield (
            f"trainer.num_nodes={num_nodes}: start the processes of several machines by torchrun:\n"
            "torchrun --nnodes 2 --nproc-per-node 8 --rdzv-endpoint HOST:29400 -m vae_lab.train trainer=ddp ..."
        )


def _wrong_numbers(
    options: dict[str, Any], limits: dict[str, int | float | None], threads: int | None
) -> Iterator[str]:
    for name, limit in limits.items():
        if limit is not None and not (limit >= 1 if isinstance(limit, int) else 0 < limit <= 1):
            yield f"trainer.{name}={limit}: expected a number of batches from 1, or a fraction in (0, 1]"
    for name, least in (("check_val_every_n_epoch", 1), ("log_every_n_steps", 0), ("min_epochs", 0), ("min_steps", 0)):
        if (value := options.get(name)) is not None and value < least:
            yield f"trainer.{name}={value}: expected at least {least}"
    if threads is not None and threads < 1:
        yield (
            f"trainer.num_threads={threads}: expected an integer of at least 1, or null for the physical cores "
            f"({cpu.num_threads()} here)"
        )


def _missing_compiler() -> Iterator[str]:
    """A message if torch.compile, which needs a C++ compiler without a GPU, would find none."""
    named = os.environ.get("CXX")
    if not any(map(shutil.which, [named] if named else ["g++", "clang++"])):
        tried = f"{named}, from environment variable CXX" if named else "g++ and clang++"
        yield (
            f"trainer.compile=true: no C++ compiler found (looked for {tried}).\n"
            "Install one (Debian: apt install g++), or leave trainer.compile=false"
        )


def _wrong_devices(trainer: Trainer, cuda_graphs: bool) -> Iterator[str]:
    """Messages about several devices without gradient averaging, and CUDA graphs on other than one GPU."""
    count, kind = trainer.world_size, trainer.strategy.root_device.type
    if count > 1 and not isinstance(trainer.strategy, AllReduceStrategy):
        yield (
            f"{count} devices under trainer.strategy={type(trainer.strategy).__name__} would each train a separate "
            "model. Use trainer=ddp (trainer.strategy=ddp), or trainer.devices=1"
        )
    if cuda_graphs and (kind != "cuda" or count > 1):
        found = f"{count} devices" if kind == "cuda" else f"the device {kind}"
        yield (
            f"trainer.cuda_graphs=true with {found}: a step can only be recorded on one CUDA device. "
            "Use trainer=gpu, or leave trainer.cuda_graphs=false"
        )
