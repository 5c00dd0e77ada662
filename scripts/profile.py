"""Where the time of a training step goes.

python scripts/profile.py                                     # the default experiment
python scripts/profile.py model=conv data=mnist --steps 30    # any overrides of `python -m vae_lab.train`
python scripts/profile.py data=mnist --trace step.json        # also a trace for chrome://tracing or Perfetto

Prints the phases of a step, the operators that take the most time themselves, and the speed of the step alone beside
that of the step inside the trainer. Phases are told apart by wrapping the methods from outside, so a step that is
compiled or replayed as a CUDA graph is shown as it is without that; its speed alone is measured as configured.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest.mock import patch

HERE = Path(__file__).resolve().parent
# Without this folder: this file would stand before the standard library's module of its name.
sys.path[:] = [str(HERE.parent), *(path for path in sys.path if Path(path).resolve() != HERE)]

if TYPE_CHECKING:
    import torch
    from lightning.pytorch import Trainer
    from omegaconf import DictConfig

    from vae_lab.data.batches import Batch
    from vae_lab.data.datamodule import ImageDataModule
    from vae_lab.training.lightning_module import VAEModule
    from vae_lab.training.step import TrainingStep

ROUNDS = 5  # epochs inside the trainer, each beside as many steps alone; the first does not count
MOST_OPERATORS = 12
LABEL = "step: "  # before the names of phases in a trace
PARTS_OF_FORWARD = ("encoder", "posterior and sample", "decoder")
PHASES = ("batch", "preprocess", "forward", *PARTS_OF_FORWARD, "objective", "backward", "optimiser", "rest")

Seconds = dict[str, float]


class Operator(NamedTuple):
    """What one operator takes of a step itself, what it calls left out."""

    name: str
    calls: float
    seconds: float


class Profile(NamedTuple):
    """All that is printed."""

    phases: Seconds  # of one step, by PHASES and `step`
    operators: list[Operator]
    alone: float  # images per second
    in_trainer: float
    device: str


def main() -> int:
    """The command: 0, or 2 after a message for a wrong request."""
    arguments = parsed()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would tell of its own start
    with tempfile.TemporaryDirectory() as folder:
        try:
            config, data, experiment = requested(arguments.overrides, arguments.steps)
            trainer = trainer_of(config, Path(folder))
        except Exception as error:
            return refused(error)
        profile = measured(trainer, experiment, data, arguments)
    show(profile)
    if arguments.trace:
        print(f"trace: {arguments.trace}")
    return 0


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="as python -m vae_lab.train takes them")
    parser.add_argument("--steps", type=int, default=50, help="steps of each measurement (default: 50)")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write a Chrome trace of some steps there")
    arguments = parser.parse_intermixed_args()
    if arguments.steps < 1:
        parser.error(f"--steps is at least 1; found {arguments.steps}")
    if arguments.trace and not arguments.trace.absolute().parent.is_dir():
        parser.error(f"--trace: there is no folder {arguments.trace.parent}")
    return arguments


def refused(error: Exception) -> int:
    """Say what was wrong with the request; raises what was not the request's fault."""
    from vae_lab.config.messages import usage_message
    from vae_lab.config.schema import conf_dir

    message = usage_message(error, conf_dir())
    if message is None:
        raise error
    sys.stderr.write("error: " + "\n  ".join(message.splitlines()) + "\n")
    return 2


def requested(overrides: Sequence[str], steps: int) -> tuple[DictConfig, ImageDataModule, VAEModule]:
    """The config and what it describes; epochs of so many steps, no end, and no pictures."""
    from scripts.benchmarks.configs import composed
    from vae_lab.config.validation import check_targets
    from vae_lab.train import silence_libraries

    config = composed(overrides)
    check_targets(config)
    config.trainer.max_epochs, config.trainer.max_steps = -1, -1
    config.trainer.limit_train_batches, config.trainer.limit_val_batches = steps, 1
    config.trainer.enable_model_summary = False
    for name in ("images", "summary"):
        if config.callbacks and name in config.callbacks:
            config.callbacks[name] = None
    silence_libraries()
    from vae_lab.training.build import build

    return config, *build(config)


def trainer_of(config: DictConfig, folder: Path) -> Trainer:
    """The trainer as the command has it."""
    from vae_lab.train import assemble_trainer
    from vae_lab.utils.signals import StopSignals

    return assemble_trainer(config, folder, StopSignals())


