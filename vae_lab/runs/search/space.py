"""The space of a search: overrides in Hydra's sweep syntax, as Optuna's distributions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from vae_lab.utils.errors import UsageError

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.distributions import BaseDistribution

CHOICES = "choice(a,b), range(a,b), interval(a,b), int(interval(a,b)) or tag(log,interval(a,b))"


class Space(NamedTuple):
    """What a search varies, and what it does not."""

    dimensions: dict[str, BaseDistribution]  # by key
    words: dict[str, str]  # the overrides that say so, by key
    fixed: list[str]  # overrides of every trial

    def sample(self, trial: Trial) -> list[str]:
        """The overrides of a trial."""
        return [*self.fixed, *(f"{key}={_suggest(trial, key, it)}" for key, it in self.dimensions.items())]

    def example(self) -> list[str]:
        """The overrides of a trial with the first value of each dimension."""
        firsts = {key: it.choices[0] if hasattr(it, "choices") else it.low for key, it in self.dimensions.items()}  # type: ignore[attr-defined]
        return [*self.fixed, *(f"{key}={value}" for key, value in firsts.items())]


def parse_space(space: Sequence[str], overrides: Sequence[str], is_default: bool = False) -> Space:
    """The space of a search and the overrides of its command line, which win.

    is_default: the space was not asked for, and is ignored if the overrides have choices.
    UsageError: there is nothing to vary.
    """
    parse = OverridesParser.create().parse_overrides
    given = parse(list(overrides))
    replaced = is_default and any(it.is_sweep_override() for it in given)
    parsed = {it.key_or_group: it for it in (*([] if replaced else parse(list(space))), *given)}
    varied = {it.get_key_element(): it for it in parsed.values() if it.is_sweep_override()}
    if not varied:
        found = ", ".join(map(str, space)) or "nothing"
        raise UsageError(f"search.space: found {found}, which leaves no choice\nexpected KEY=VALUES, VALUES {CHOICES}")
    return Space(
        {key: _distribution(it) for key, it in varied.items()},
        {key: str(it.input_line) for key, it in varied.items()},
        [str(it.input_line) for it in parsed.values() if not it.is_sweep_override()],
    )


def _distribution(override: Override) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep = override.value()
    try:
        if isinstance(sweep, RangeSweep):
            values, log = sorted(sweep.range()), "log" in sweep.tags
            if not values:
                raise ValueError("the range is empty")
            kind = IntDistribution if isinstance(values[0], int) else FloatDistribution
            return kind(values[0], values[-1], log, 1 if log else abs(sweep.step))  # type: ignore[arg-type]
        if isinstance(sweep, IntervalSweep):
            kind = IntDistribution if isinstance(sweep.start, int) else FloatDistribution
            return kind(sweep.start, sweep.end, "log" in sweep.tags)  # type: ignore[arg-type]
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    except (ValueError, HydraException, OmegaConfBaseException) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"search.space: {override.input_line}: {reason}\nexpected {CHOICES}") from error


def _suggest(trial: Trial, key: str, distribution: BaseDistribution) -> object:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    match distribution:
        case CategoricalDistribution(choices=choices):
            return trial.suggest_categorical(key, choices)
        case IntDistribution(low=low, high=high, step=step, log=log):
            return trial.suggest_int(key, low, high, step=step, log=log)
        case FloatDistribution(low=low, high=high, step=step, log=log):
            return trial.suggest_float(key, low, high, step=step, log=log)
    raise TypeError(distribution)
