"""python -m vae_lab.fit_prior RUN: fit a prior to the latents of a run, for later sampling and evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from vae_lab.runs.cli import run_as_first_argument, run_command
from vae_lab.runs.lock import exclusive_lock
from vae_lab.utils.errors import UsageError
from vae_lab.utils.files import write_atomically
from vae_lab.utils.signals import StopSignals

if TYPE_CHECKING:
    import torch

    from vae_lab.second_stage.prior_fit import PriorFit, PriorFitResults

COLUMNS, MAX_CLASSES = 8, 20  # of the image of samples


def main() -> None:
    run_as_first_argument()
    run_command(fit_prior, config_name="fit_prior")


def fit_prior(config: DictConfig) -> None:
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        raise UsageError("a run has one fitted prior, so there is no sweep\nremove --multirun")
    if config.second_stage is None:
        raise UsageError("second_stage=null: nothing to fit\nchoose gaussian, mixture, flow or autoregressive_codes")
    from vae_lab.config.validation import check_targets
    from vae_lab.runs.stored_config import load_config
    from vae_lab.second_stage.storage import require_no_fitted_prior

    run = Path(config.run)
    run_config = load_config(run, config.trusted)
    check_targets(run_config)
    check_targets(config)
    if not config.overwrite:
        require_no_fitted_prior(run)
    with StopSignals() as stop_signals, exclusive_lock(run):
        device = prepare_device(config.device, run_config)
        stop_signals.defer_to_safe_points()
        fit_to_run(run, run_config, config.second_stage, device, stop_signals.raise_if_requested, config.seed)


def prepare_device(name: str, run_config: DictConfig) -> torch.device:
    """The device, with the thread and memory settings of the run's trainer. UsageError: no such device."""
    import torch

    from vae_lab.utils import cpu

    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise UsageError(f"device={name}: no such device\nexpected auto, cpu, cuda or cuda:1") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device={name}: there are {torch.cuda.device_count()} CUDA devices\nuse device=auto")
    torch.set_num_threads(run_config.trainer.num_threads or cpu.num_threads())
    if device.type == "cpu" and run_config.trainer.keep_freed_memory:
        cpu.keep_freed_memory()
    return device


def fit_to_run(
    run: Path,
    run_config: DictConfig,
    node: DictConfig,
    device: torch.device,
    pause: Callable[[], None],
    seed: int | None = None,
) -> None:
    """Fit the prior of a config node to a run's best weights; write RUN/prior/ and an image, print a table.

    experiment: the run's checked config. pause: called after each piece of work; an exception that it raises ends the
    fit and leaves the run unchanged. seed: default the run's. UsageError: no best weights, or from `prepare_prior_fit`.
    """
    from vae_lab.runs.checkpoint_io import BEST, load_checkpoint
    from vae_lab.second_stage.prior_fit import elbo_settings, prepare_prior_fit
    from vae_lab.second_stage.storage import ModelFingerprint, replace_prior_folder
    from vae_lab.second_stage.storage import write_fitted_prior as write_prior
    from vae_lab.training.build import model_weights
    from vae_lab.utils.files import write_json

    saved = load_checkpoint(run / "checkpoints" / BEST, needed=("state_dict", "image", "global_step"))
    with ProgressBar(pause) as bar:
        fit = prepare_prior_fit(saved, run_config, node, device, run_config.seed if seed is None else seed, bar)
        results = fit.run(elbo_settings(run_config))
    fitted_to = ModelFingerprint.of(BEST, saved["global_step"], model_weights(saved))
    picture = render_samples(fit, fitted_to.step)
    pause()
    with replace_prior_folder(run) as folder:
        write_prior(folder, node, fit.prior, fitted_to)
        write_json(folder / "scores.json", score_table(fit.stage.name, fitted_to._asdict(), results))
    write_atomically(run / "images" / f"prior_samples={fit.stage.name}.png", picture)
    show(run, fit.stage.name, results)


# --- results ----------------------------------------------------------------------------------------------


def score_table(name: str, fitted_to: dict[str, Any], results: PriorFitResults) -> dict[str, Any]:
    """The content of RUN/prior/scores.json."""
    from vae_lab.runs.provenance import git_state, versions

    return {"name": name, "fitted_to": fitted_to, **results._asdict(), "versions": versions(), "git": git_state()}


def render_samples(fit: PriorFit, step: int) -> bytes:
    """Prior samples as a PNG; for a conditional model, the same latents decoded with the label of each class."""
    from vae_lab.figures import tiles
    from vae_lab.figures.canvas import render
    from vae_lab.figures.encoding import encode_png

    title = f"Samples of the prior '{fit.stage.name}', fitted to the latents of step {step:,}"
    if fit.model.conditional:
        classes = fit.data.class_names[:MAX_CLASSES]
        figure = tiles.sample_rows(fit.samples(COLUMNS, len(classes)), classes, ylabel="class", title=title)
    else:
        figure = tiles.samples(fit.samples(COLUMNS**2), title=title)
    return encode_png(render(figure), step)


def show(run: Path, name: str, results: PriorFitResults) -> None:
    """Print the metrics under the trained and the fitted prior, in nats per image."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column("nats per image", style="bold")
    for column in ("trained", name):
        table.add_column(column, justify="right")
    for metric, value in results.metrics["trained"].items():
        images = results.protocol.get(metric, {}).get("images")
        label = metric if images is None else f"{metric}, first {images:,} images"
        table.add_row(label, _number(value), _number(results.metrics["fitted"][metric]))
    for which, words in (("fitted", "log p(z), latents of the fit"), ("held_out", "log p(z), held-out latents")):
        table.add_row(words, "", _number(results.log_pz[which]))
    console = Console()
    console.print(f"{run}: fitted the prior '{name}'", highlight=False, soft_wrap=True)
    console.print(table)


def _number(value: float | None) -> str:
    return "no bound" if value is None else f"{value:.2f}"


class ProgressBar:
    """A progress bar on a terminal; each update calls `pause` first."""

    def __init__(self, pause: Callable[[], None], refresh_seconds: float = 0.5) -> None:
        from rich.console import Console
        from rich.progress import Progress

        from vae_lab.callbacks.progress import COLUMNS

        console = Console(stderr=True)
        self.pause, self.refresh_seconds = pause, refresh_seconds
        # No auto refresh: its thread would take time from the fit.
        self._bar = Progress(*COLUMNS, console=console, transient=True, auto_refresh=False)
        self._bar.disable = not console.is_terminal
        self._task, self._what, self._moved_at = self._bar.add_task("", shown=""), "", 0.0

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, what: str, done: int, total: int, shown: str = "") -> None:
        """Update the bar, at most every `refresh_seconds`."""
        self.pause()
        if what != self._what:
            self._bar.reset(self._task, description=what)
        elif done < total and time.monotonic() - self._moved_at < self.refresh_seconds:
            return
        self._what, self._moved_at = what, time.monotonic()
        self._bar.update(self._task, completed=done, total=total, shown=shown)
        self._bar.refresh()


if __name__ == "__main__":
    main()
