"""python -m vae_lab.train: train and test one experiment.

Heavy imports come after the composition of the config, so that `--help` and a misspelt key respond at once.
"""

from __future__ import annotations

import logging
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from vae_lab.runs.cli import run_command, run_in_process
from vae_lab.runs.processes import device_processes, is_first_process
from vae_lab.runs.resume import AUTO, exclusive_lock, resume_checkpoint
from vae_lab.runs.stored_config import CHANGED, is_run_override, resumed_config, resumed_job_config
from vae_lab.runs.sweep import completed_metrics, is_job_of_resumed_sweep, remove_partial_results
from vae_lab.utils.errors import RunFailed, UsageError, find_cause
from vae_lab.utils.signals import StopSignals

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from vae_lab.data.datamodule import ImageDataModule
    from vae_lab.inference import Lab
    from vae_lab.training.lightning_module import VAEModule

log = logging.getLogger("vae_lab")


def main() -> None:
    run_command(train, config_name="train")


def fit(*request: str | DictConfig) -> Lab:
    """Run an experiment and return the trained model; see `vae_lab.fit`."""

    def task(config: DictConfig) -> Path:
        train(config)
        return Path(HydraConfig.get().runtime.output_dir)

    folder = run_in_process(task, "train", request)
    from vae_lab.inference import load

    name = "best" if (folder / "checkpoints" / "best.ckpt").exists() else "last"
    return load(folder, name, trusted=True)  # its config is the caller's


def train(config: DictConfig) -> float | None:
    """Train and test one experiment; returns the value of `optimized_metric`, which a sweep optimises."""
    folder, overrides = Path(HydraConfig.get().runtime.output_dir), HydraConfig.get().overrides
    if config.resume == AUTO:  # the config that the run stored is the same
        config.resume = str(folder) if resume_checkpoint(folder).is_file() else None
    elif config.resume is not None:
        config = resumed_config(config, overrides.task)
    elif is_job_of_resumed_sweep():
        if (metrics := completed_metrics(folder)) is not None:
            return metrics.get(config.optimized_metric)
        if resume_checkpoint(folder).is_file():
            config = resumed_job_config(config, folder)
    with StopSignals() as stop_signals, exclusive_lock(folder):
        try:
            if is_job_of_resumed_sweep():
                remove_partial_results(folder)
            return _train(config, folder, stop_signals)
        except Exception as error:
            from vae_lab.callbacks.run_summary import memory_failure

            if config.resume is None and HydraConfig.get().mode is RunMode.RUN and is_first_process():
                remove_refused(folder, any(word.startswith("hydra.run.dir=") for word in overrides.hydra))
            if (failure := memory_failure(error, config.data)) and not find_cause(error, RunFailed):
                raise failure from error
            raise


def remove_refused(folder: Path, chosen: bool) -> None:
    """Remove what a refused request has written: its config, an empty log, and the folder, unless the user chose it."""
    log = folder / "train.log"
    has_log = log.is_file() and log.stat().st_size > 0
    if any((folder / name).exists() for name in ("summary.json", "checkpoints", "metrics.csv")) or (
        has_log and not chosen
    ):
        return
    shutil.rmtree(folder / ".hydra", ignore_errors=True)
    if not has_log:
        log.unlink(missing_ok=True)
    if not chosen:
        with suppress(OSError):  # it holds something else, or another process of the run has removed it
            folder.rmdir()


def _train(config: DictConfig, folder: Path, stop_signals: StopSignals) -> float | None:
    silence_libraries()
    from vae_lab.callbacks.checkpoint import keeps_best
    from vae_lab.callbacks.loggers import records_closed
    from vae_lab.callbacks.monitors import require_known_monitors
    from vae_lab.callbacks.run_summary import RunSummary
    from vae_lab.config.validation import check_targets
    from vae_lab.fit_prior import fit_to_run
    from vae_lab.runs.checkpoint_io import BEST, load_checkpoint
    from vae_lab.training.build import build, initialize_from
    from vae_lab.training.ddp import AllReduceStrategy
    from vae_lab.training.resume import REQUIRED_STATE, prepare_resume

    check_targets(config)
    data, module = build(config, lambda: stop_signals.requested is not None)
    if config.init_from is not None and config.resume is None:
        initialize_from(module, config.init_from)
    resumed = None if config.resume is None else resume_checkpoint(config.resume)
    checkpoint = None if resumed is None else load_checkpoint(resumed, needed=REQUIRED_STATE)
    step = None if checkpoint is None else checkpoint["global_step"]
    trainer = assemble_trainer(config, folder, stop_signals, module, step)
    require_known_monitors(trainer, module.model, data, config.optimized_metric)
    caveats = collect_warnings(config, trainer, data, module)
    fits_prior = has_second_stage(config, trainer, module, caveats)
    module.caveats["request"] = caveats
    stop_signals.defer_to_safe_points()
    stop_signals.raise_if_requested()
    if checkpoint is not None:
        words = HydraConfig.get().overrides.task
        changes, accepts = any(map(is_run_override, words)), f"++{CHANGED}=accept" in words
        prepare_resume(config.resume, checkpoint, folder, trainer, data, changes, accepts)
        log.info("resumed at step %d: %s", step, " ".join(words))
    num_processes = trainer.num_devices if isinstance(trainer.strategy, AllReduceStrategy) else 0
    summary = RunSummary(folder, config, trainer, module)
    with device_processes(num_processes, folder), summary, records_closed(trainer.loggers):
        trainer.fit(module, data, ckpt_path=resumed)
        stop_signals.raise_if_requested()
        if data.size("test"):
            best = folder / "checkpoints" / BEST
            tested = best if keeps_best(trainer) and best.exists() else None  # else the last weights
            trainer.test(module, data, ckpt_path=tested, verbose=False)
        stop_signals.raise_if_requested()
        if fits_prior and trainer.is_global_zero:
            device = trainer.strategy.root_device
            fit_to_run(folder, config, config.second_stage, device, stop_signals.raise_if_requested)
    values = module.metrics | (module.best_metrics if keeps_best(trainer) else {})  # the test was of the best weights
    name: str = config.optimized_metric
    return values.get(name if data.size("val") else name.replace("val/", "test/"))


