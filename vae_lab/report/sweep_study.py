"""The study of a search, where its database lies in the search's directory and Optuna is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vae_lab.report.sweep_jobs import Job
from vae_lab.runs.search.study import words_of

if TYPE_CHECKING:
    from optuna import Study


def open_study_of(folder: Path) -> Study | None:
    """None: a sweep, a study in a database elsewhere, or no Optuna."""
    file = folder / "study.db"
    if not file.is_file() or importlib.util.find_spec("optuna") is None:
        return None
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        return optuna.load_study(study_name=None, storage=f"sqlite:///{file.absolute()}")
    except (ValueError, KeyError, SQLAlchemyError, optuna.exceptions.OptunaError):  # not that of one search
        return None


def with_trials(jobs: Sequence[Job], study: Study) -> list[Job]:
    """The jobs with what only the study says: which were pruned, and the overrides of those that were refused."""
    trials = {str(it.user_attrs.get("run", it.number)): it for it in study.get_trials(deepcopy=False)}
    found = []
    for job in jobs:
        trial = trials.get(job.name)
        if trial is not None and trial.state.name == "PRUNED" and job.status == "interrupted":
            job = job._replace(status="pruned")  # noqa: PLW2901
        if trial is not None and not job.words:
            job = job._replace(words=tuple(words_of(trial)))  # noqa: PLW2901
        found.append(job)
    return found
