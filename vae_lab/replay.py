"""python -m vae_lab.replay RUN: make a step again that was not finite, and say where that began."""

from __future__ import annotations

import math
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from vae_lab.runs.cli import run_command, run_first
from vae_lab.utils.errors import UsageError

if TYPE_CHECKING:
    import torch

    from vae_lab.training.nonfinite_report import Findings
    from vae_lab.training.step import StepRecord, TrainingStep
    from vae_lab.training.step_dump import BadStep


def main() -> None:
    """The command; its first word may be the run itself."""
    run_first()
    run_command(replay, config_name="replay")


def replay(config: DictConfig) -> None:
    """Make the step again and print what was found. RunFailed where other numbers come of it."""
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        raise UsageError("one step is made again at a time\nleave out --multirun")
    from vae_lab.config.validation import check_targets
    from vae_lab.runs.stored_config import load_config
    from vae_lab.training.nonfinite_report import traced
    from vae_lab.utils.errors import RunFailed

    run = Path(config.run)
    experiment = load_config(run, config.trusted)
    check_targets(experiment)
    path, bad = kept_step(run, config.step)
    step, precision = rebuilt(experiment, bad)
    with precision, traced(step.model) as findings:
        labels = None if bad.labels is None else bad.labels.to(step.device)
        record = step(bad.images.to(step.device), bad.step, measure=True, labels=labels)
    found = dict(zip(bad.terms, record.terms.tolist(), strict=True))
    same = all(_same(found[name], value) for name, value in bad.terms.items())
    show(path, bad, record, found, findings, same)
    if not same:
        raise RunFailed(f"the step came out otherwise: {found}, and was {bad.terms}\n{_why_otherwise(bad, step)}")


def kept_step(run: Path, number: int | None) -> tuple[Path, BadStep]:
    """A step and its file. UsageError: none was kept, or none of this number."""
    from vae_lab.training.step_dump import PATTERN, read

    kept = sorted((run / "checkpoints").glob(PATTERN))
    if not kept:
        raise UsageError(f"run={run}: no step of it was kept\nexpected checkpoints/{PATTERN}, as a run leaves them "
                         "whose loss or gradient was not finite")  # fmt: skip
    chosen = [path for path in kept if number is None or f"step={number:08d}" in path.name]
    if not chosen:
        raise UsageError(f"step={number}: not among those kept\nthere are {', '.join(path.name for path in kept)}")
    steps = ((path, read(path)) for path in chosen)
    first = next(steps)
    # Of several processes, the one it was.
    return next((step for step in chain([first], steps) if not _is_finite(step[1])), first)


def _is_finite(bad: BadStep) -> bool:
    return all(map(math.isfinite, bad.terms.values()))


def rebuilt(config: DictConfig, bad: BadStep) -> tuple[TrainingStep, Any]:
    """The step as it stood before, and the precision that it ran in."""
    import torch

    from vae_lab.core import ImageSpec
    from vae_lab.training.build import build_experiment, instantiated
    from vae_lab.training.step import Execution, TrainingStep

    config.trainer.update(bad.trainer)
    torch.set_num_threads(bad.trainer["num_threads"])
    device = torch.device(bad.device if bad.device == "cpu" or torch.cuda.is_available() else "cpu")
    data, settings = instantiated(config.data), instantiated(config.optimizer)
    experiment = build_experiment(config, data, ImageSpec(**bad.image), bad.num_images, settings).to(device)
    experiment.model.load_state_dict(bad.weights)
    experiment.objective.load_state_dict(bad.objective)
    if experiment.average is not None:
        experiment.average.model.load_state_dict(bad.average)
    optimizer = experiment.configure_optimizers()
    optimizer.load_state_dict(bad.optimizer)
    step = TrainingStep(
        model=experiment.model.train(),
        objective=experiment.objective,
        preprocess=experiment.preprocess,
        optimizer=optimizer,
        settings=settings,
        batch_size=experiment.batch_size,
        total_steps=bad.total_steps,
        seed=experiment.seed,
        rank=bad.rank,
        average=experiment.average,
        execution=Execution(compile=config.trainer.compile),
    )
    return step, _precision(config, device)


def _precision(config: DictConfig, device: torch.device) -> Any:
    import torch

    mixed = str(config.trainer.precision).startswith("bf16")
    return torch.autocast(device.type, torch.bfloat16) if mixed else nullcontext()


def show(path: Path, bad: BadStep, record: StepRecord, found: dict[str, float], findings: Findings, same: bool) -> None:
    """Print what was found, as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"optimiser step {bad.step + 1} of {path.parents[1]}", show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in found.items():
        table.add_row(name, f"{value:.6g}")
    table.add_row("gradient norm", "-" if record.gradient_norm is None else f"{float(record.gradient_norm):.6g}")
    table.add_row("reproduced", "bit for bit" if same else "no")
    if bad.weights_of != bad.step:
        table.add_row("weights", f"those before step {bad.weights_of + 1}: the file was written later")
    low, high = bad.images.min().item(), bad.images.max().item()
    table.add_row("images", f"{len(bad.images)}, values {low} to {high} of 255")
    for name, text in findings.rows():
        table.add_row(name, text)
    Console().print(table)


def _same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


def _why_otherwise(bad: BadStep, step: TrainingStep) -> str:
    if bad.device != str(step.device):
        return f"it was made on {bad.device}, and this is {step.device}"
    return "bits agree on the CPU, and at the same version of torch"


if __name__ == "__main__":
    main()
