"""python -m vae_lab.train: one experiment, from its config to its run directory.

Nothing heavy is imported before the config is composed, so that `--help` and a misspelt key answer at once.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from vae_lab.runs.cli import run_command
from vae_lab.runs.lock import exclusive_lock
from vae_lab.runs.resume import AUTO, resume_checkpoint
from vae_lab.runs.stored_config import changes_run, resumed_config
from vae_lab.utils.errors import UsageError
from vae_lab.utils.signals import StopSignals

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from vae_lab.data.datamodule import ImageDataModule
    from vae_lab.training.lightning_module import VAEModule


def main() -> None:
    """The command."""
    run_command(train, config_name="train")


def train(config: DictConfig) -> float | None:
    """Train and test one experiment; the value of `optimized_metric`, which a sweep optimises."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    if config.resume == AUTO:  # the config is the same, and the user's own
        config.resume = str(folder) if resume_checkpoint(folder).is_file() else None
    elif config.resume is not None:
        config = resumed_config(config.resume, HydraConfig.get().overrides.task, config.trusted)
    with StopSignals() as stop_signals, exclusive_lock(folder):
        try:
            return _train(config, folder, stop_signals)
        except Exception:
            remove_empty_run_dir(folder)
            raise


def remove_empty_run_dir(folder: Path) -> None:
    """Remove the folder of a refused request: nothing but the config is in it."""
    left = {path.name: path for path in folder.glob("*")}  # none where another process of the run was first
    log = left.get("train.log")
    if left.keys() <= {".hydra", "train.log"} and not (log and log.stat().st_size):
        shutil.rmtree(folder, ignore_errors=True)


def _train(config: DictConfig, folder: Path, stop_signals: StopSignals) -> float | None:
    silence_libraries()
    from vae_lab.callbacks.monitors import require_known_monitors
    from vae_lab.callbacks.rollback import roll_back_run
    from vae_lab.callbacks.run_summary import RunSummary
    from vae_lab.config.validation import check_targets
    from vae_lab.training.build import build, initialize_from

    check_targets(config)
    data, experiment = build(config)
    if config.init_from is not None and config.resume is None:
        initialize_from(experiment, config.init_from)
    trainer = assemble_trainer(config, folder, stop_signals)
    experiment.stop_requested = lambda: stop_signals.requested is not None
    require_known_monitors(trainer, experiment.model, data, config.optimized_metric)
    # An experiment file may set an option of a stage that the command line then leaves out.
    chosen = config.second_stage is not None and "_target_" in config.second_stage
    fits_prior = chosen and not config.trainer.fast_dev_run  # which keeps no weights
    if fits_prior:
        require_second_stage(config, trainer, experiment)
    extra_warnings = collect_warnings(trainer, data, experiment)
    stop_signals.defer_to_safe_points()
    stop_signals.raise_if_requested()
    if config.resume is not None:
        changed = any(map(changes_run, HydraConfig.get().overrides.task))
        roll_back_run(config.resume, folder, trainer, data, changed)
    with RunSummary(folder, config, trainer, experiment) as summary:
        summary.extra_warnings += extra_warnings
        trainer.fit(experiment, data, ckpt_path=resumed_checkpoint(config))
        stop_signals.raise_if_requested()
        test(trainer, experiment, data)
        if fits_prior and trainer.is_global_zero:
            fit_second_stage(config, folder, trainer, stop_signals)
    return optimized_value(config, experiment, data)


def assemble_trainer(config: DictConfig, folder: Path, stop_signals: StopSignals) -> Trainer:
    """The trainer of a config, with the callbacks that every run has around the ones it chose."""
    from vae_lab import callbacks
    from vae_lab.training.build import build_node

    chosen = {name: build_node(node) for name, node in (config.callbacks or {}).items() if node is not None}
    loggers = [build_node(node, save_dir=str(folder)) for node in (config.logger or {}).values() if node is not None]
    for callback in chosen.values():
        if isinstance(callback, callbacks.ImageLogger):
            callback.stop_requested = lambda: stop_signals.requested is not None
    throughput = callbacks.Throughput()
    always = [
        throughput,
        callbacks.MetricsCSV(),
        callbacks.EventFileLengths(),
        callbacks.Progress(throughput, enabled=config.trainer.enable_progress_bar is not False),
    ]
    every = [*always, *chosen.values(), callbacks.StopOnSignal(stop_signals)]
    trainer: Trainer = build_node(config.trainer, default_root_dir=str(folder), callbacks=every, logger=loggers)
    return trainer