def measured(trainer: Trainer, experiment: VAEModule, data: ImageDataModule, arguments: argparse.Namespace) -> Profile:
    """Train a few epochs; at the end of each, while the trainer has everything in place, run the step alone."""
    from lightning.pytorch import Callback

    from vae_lab.callbacks import Progress

    found: list[Profile] = []
    rates: list[float] = []

    class AtEpochEnds(Callback):
        def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
            alone = Alone(trainer, experiment, data, arguments.steps)
            rates.append(alone.rate())
            if len(rates) == ROUNDS:
                found.append(alone.profile(rates_of(trainer)[1:], rates[1:], arguments.trace))
                trainer.should_stop = True

    # Without what it tells of epochs: the steps alone train the model between them.
    watching = [callback for callback in trainer.callbacks if not isinstance(callback, Progress)]  # type: ignore[attr-defined]
    trainer.callbacks = [*watching, AtEpochEnds()]  # type: ignore[attr-defined]
    trainer.fit(experiment, data)
    return found[0]


def rates_of(trainer: Trainer) -> list[float]:
    """Images per second of the training loop in each epoch."""
    from vae_lab.callbacks import Throughput

    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return next(callback for callback in callbacks if isinstance(callback, Throughput)).rates


class Alone:
    """The step of a trainer that waits, on batches of its data."""

    def __init__(self, trainer: Trainer, experiment: VAEModule, data: ImageDataModule, steps: int) -> None:
        self.trainer, self.experiment, self.data, self.steps = trainer, experiment, data, steps
        self.device = experiment.device

    def batches(self) -> Iterator[Batch]:
        """One at a time, epoch after epoch."""
        pace, self.data.loader_options.steps_per_execution = self.data.loader_options.steps_per_execution, 1
        try:
            loader = self.data.train_dataloader()
        finally:
            self.data.loader_options.steps_per_execution = pace
        while True:
            for call in loader:
                yield from call

    def run(self, step: TrainingStep, phases: Phases | None = None) -> int:
        """So many steps; the number of images."""
        span = phases.span if phases else unmarked
        batches, images = self.batches(), 0
        with self.trainer.precision_plugin.train_step_context():
            for number in range(self.steps):
                with span("step"):
                    with span("batch"):
                        batch = next(batches).images.to(self.device)
                    step(batch, number)
                images += len(batch)
        self.wait()
        return images

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.device)

    def rate(self) -> float:
        """Images per second."""
        self.wait()
        start = time.perf_counter()
        images = self.run(self.experiment.step)
        return images / (time.perf_counter() - start)

    def profile(self, in_trainer: Sequence[float], alone: Sequence[float], trace: Path | None) -> Profile:
        """The phases and the operators of the step as it is, neither compiled nor replayed."""
        step = self.plain_step()
        phases = Phases(self.device)
        with phases.marked(step):
            self.run(step, phases)
            phases.spans.clear()  # that was to warm up
            self.run(step, phases)
            seconds = phases.seconds()
            operators = self.operators(step, phases, trace)
        return Profile(seconds, operators, statistics.median(alone), statistics.median(in_trainer), self.device.type)

    def plain_step(self) -> TrainingStep:
        """The step with the same parts."""
        from vae_lab.training.step import Execution

        return replace(self.experiment.step, execution=Execution())

    def operators(self, step: TrainingStep, phases: Phases, trace: Path | None) -> list[Operator]:
        """Those that take the most of a step, by their own time."""
        from torch.profiler import ProfilerActivity, profile

        cuda = self.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
        with profile(activities=activities, acc_events=True) as profiler:
            self.run(step, phases)
        if trace:
            profiler.export_chrome_trace(str(trace))
        own = "self_device_time_total" if cuda else "self_cpu_time_total"
        found = [
            Operator(event.key, event.count / self.steps, getattr(event, own) / 1e6 / self.steps)
            for event in profiler.key_averages()
            if not event.key.startswith(LABEL)
        ]
        return sorted(found, key=lambda operator: -operator.seconds)[:MOST_OPERATORS]


@contextmanager
def unmarked(_: str) -> Iterator[None]:
    """No phase."""
    yield


