"""python -m vae_lab.search: hyperparameter search with Optuna; every trial is a run directory below `search.dir`."""

from __future__ import annotations

import shlex
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig

from vae_lab.config.schema import conf_dir
from vae_lab.runs.cli import run_command
from vae_lab.runs.command_line import hydra_words, split_flags
from vae_lab.runs.search.space import Space, parse_space
from vae_lab.runs.search.study import Worker, open_study, shown_value, words_of
from vae_lab.runs.sweep import require_single_run
from vae_lab.utils.errors import RunFailed, UsageError, require_extra
from vae_lab.utils.signals import Interrupted, StopSignals

if TYPE_CHECKING:
    from optuna import Study


def main() -> None:
    sys.argv[1:] = search_words(sys.argv[1:])
    run_command(search, config_name="search")


def search_words(words: list[str]) -> list[str]:
    """The command line with the overrides of vae_lab.train as `search.overrides`."""
    overrides, own = split_flags(words)
    others: list[str] = []
    for word in overrides:
        is_own = word.lstrip("+~").split("=")[0].replace("/", ".").split(".")[0] in ("search", "hydra")
        (own if is_own else others).append(word)
    quoted = ",".join(QuotedString(word, Quote.single).with_quotes() for word in others)
    return [*own, f"search.overrides=[{quoted}]"] if others else own


def search(config: DictConfig) -> None:
    from rich.console import Console

    require_optuna()
    options = config.search
    check(config)
    is_default = not any(word.startswith(("search=", "search.space=")) for word in HydraConfig.get().overrides.task)
    space = parse_space(options.space, [*options.overrides, *_config_dirs()], is_default)
    metric = compose("train", hydra_words(space.example(), conf_dir())).optimized_metric
    folder = Path(options.dir).expanduser().absolute()
    with StopSignals() as stop_signals, Console(stderr=True).status(f"search {folder}") as status:
        folder.mkdir(parents=True, exist_ok=True)
        study = open_study(options, folder, metric, space)
        limits, pause = (options.num_trials, options.grace), stop_signals.raise_if_requested
        worker = Worker(study, space, metric, folder, *limits, pause, status.update)
        stop_signals.defer_to_safe_points()
        try:
            worker.run()
        except Interrupted:
            sys.stderr.write(f"the same command continues the search {folder}\n")
            raise
        except ImportError as error:
            raise UsageError(f"search.sampler={options.sampler._target_}: {error}\npip install it") from error
    print_results(study, space, metric, folder)


def require_optuna() -> None:
    """Import Optuna, quiet. UsageError: not installed."""
    require_extra("search", "optuna", where="search")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def check(config: DictConfig) -> None:
    """UsageError: a value that no search accepts."""
    from vae_lab.config.validation import check_targets

    require_single_run("a search is no sweep of searches")
    for key, least in (("num_trials", 1), ("grace", 2)):
        if config.search[key] < least:
            raise UsageError(f"search.{key}={config.search[key]}: expected at least {least}")
    if resumes := [word for word in config.search.overrides if word.startswith("resume=")]:
        raise UsageError(
            f"{resumes[0]}: a search continues by itself\nremove it, and repeat search.dir={config.search.dir}"
        )
    check_targets(config)


def _config_dirs() -> list[str]:
    """The override that makes --config-dir known to the trials."""
    sources = HydraConfig.get().runtime.config_sources
    found = ",".join(f"'file://{Path(it.path).absolute()}'" for it in sources if it.provider == "command-line")
    return [f"hydra.searchpath=[{found}]"] if found else []


def print_results(study: Study, space: Space, metric: str, folder: Path) -> None:
    """The trials, best first, the failed ones with their errors, and the command that repeats the best.

    RunFailed: there is no best.
    """
    from optuna.study import StudyDirection
    from optuna.trial import TrialState
    from rich.console import Console
    from rich.table import Table

    sign = 1 if study.direction == StudyDirection.MINIMIZE else -1
    trials = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.PRUNED])
    ranked = sorted(trials, key=lambda it: (it.state.name, float("inf") if it.value is None else sign * it.value))
    table = Table(box=None, pad_edge=False)
    table.add_column(metric, justify="right", no_wrap=True)
    for name in (*space.dimensions, "", "run directory"):
        table.add_column(name, overflow="fold")
    for trial in ranked:
        values = [f"{it:.4g}" if isinstance(it, float) else str(it) for it in map(trial.params.get, space.dimensions)]
        pruned = f"pruned at epoch {trial.last_step}" if trial.state == TrialState.PRUNED else ""
        table.add_row(shown_value(trial), *values, pruned, str(folder / trial.user_attrs["run"]))
    console = Console(width=None if sys.stdout.isatty() else 160)  # no wrapping in a file
    console.print(table, highlight=False, markup=False)
    for trial in study.get_trials(deepcopy=False, states=[TrialState.FAIL]):
        if error := trial.user_attrs.get("error"):
            sys.stdout.write(f"failed: {folder / trial.user_attrs['run']} ({' '.join(words_of(trial))})\n  {error}\n")
    if ranked and ranked[0].state == TrialState.COMPLETE:
        words = map(shlex.quote, [*space.fixed, *words_of(ranked[0])])
        sys.stdout.write(f"the best again: python -m vae_lab.train {' '.join(words)}\n")
    else:
        raise RunFailed(f"no trial of the search {folder} has completed")


if __name__ == "__main__":
    main()