def resumed_checkpoint(config: DictConfig) -> str | None:
    """The checkpoint that training goes on from."""
    return None if config.resume is None else str(resume_checkpoint(config.resume))


def test(trainer: Trainer, experiment: VAEModule, data: ImageDataModule) -> None:
    """Test once, on the best weights (on the last, where none are kept)."""
    from vae_lab.callbacks.checkpoint import best_checkpoint

    best = best_checkpoint(trainer)
    if data.size("test"):
        trainer.test(experiment, data, ckpt_path=None if best is None else str(best), verbose=False)


def require_second_stage(config: DictConfig, trainer: Trainer, experiment: VAEModule) -> None:
    """UsageError where the second stage does not fit the model, or where no best weights will be there for it."""
    from vae_lab.callbacks import BestCheckpoint
    from vae_lab.second_stage.stage import build_prior, require_single_layer
    from vae_lab.training.build import build_node

    if not any(isinstance(it, BestCheckpoint) and it.save_top_k != 0 for it in trainer.checkpoint_callbacks):
        raise UsageError(
            "second_stage is fitted to checkpoints/best.ckpt, which callbacks.best does not keep here\n"
            "leave it as it is by default, or say second_stage=none"
        )
    build_prior(build_node(config.second_stage), require_single_layer(experiment.model), config.seed)


def fit_second_stage(config: DictConfig, folder: Path, trainer: Trainer, stop_signals: StopSignals) -> None:
    """Fit the prior that the config asks for to the best weights; one of before a resume makes way."""
    from vae_lab.fit_prior import fit_to_run

    fit_to_run(folder, config, config.second_stage, trainer.strategy.root_device, stop_signals.raise_if_requested)


def optimized_value(config: DictConfig, experiment: VAEModule, data: ImageDataModule) -> float | None:
    """The metric a sweep optimises; the test's where nothing was validated."""
    name = config.optimized_metric
    if data.size("val") == 0:
        name = name.replace("val/", "test/")
    return experiment.metrics.get(name)


def collect_warnings(trainer: Trainer, data: ImageDataModule, experiment: VAEModule) -> list[str]:
    """What a reader of the numbers has to know. UsageError: the images and the likelihood do not go together."""
    from vae_lab.callbacks import LastCheckpoint
    from vae_lab.training.preflight import check_model

    found = []
    images = data.load()
    if images.skipped:
        found.append(f"{len(images.skipped)} pictures could not be read and were left out: {', '.join(images.skipped)}")
    if not any(isinstance(callback, LastCheckpoint) for callback in trainer.checkpoint_callbacks):
        found.append("nothing is saved that a run could go on from (callbacks.last is not there)")
    if not data.size("val"):
        found.append("no validation images: the last weights count as the best")
    return found + check_model(experiment.model, experiment.objective, data)


def silence_libraries() -> None:
    """Keep what Lightning says of itself out of the way of what it found."""
    import logging
    import threading
    import warnings

    import lightning.pytorch  # noqa: F401  (sets the levels of its loggers as it is imported)

    threading.excepthook = without_disk_errors(threading.excepthook)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*isinstance.treespec, LeafSpec.*",
        ".*torch.jit.*",
        ".*in eval mode at the start of training.*",  # averaged weights are, on purpose
        ".*Total length of `list` across ranks is zero.*",  # a split may be empty
        ".*Checkpoint directory .* exists and is not empty.*",  # a resumed run's
        ".*log_every_n_steps.*",
        ".*sync_dist=True.*",  # sums are reduced before they are logged
        ".*constructed with capturable=True.*",  # the first steps and short batches run as they are
    ):
        warnings.filterwarnings("ignore", message=message)


def without_disk_errors(say: Callable[[Any], object]) -> Callable[[Any], object]:
    """TensorBoard's thread hands a refused write on to the run, which says it in a line: no traceback before."""
    return lambda told: None if isinstance(told.exc_value, OSError) else say(told)


if __name__ == "__main__":
    main()
