"""Our side: the command itself, as a user runs it, with a callback that takes turns.

Nothing heavy is imported before the command does so, for it may set up the process first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from scripts.benchmarks.workers import Turn


def train(turn: Turn, overrides: Sequence[str], measure: str, **options: Any) -> None:
    """`python -m vae_lab.train OVERRIDES` under one of the callbacks of `turns`, which ends the process."""

    def callback() -> Any:
        from scripts.benchmarks import turns

        return getattr(turns, measure)(turn, **options)

    run_command(overrides, callback)


def first_step() -> None:
    """The default command, until its first call of the trainer, which is one optimiser step, is done."""

    def callback() -> Any:
        from scripts.benchmarks.turns import StopAfterFirstStep

        return StopAfterFirstStep()

    run_command([], callback)


def run_command(overrides: Sequence[str], callback: Callable[[], Any]) -> None:
    """The command, its trainer given one more callback."""
    import vae_lab.train as command

    assembled = command.assemble_trainer

    def with_callback(*arguments: Any) -> Any:
        trainer = assembled(*arguments)
        added = callback()
        trainer.callbacks.insert(added.place, added)  # type: ignore[attr-defined]
        return trainer

    command.assemble_trainer = with_callback  # type: ignore[assignment]
    sys.argv = ["train", *overrides]
    command.main()


if __name__ == "__main__":
    first_step()
