"""The typed root of the config: what may be written, of which type, with which default.

Hydra merges the YAML of `conf/` and the command line onto `Config`, so an unknown key or a string in the
place of a number is refused while the config is composed. The groups below the root stay open here:
`vae_lab.config.validation` checks each of them against the signature of its `_target_`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


@dataclass
class TrainerConfig:
    """Options of lightning.Trainer under their own names, then ours; None leaves Lightning's default."""

    _target_: str = "vae_lab.training.trainer.build_trainer"

    accelerator: str = "auto"
    strategy: str = "auto"
    devices: Any = "auto"  # a number, "auto", "0,1" or a list of indices
    num_nodes: int = 1
    precision: int | str = "32-true"

    max_epochs: int | None = None
    min_epochs: int | None = None
    max_steps: int = -1
    min_steps: int | None = None
    max_time: Any = None  # "DD:HH:MM:SS" or a dict of timedelta's arguments
    fast_dev_run: int | bool = False
    limit_train_batches: int | float | None = None
    limit_val_batches: int | float | None = None
    limit_test_batches: int | float | None = None
    overfit_batches: int | float = 0.0

    val_check_interval: int | float | None = None
    check_val_every_n_epoch: int | None = 1
    num_sanity_val_steps: int = 0
    log_every_n_steps: int | None = None
    enable_progress_bar: bool | None = None
    enable_model_summary: bool | None = None

    deterministic: bool | str | None = None  # "warn" warns where an operation is not deterministic
    benchmark: bool | None = None
    detect_anomaly: bool = False
    profiler: str | None = None

    steps_per_execution: int | str = "auto"  # optimiser steps in one call of the trainer: >= 1, or "auto"
    num_threads: int | None = None  # of torch on the CPU; default: physical cores, at most OMP_NUM_THREADS
    keep_freed_memory: bool = True  # on the CPU: reuse freed memory at once, stay at the peak
    channels_last: bool = True  # images in memory with their channels innermost, which convolutions prefer
    compile: bool = False  # torch.compile for the step
    cuda_graphs: bool = False  # record the step once on a GPU and replay it
    on_nonfinite: str = "stop"  # a loss or gradient that is not finite: stop, or skip the step
    matmul_precision: str | None = None  # of torch.set_float32_matmul_precision


@dataclass
class Config:
    """One experiment. Every run directory holds one as `.hydra/config.yaml`."""

    name: str | None = None  # of the folder under outputs/; default: the experiment, else <model>-<data>
    seed: int = 0
    optimized_metric: str = "val/elbo"
    resume: str | None = None  # a run directory (or a checkpoint in it): go on where it stopped; auto: find it
    init_from: str | None = None  # a run directory: start from its weights
    trusted: bool = False  # resume: build whatever the config of that run names

    data: Any = MISSING
    model: Any = MISSING
    objective: Any = MISSING
    optimizer: Any = MISSING
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: Any = None
    callbacks: Any = None
    second_stage: Any = None  # a prior fitted to the latents once training is over


@dataclass
class ReplayConfig:
    """What vae_lab.replay takes."""

    run: str = MISSING
    step: int | None = None
    trusted: bool = False


@dataclass
class FitPriorConfig:
    """What vae_lab.fit_prior takes."""

    run: str = MISSING
    second_stage: Any = MISSING
    seed: int | None = None
    device: str = "auto"
    overwrite: bool = False
    trusted: bool = False


def register() -> None:
    """Put the schemas where `defaults: [schema, ...]` of a primary config finds them."""
    ConfigStore.instance().store(name="schema", node=Config)
    ConfigStore.instance().store(name="replay_schema", node=ReplayConfig)
    ConfigStore.instance().store(name="fit_prior_schema", node=FitPriorConfig)


def conf_dir() -> str:
    """The absolute path of conf/: inside the package when installed from a wheel, else beside it."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return str(inside if inside.is_dir() else package.parent / "conf")
