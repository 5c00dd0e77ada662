"""python -m vae_lab.replay RUN: repeat a non-finite step and report where it became non-finite."""

from __future__ import annotations

import math
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from vae_lab.runs.cli import run_as_first_argument, run_command
from vae_lab.utils.errors import UsageError

if TYPE_CHECKING:
    import torch

    from vae_lab.training.nonfinite_report import NonFiniteReport
    from vae_lab.training.step import StepRecord, TrainingStep
    from vae_lab.training.step_dump import StepDump


def main() -> None:
    run_as_first_argument()
    run_command(replay, config_name="replay")


def replay(config: DictConfig) -> None:
    """Repeat the step and print the findings. RunFailed: its loss terms are not reproduced."""
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        raise UsageError("only one step can be replayed at a time\nremove --multirun")
    from vae_lab.config.validation import check_targets
    from vae_lab.runs.stored_config import load_config
    from vae_lab.training.nonfinite_report import watch_nonfinite
    from vae_lab.utils.errors import RunFailed

    run = Path(config.run)
    experiment = load_config(run, config.trusted)
    check_targets(experiment)
    path, dump = find_dump(run, config.step)
    step, precision = rebuild_step(experiment, dump)
    with precision, watch_nonfinite(step.model) as findings:
        labels = None if dump.labels is None else dump.labels.to(step.device)
        record = step(dump.images.to(step.device), dump.step, measure=True, labels=labels)
    found = dict(zip(dump.terms, record.terms.tolist(), strict=True))
    same = all(_same(found[name], value) for name, value in dump.terms.items())
    show(path, dump, record, found, findings, same)
    if not same:
        raise RunFailed(f"the step was not reproduced: {found}, expected {dump.terms}\n{_mismatch_reason(dump, step)}")


def find_dump(run: Path, number: int | None) -> tuple[Path, StepDump]:
    """The file and content of a step dump. UsageError: the run has none, or none of this step."""
    from vae_lab.training.step_dump import DUMP_PATTERN, read_step_dump

    kept = sorted((run / "checkpoints").glob(DUMP_PATTERN))
    if not kept:
        raise UsageError(f"run={run}: no dump of a non-finite step\nexpected checkpoints/{DUMP_PATTERN}, which a run "
                         "with a non-finite loss or gradient writes")  # fmt: skip
    chosen = [path for path in kept if number is None or f"step={number:08d}" in path.name]
    if not chosen:
        raise UsageError(f"step={number}: no dump of this step\nfound {', '.join(path.name for path in kept)}")
    steps = ((path, read_step_dump(path)) for path in chosen)
    first = next(steps)
    # With several processes, the dump of the one whose loss terms were non-finite.
    return next((step for step in chain([first], steps) if not _is_finite(step[1])), first)


def _is_finite(dump: StepDump) -> bool:
    return all(map(math.isfinite, dump.terms.values()))


def rebuild_step(config: DictConfig, dump: StepDump) -> tuple[TrainingStep, Any]:
    """The training step in its state before the dump, and the context of its precision."""
    import torch

    from vae_lab.core import ImageSpec
    from vae_lab.training.build import build_module, build_node
    from vae_lab.training.step import Execution, TrainingStep

    config.trainer.update(dump.trainer)
    torch.set_num_threads(dump.trainer["num_threads"])
    device = torch.device(dump.device if dump.device == "cpu" or torch.cuda.is_available() else "cpu")
    data, settings = build_node(config.data), build_node(config.optimizer)
    experiment = build_module(config, data, ImageSpec(**dump.image), dump.num_images, settings).to(device)
    experiment.model.load_state_dict(dump.weights)
    experiment.objective.load_state_dict(dump.objective)
    if experiment.average is not None:
        experiment.average.model.load_state_dict(dump.average)
    optimizer = experiment.configure_optimizers()
    optimizer.load_state_dict(dump.optimizer)
    step = TrainingStep(
        model=experiment.model.train(),
        objective=experiment.objective,
        preprocess=experiment.preprocess,
        optimizer=optimizer,
        settings=settings,
        batch_size=experiment.batch_size,
        total_steps=dump.total_steps,
        seed=experiment.seed,
        rank=dump.rank,
        average=experiment.average,
        execution=Execution(compile=config.trainer.compile),
    )
    return step, _precision(config, device)


def _precision(config: DictConfig, device: torch.device) -> Any:
    import torch

    mixed = str(config.trainer.precision).startswith("bf16")
    return torch.autocast(device.type, torch.bfloat16) if mixed else nullcontext()


def show(
    path: Path, dump: StepDump, record: StepRecord, found: dict[str, float], findings: NonFiniteReport, same: bool
) -> None:
    """Print the findings as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"optimiser step {dump.step + 1} of {path.parents[1]}", show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in found.items():
        table.add_row(name, f"{value:.6g}")
    table.add_row("gradient norm", "-" if record.gradient_norm is None else f"{float(record.gradient_norm):.6g}")
    table.add_row("reproduced", "bit for bit" if same else "no")
    if dump.weights_step != dump.step:
        table.add_row("weights", f"from before step {dump.weights_step + 1}: the dump was written later")
    low, high = dump.images.min().item(), dump.images.max().item()
    table.add_row("images", f"{len(dump.images)}, values {low} to {high} of 255")
    for name, text in findings.rows():
        table.add_row(name, text)
    Console().print(table)


def _same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


def _mismatch_reason(dump: StepDump, step: TrainingStep) -> str:
    if dump.device != str(step.device):
        return f"the run used {dump.device}, the replay {step.device}"
    return "results are bit-identical only on the CPU and with the same version of torch"


if __name__ == "__main__":
    main()
