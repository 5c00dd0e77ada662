"""The typed root of the config: keys, types and defaults.

Hydra merges the YAML of `conf/` and the command line onto `Config`, so an unknown key or a string where a number is
expected is an error of the composition. The groups below the root are untyped here: `vae_lab.config.validation` checks
each of them against the signature of its `_target_`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

LOWER_IS_BETTER = ("/loss", "/bits_per_dim", "/mse", "/chroma", "/reconstruction_nll")  # endings of metric names


@dataclass
class TrainerConfig:
    """Options of lightning.Trainer under the same names, then those of vae_lab; None keeps Lightning's default."""

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

    deterministic: bool | str | None = None  # "warn": warn about a nondeterministic operation
    benchmark: bool | None = None
    detect_anomaly: bool = False
    profiler: str | None = None

    steps_per_execution: int | str = "auto"  # optimiser steps in one call of the trainer: >= 1, or "auto"
    num_threads: int | None = None  # of torch on the CPU; default: physical cores, at most OMP_NUM_THREADS
    keep_freed_memory: bool = True  # on the CPU: reuse freed memory; usage stays at its peak
    channels_last: bool = True  # memory format of images; convolutions run faster
    compile: bool | str = False  # true | reduce-overhead: torch.compile for the step
    cuda_graphs: bool = False  # record the step once on a GPU and replay it
    on_nonfinite: str = "stop"  # non-finite loss or gradient: stop, or skip the step
    matmul_precision: str | None = None  # of torch.set_float32_matmul_precision


@dataclass
class SweepConfig:
    resume: str | None = None  # a sweep directory: run the jobs that are missing, failed or interrupted


@dataclass
class Config:
    """One experiment; stored in each run directory as `.hydra/config.yaml`."""

    name: str | None = None  # of the directory under outputs/; default: the experiment, else <model>-<data>
    seed: int = 0
    optimized_metric: str = "val/elbo"
    resume: str | None = None  # a run directory, a checkpoint in it, or auto: the newest unfinished run
    init_from: str | None = None  # a run directory: start a new run from its weights
    trusted: bool = False  # with resume: skip the allow-list check of the stored config

    data: Any = MISSING
    model: Any = MISSING
    objective: Any = MISSING
    optimizer: Any = MISSING
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: Any = None
    callbacks: Any = None
    second_stage: Any = None  # a prior fitted to the latents after training
    sweep: SweepConfig = field(default_factory=SweepConfig)


@dataclass
class MovedData:
    """Where the images of the run are now; null: where they were."""

    root: str | None = None
    folder: str | None = None
    file: str | None = None


@dataclass
class FitPriorConfig:
    """Config of vae_lab.fit_prior."""

    run: str = MISSING
    second_stage: Any = None
    data: MovedData = field(default_factory=MovedData)
    seed: int | None = None
    device: str = "auto"
    overwrite: bool = False
    trusted: bool = False


@dataclass
class AnnealingConfig:
    """Annealed importance sampling by HMC, and both bounds on simulated images."""

    num_steps: int | None = None  # null: none
    num_chains: int = 16
    num_leapfrog: int = 10
    num_images: int = 100
    simulated: bool = True  # also the gap of bidirectional Monte Carlo


@dataclass
class LikelihoodConfig:
    num_samples: int = 100  # K of the importance-weighted bound
    num_images: int | None = None  # for that bound; null: the whole split
    ais: AnnealingConfig = field(default_factory=AnnealingConfig)


@dataclass
class RepresentationConfig:
    num_train: int = 5000  # images the classifiers are fitted to
    num_factored: int = 10000  # images of the disentanglement scores


@dataclass
class QualityConfig:
    features: str = "auto"  # auto | classifier | flips | random | inception
    num_images: int = 2000  # samples, and images beside them


@dataclass
class EvaluationConfig:
    """What is measured; a part that is null is left out."""

    split: str = "test"
    likelihood: LikelihoodConfig | None = field(default_factory=LikelihoodConfig)
    representation: RepresentationConfig | None = field(default_factory=RepresentationConfig)
    quality: QualityConfig | None = field(default_factory=QualityConfig)
    baseline: bool = True
    cost: bool = True
    against: str | None = None  # a data config whose images the score should tell apart


@dataclass
class EvaluateConfig:
    """Config of vae_lab.evaluate."""

    run: str = MISSING
    checkpoint: str = "best"
    prior: str | None = None  # fitted | trained; null: the fitted one if there is one
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    data: MovedData = field(default_factory=MovedData)
    seed: int = 0
    device: str = "auto"
    trusted: bool = False


@dataclass
class ExportConfig:
    """Config of vae_lab.export."""

    run: str = MISSING
    format: str = "safetensors"
    out: str | None = None
    checkpoint: str = "best"
    prior: str | None = None
    push: str | None = None
    trusted: bool = False


@dataclass
class ReportConfig:
    """Config of vae_lab.report."""

    runs: list[str] = field(default_factory=list)
    sweep: str | None = None
    metric: str | None = None
    out: str | None = None
    checkpoint: str = "best"
    prior: str | None = None
    data: MovedData = field(default_factory=MovedData)
    device: str = "auto"
    trusted: bool = False


@dataclass
class ExploreConfig:
    """Config of vae_lab.explore."""

    run: str = MISSING
    host: str = "127.0.0.1"
    port: int | None = None
    open: bool = True
    images: int = 2000
    checkpoint: str = "best"
    prior: str | None = None
    data: MovedData = field(default_factory=MovedData)
    device: str = "auto"
    trusted: bool = False


@dataclass
class SearchOptions:
    """What a search varies, and where its study lies."""

    space: list[str] = MISSING  # overrides with choice(), range(), interval()
    num_trials: int = 30
    dir: str = MISSING
    storage: str | None = None
    study: str | None = None
    grace: int = 60  # seconds
    overrides: list[str] = field(default_factory=list)
    sampler: Any = MISSING
    pruner: Any = None


@dataclass
class SearchConfig:
    """Config of vae_lab.search."""

    search: SearchOptions = field(default_factory=SearchOptions)


# For `defaults: [schema, ...]` of a primary config.
ConfigStore.instance().store(name="schema", node=Config)
ConfigStore.instance().store(name="fit_prior_schema", node=FitPriorConfig)
ConfigStore.instance().store(name="evaluate_schema", node=EvaluateConfig)
ConfigStore.instance().store(name="export_schema", node=ExportConfig)
ConfigStore.instance().store(name="report_schema", node=ReportConfig)
ConfigStore.instance().store(name="explore_schema", node=ExploreConfig)
ConfigStore.instance().store(name="search_schema", node=SearchConfig)


def conf_dir() -> str:
    """The absolute path of conf/: inside the package if installed from a wheel, else beside it."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return str(inside if inside.is_dir() else package.parent / "conf")
