"""The study of a search in Optuna's database, and what each of its workers does.

A worker's heartbeats in the database say that it lives; the trial of a worker that was killed or interrupted is run
again, from its checkpoint. `Study.optimize` sends them, which ask and tell would not.
"""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from omegaconf import DictConfig

from vae_lab.config.schema import LOWER_IS_BETTER
from vae_lab.runs.resume import LAST_CHECKPOINT, exclusive_lock
from vae_lab.runs.search.space import Space
from vae_lab.runs.search.trial import key_of, run_trial
from vae_lab.runs.stored_config import MOVABLE
from vae_lab.utils.errors import RunFailed, UsageError
from vae_lab.utils.signals import Interrupted

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

MAX_RETRIES = 5  # of a trial whose workers are killed, perhaps by the trial itself
# Keys of overrides in which the workers of a study may differ: where data and devices are, what is logged.
OF_A_WORKER = (
    rf"({'|'.join(MOVABLE)}|trainer|trainer\.(accelerator|devices|num_threads)|hydra\..*)$|(logger|callbacks)\b"
)


def open_study(options: DictConfig, folder: Path, metric: str, space: Space) -> Study:
    """The study of `search.dir` in its database, new or continued.

    UsageError: the database cannot be opened, or the study is one of another request.
    """
    import optuna
    from hydra.utils import instantiate
    from sqlalchemy.exc import SQLAlchemyError

    url = options.storage or f"sqlite:///{folder / 'study.db'}"
    waits = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    try:
        with exclusive_lock(folder, seconds=60):  # two that create its tables at once fail
            storage = optuna.storages.RDBStorage(
                url,
                waits,
                heartbeat_interval=max(1, options.grace // 6),
                grace_period=options.grace,
                heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(MAX_RETRIES),
            )
            study = optuna.create_study(
                storage=storage,
                study_name=options.study or folder.name,
                direction="minimize" if metric.endswith(LOWER_IS_BETTER) else "maximize",
                sampler=instantiate(options.sampler, _convert_="all"),
                pruner=instantiate(options.pruner, _convert_="all") if options.pruner else optuna.pruners.NopPruner(),
                load_if_exists=True,
            )
            require_same(study, metric, space, folder)
    except (SQLAlchemyError, ImportError, optuna.exceptions.OptunaError) as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise UsageError(f"search.storage: the database cannot be opened: {reason}") from error
    return study


def require_same(study: Study, metric: str, space: Space, folder: Path) -> None:
    """Store what a new study searches. UsageError: that of an old one is something else."""
    fixed = [word for word in sorted(space.fixed) if not re.match(OF_A_WORKER, key_of(word))]
    request = {"metric": metric, "space": space.words, "overrides": fixed}
    if "request" not in study.user_attrs and not study.get_trials(deepcopy=False):
        study.set_user_attr("request", request)
    stored = study.user_attrs.get("request") or {}
    for name, value in request.items():
        if stored.get(name) != value:
            raise UsageError(
                f"{folder}: its study has another {name}: {stored.get(name)}\n"
                f"found {value}\nchoose another search.dir, or repeat the command of the study"
            )


class Worker(NamedTuple):
    """What one process does for a study."""

    study: Study
    space: Space
    metric: str
    folder: Path
    num_trials: int
    grace: float
    pause: Callable[[], None]  # raises Interrupted if the search is to stop
    status: Callable[[str], None]  # shows what is running

    def run(self) -> None:
        """Run trials until there are enough, or no more."""
        from optuna.trial import TrialState

        while self.has_turn():
            self.study.optimize(
                self.objective,
                catch=(RunFailed,),
                callbacks=[self.show, lambda study, _: None if self.has_turn() else study.stop()],
            )
            if not self.study.get_trials(deepcopy=False, states=[TrialState.WAITING]):
                break  # stopped by the sampler, which has tried everything

    def has_turn(self) -> bool:
        """Whether to run another trial; waits where the running ones of other workers may be enough."""
        from optuna.storages import fail_stale_trials
        from optuna.trial import TrialState

        while True:
            self.pause()
            fail_stale_trials(self.study)
            self.fail_unstarted()
            trials = self.study.get_trials(deepcopy=False)
            count = Counter(trial.state for trial in trials)
            missing = self.num_trials - count[TrialState.COMPLETE] - count[TrialState.PRUNED]
            if missing <= 0 or sum("error" in trial.user_attrs for trial in trials) >= self.num_trials:
                return False
            if count[TrialState.RUNNING] < missing:
                return True
            time.sleep(0.5)

    def fail_unstarted(self) -> None:
        """Run a trial again whose worker was killed before its first heartbeat: Optuna would wait for ever."""
        from optuna.trial import TrialState

        for trial in self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            started = trial.datetime_start
            if "run" not in trial.user_attrs and started and time.time() - started.timestamp() > self.grace:
                self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
                retry(self.study, trial)

    def objective(self, trial: Trial) -> float:
        """The value of a trial. TrialPruned, RunFailed, Interrupted: it has none."""
        from optuna import TrialPruned

        try:
            words = self.space.sample(trial)
        except ValueError as error:
            raise UsageError(f"search.sampler: {error}") from error
        run = str(trial.user_attrs.get("run", trial.number))
        if not (self.folder / run / LAST_CHECKPOINT).is_file():  # else it was killed, and is resumed
            run = str(trial.number)
        trial.set_user_attr("run", run)
        try:
            value = run_trial(words, self.folder / run, self.metric, partial(self.report, trial), self.pause)
        except RunFailed as error:
            trial.set_user_attr("error", str(error))
            raise
        except Interrupted:
            retry(self.study, self.study.get_trials(deepcopy=False)[trial.number])
            raise
        if value is None:
            raise TrialPruned
        return value

    def report(self, trial: Trial, epoch: int, value: float) -> bool:
        """Whether the pruner gives the trial up."""
        words = " ".join(words_of(trial))
        self.status(f"trial {trial.number}: {self.metric} {value:.6g} after {epoch} epochs ({words})")
        trial.report(value, epoch)
        return trial.should_prune()

    def show(self, study: Study, trial: FrozenTrial) -> None:
        """A line for each trial that ends."""
        error, pruned = trial.user_attrs.get("error"), "" if trial.state.name == "COMPLETE" else " pruned"
        what = f" failed: {error}".partition("\n")[0] if error else f"{pruned}: {self.metric} {shown_value(trial)}"
        sys.stderr.write(f"trial {trial.number}{what} ({' '.join(words_of(trial))})\n")


def retry(study: Study, trial: FrozenTrial) -> None:
    """Queue a trial again."""
    from optuna.storages import RetryHeartbeatStaleTrialCallback

    RetryHeartbeatStaleTrialCallback()(study, trial)


def words_of(trial: Trial | FrozenTrial) -> list[str]:
    """The overrides that a trial has of its own."""
    return [f"{key}={value}" for key, value in trial.params.items()]


def shown_value(trial: FrozenTrial) -> str:
    return "-" if trial.value is None else f"{trial.value:.6g}"