def assemble_trainer(
    config: DictConfig, folder: Path, stop_signals: StopSignals, module: VAEModule, resumed_step: int | None = None
) -> Trainer:
    """The trainer of a config, with its callbacks (their `monitor: auto` by the model) and those that every run has.

    resumed_step: TensorBoard hides what the run logged after it.
    """
    from vae_lab import callbacks
    from vae_lab.callbacks.loggers import build_loggers
    from vae_lab.callbacks.monitors import chosen_monitor
    from vae_lab.training.build import build_node

    chosen = {
        name: build_node(node, **chosen_monitor(node, module.model, module.objective))
        for name, node in (config.callbacks or {}).items()
        if node is not None
    }
    loggers = build_loggers(config.logger or {}, folder, resumed_step)
    progress = callbacks.Progress(enabled=config.trainer.enable_progress_bar is not False)
    last = next((it for it in chosen.values() if isinstance(it, callbacks.LastCheckpoint)), None)
    every = [callbacks.Throughput(), callbacks.MetricsCSV(), callbacks.LoggerRecords(), progress, *chosen.values()]
    trainer: Trainer = build_node(
        config.trainer,
        default_root_dir=str(folder),
        callbacks=[*every, callbacks.StopOnSignal(stop_signals, last)],
        logger=loggers,
        hold_best=last is not None,
    )
    return trainer


def has_second_stage(config: DictConfig, trainer: Trainer, module: VAEModule, caveats: list[str]) -> bool:
    """Whether a prior is fitted after training; an optional one that does not fit is a caveat. UsageError: another."""
    # An experiment file may set an option of second_stage while the command line sets second_stage=null.
    chosen = config.second_stage is not None and "_target_" in config.second_stage
    if not chosen or config.trainer.fast_dev_run:  # which saves no weights
        return False
    try:
        require_second_stage(config, trainer, module)
    except UsageError as error:
        if config.second_stage.get("required", True):
            raise
        caveats.append(f"no second stage: {str(error).splitlines()[0]}")
        return False
    return True


def require_second_stage(config: DictConfig, trainer: Trainer, module: VAEModule) -> None:
    """Raise UsageError if the second stage does not fit the model, or if no best checkpoint is kept for it."""
    from vae_lab.callbacks.checkpoint import keeps_best
    from vae_lab.second_stage.stage import build_prior, require_single_layer
    from vae_lab.training.build import build_node

    if not keeps_best(trainer):
        raise UsageError(
            "second_stage: fitted to checkpoints/best.ckpt, which callbacks.best does not keep in this config\n"
            "use the default callbacks.best, or set second_stage=null"
        )
    build_prior(build_node(config.second_stage), require_single_layer(module.model), config.seed)


def collect_warnings(config: DictConfig, trainer: Trainer, data: ImageDataModule, module: VAEModule) -> list[str]:
    """Warnings about the results of this request. UsageError: the likelihood does not fit the images."""
    from vae_lab.callbacks import LastCheckpoint
    from vae_lab.training.preflight import check_model, coverage_warnings

    images = data.images
    found = [*images.warnings]
    if images.skipped:
        names = f"{', '.join(images.skipped[:10])}{', ...' if len(images.skipped) > 10 else ''}"
        found.append(f"{len(images.skipped)} pictures could not be read and were skipped: {names}")
    if not any(isinstance(callback, LastCheckpoint) for callback in trainer.checkpoint_callbacks):
        found.append("no checkpoint is saved that a run could resume from (callbacks.last is missing)")
    return [*found, *coverage_warnings(trainer, data, config), *check_model(module.model, module.objective, data)]


def silence_libraries() -> None:
    """Suppress Lightning's information messages and its warnings that do not apply here."""
    import logging
    import threading
    import warnings

    import lightning.pytorch  # noqa: F401  (sets the levels of its loggers as it is imported)

    print_exception = threading.excepthook
    # A failed write in TensorBoard's thread: the run raises and reports it as well.
    threading.excepthook = lambda args: None if isinstance(args.exc_value, OSError) else print_exception(args)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*isinstance.treespec, LeafSpec.*",
        ".*torch.jit.*",
        ".*in eval mode at the start of training.*",  # intended for the averaged weights
        ".*Total length of `list` across ranks is zero.*",  # a split may be empty
        ".*Checkpoint directory .* exists and is not empty.*",  # that of a resumed run
        ".*log_every_n_steps.*",
        ".*sync_dist=True.*",  # sums are reduced before they are logged
        ".*constructed with capturable=True.*",  # the first steps and short batches run without a CUDA graph
    ):
        warnings.filterwarnings("ignore", message=message)


if __name__ == "__main__":
    main()
