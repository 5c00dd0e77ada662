"""python -m vae_lab.fit_prior RUN: fit a prior to the latents of a run, for later sampling and evaluation."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from omegaconf import DictConfig

from vae_lab.runs.cli import run_command
from vae_lab.runs.command_line import run_as_first_argument
from vae_lab.runs.processes import by_torchrun
from vae_lab.runs.resume import exclusive_lock, run_dir_of
from vae_lab.runs.sweep import require_single_run
from vae_lab.utils.errors import UsageError
from vae_lab.utils.files import write_atomically
from vae_lab.utils.signals import StopSignals

if TYPE_CHECKING:
    import torch

    from vae_lab.second_stage.prior_fit import PriorFit
    from vae_lab.utils.callables import Track

T = TypeVar("T")
COLUMNS, MAX_CLASSES = 8, 20  # of the image of samples


def main() -> None:
    run_as_first_argument()
    run_command(fit_prior, config_name="fit_prior")


def fit_prior(config: DictConfig) -> None:
    require_single_run("a run has one fitted prior, so there is no sweep")
    if config.second_stage is None:
        raise UsageError("second_stage=null: nothing to fit\nchoose gaussian, mixture, flow or autoregressive_codes")
    from vae_lab.config.validation import check_targets
    from vae_lab.runs.stored_config import load_config, move_data

    run = run_dir_of(config.run)
    run_config = load_config(run, config.trusted)
    move_data(run_config, config.data)
    check_targets(run_config)
    check_targets(config)
    if (run / "prior").exists() and not config.overwrite:
        raise UsageError(f"{run / 'prior'}: a fitted prior already exists\nto replace it, set overwrite=true")
    with StopSignals() as stop_signals, exclusive_lock(run):
        device = prepare_device(config.device, run_config)
        stop_signals.defer_to_safe_points()
        fit_to_run(run, run_config, config.second_stage, device, stop_signals.raise_if_requested, config.seed)


def prepare_device(name: str, run_config: DictConfig) -> torch.device:
    """The device, with the thread and memory settings of the run's trainer. UsageError: no such device."""
    import torch

    from vae_lab.utils import cpu

    try:
        own = f"cuda:{os.environ['LOCAL_RANK']}" if by_torchrun() else "cuda"
        device = torch.device((own if torch.cuda.is_available() else "cpu") if name == "auto" else name)
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
    """Fit the prior of a config node to the best weights of a run of a checked config; write RUN/prior/ and an image.

    pause: called after each piece of work; an exception that it raises ends the fit and leaves the run unchanged.
    seed: default the run's. UsageError: no best weights, or from `PriorFit`.
    """
    from vae_lab.runs.checkpoint_io import BEST, load_checkpoint
    from vae_lab.runs.provenance import git_state, versions
    from vae_lab.second_stage.prior_fit import PriorFit
    from vae_lab.second_stage.storage import FittedTo, write_fitted_prior

    saved = load_checkpoint(run / "checkpoints" / BEST, needed=("state_dict", "image", "global_step"))
    with progress_bar(pause) as track:
        fit = PriorFit(saved, run_config, node, device, run_config.seed if seed is None else seed, track)
        results = fit.run()
    fitted_to = FittedTo.of(BEST, saved)
    picture, name = render_samples(fit, fitted_to.step), fit.stage.name
    pause()
    scores = {"name": name, "fitted_to": fitted_to._asdict(), **results, "versions": versions(), "git": git_state()}
    write_fitted_prior(run, node, fit.prior, fitted_to, scores)
    write_atomically(run / "images" / f"prior_samples={name}.png", picture)
    show(run, name, results)


@contextmanager
def progress_bar(pause: Callable[[], None]) -> Iterator[Track]:
    """A progress bar on a terminal, by a function that also calls `pause` after each item."""
    from rich.console import Console
    from rich.progress import Progress

    from vae_lab.callbacks.progress import COLUMNS

    console = Console(stderr=True)
    bar = Progress(*COLUMNS, console=console, transient=True, refresh_per_second=2, disable=not console.is_terminal)
    task = bar.add_task("", shown="")

    def track(items: Iterable[T], what: str, total: int) -> Iterator[T]:
        bar.reset(task, description=what, total=total)
        for item in items:
            yield item
            bar.advance(task)
            pause()

    with bar:
        yield track


def render_samples(fit: PriorFit, step: int) -> bytes:
    """Samples of the trained and of the fitted prior as a PNG.

    For a conditional model, those of the fitted prior alone: the same latents decoded with the label of each class.
    """
    import torch

    from vae_lab.figures.canvas import figure_png, printable
    from vae_lab.figures.grids import rows_of_samples

    title = f"Samples of the prior '{fit.stage.name}', fitted to the latents of step {step:,}"
    if fit.model.conditional:
        classes = [printable(name) for name in fit.data.class_names[:MAX_CLASSES]]
        mosaic = rows_of_samples(fit.samples(fit.prior, COLUMNS, len(classes)), classes, title=title, ylabel="class")
    else:
        images, names = fit.samples(fit.prior, COLUMNS**2 // 2), [fit.stage.name] * (COLUMNS // 2)
        with suppress(NotImplementedError):  # a trained prior that cannot be sampled
            images = torch.cat([fit.samples(fit.model.prior, COLUMNS**2 // 2), images])
            names = ["trained"] * (COLUMNS // 2) + names
        mosaic = rows_of_samples(images.unflatten(0, (-1, COLUMNS)), names, title=title, ylabel="prior")
    return figure_png(mosaic.figure())


def show(run: Path, name: str, results: dict[str, Any]) -> None:
    """Print the metrics under the trained and the fitted prior, in nats per image."""
    from rich.console import Console
    from rich.table import Column, Table

    def number(value: float | None) -> str:
        return "no bound" if value is None else f"{value:.2f}"

    table = Table(
        Column("nats per image", style="bold"), Column("trained", justify="right"), Column(name, justify="right")
    )
    for metric, value in results["metrics"]["trained"].items():
        images = results["protocol"].get(metric, {}).get("images")
        label = metric if images is None else f"{metric}, first {images:,} images"
        table.add_row(label, number(value), number(results["metrics"]["fitted"][metric]))
    for which, words in (("fitted", "log p(z), latents of the fit"), ("held_out", "log p(z), held-out latents")):
        table.add_row(words, "", number(results["log_pz"][which]))
    console = Console()
    console.print(f"{run}: fitted the prior '{name}'", highlight=False, soft_wrap=True)
    console.print(table)


if __name__ == "__main__":
    main()