class Phases:
    """Marks where phases begin and end: by the device's own clock, and as ranges in a trace."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.spans: dict[str, list[tuple[Any, Any]]] = defaultdict(list)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """A phase; one may lie within another."""
        from torch.profiler import record_function

        with record_function(LABEL + name):
            start = self.now()
            yield
            self.spans[name].append((start, self.now()))

    def now(self) -> Any:
        """A point in the device's work: on a GPU an event, which is read when all is done."""
        if self.device.type != "cuda":
            return time.perf_counter()
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def marked(self, step: TrainingStep) -> Iterator[None]:
        """Wrap the methods that a step calls."""
        import torch

        model, objective = step.model, type(step.objective)
        places: list[tuple[Any, str, str]] = [
            (type(step.preprocess), "train", "preprocess"),
            (model, "forward", "forward"),
            (model.encoder, "forward", "encoder"),
            (model.decoder, "forward", "decoder"),
            (objective, "terms", "objective"),
            (objective, "__call__", "objective"),
            (torch.Tensor, "backward", "backward"),
            (step.optimizer, "step", "optimiser"),
            (step.optimizer, "zero_grad", "optimiser"),
        ]
        with ExitStack() as stack:
            for owner, name, phase in places:
                stack.enter_context(patch.object(owner, name, self.wrapped(getattr(owner, name), phase)))
            yield

    def wrapped(self, function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        """The same function as a phase."""

        def within(*arguments: Any, **options: Any) -> Any:
            with self.span(phase):
                return function(*arguments, **options)

        return within

    def seconds(self) -> Seconds:
        """Of one step: each phase's mean, what is left of the forward pass and of the step; forgets the spans."""
        steps = len(self.spans["step"])
        found = {name: sum(map(self.between, spans)) / steps for name, spans in self.spans.items()}
        self.spans.clear()
        return completed(found)

    def between(self, span: tuple[Any, Any]) -> float:
        """Seconds."""
        start, end = span
        return float(end - start if isinstance(start, float) else start.elapsed_time(end) / 1000)


def completed(found: Seconds) -> Seconds:
    """The same with the phases that are what others leave."""
    spent = {name: found.get(name, 0.0) for name in (*PHASES, "step")}
    spent["posterior and sample"] = spent["forward"] - spent["encoder"] - spent["decoder"]
    outer = [name for name in PHASES if name not in (*PARTS_OF_FORWARD, "rest")]
    spent["rest"] = spent["step"] - sum(spent[name] for name in outer)
    return spent


def show(profile: Profile) -> None:
    """Three tables."""
    from rich.console import Console

    console = Console(highlight=False)
    for table in (phase_table(profile.phases), operator_table(profile), rate_table(profile)):
        console.print(table)


def phase_table(phases: Seconds) -> Any:
    """Microseconds and shares of a step."""
    from rich.table import Table

    table = Table("phase of a step", "us", "%", title="Phases", title_justify="left")
    for name in (*PHASES, "step"):
        indent = "  " if name in PARTS_OF_FORWARD else ""
        table.add_row(indent + name, f"{1e6 * phases[name]:,.0f}", f"{phases[name] / phases['step']:.1%}")
    return table


def operator_table(profile: Profile) -> Any:
    """The operators with the most time of their own; under the profiler, so that small ones look larger."""
    from rich.table import Table

    table = Table("calls", "own us", "% of these", "operator", title="Operators of a step", title_justify="left")
    whole = sum(operator.seconds for operator in profile.operators) or 1.0
    for name, calls, seconds in profile.operators:
        table.add_row(f"{calls:.3g}", f"{1e6 * seconds:,.0f}", f"{seconds / whole:.1%}", name.split(": ")[-1][:40])
    return table


def rate_table(profile: Profile) -> Any:
    """The step alone, and inside the trainer."""
    from rich.table import Table

    table = Table("training", "images/s", title=f"Speed on {profile.device}", title_justify="left")
    table.add_row("the step alone", f"{profile.alone:,.0f}")
    table.add_row("inside the trainer", f"{profile.in_trainer:,.0f}")
    share = 1 - profile.in_trainer / profile.alone
    table.add_row("the trainer's share", f"{share:.1%}" if share > 0 else "less than the noise")
    return table


if __name__ == "__main__":
    sys.exit(main())
