"""How much each hyperparameter of a sweep matters for its metric."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vae_lab.report.sweep_table import SEED, Sweep, canonical
from vae_lab.utils.files import as_number

if TYPE_CHECKING:
    from optuna import Study

MIN_JOBS = 8
NUM_TREES, NUM_SHUFFLES = 100, 10


class Importance(NamedTuple):
    """Values by key, largest first; without any, `method` says why."""

    method: str
    values: dict[str, float]
    errors: dict[str, float]  # standard deviations over shuffles; empty: not known


def importance(sweep: Sweep, study: Study | None) -> Importance:
    """By functional ANOVA for the study of a search, else by the permutation importance of a random forest."""
    jobs = sweep.scored
    keys = [key for key in sweep.keys if len({canonical(job.value(key)) for job in jobs}) > 1]
    if len(jobs) < MIN_JOBS:
        return Importance(f"It takes at least {MIN_JOBS} completed jobs; there are {len(jobs)}.", {}, {})
    if len(keys) < 2:
        return Importance("It takes at least two keys that vary among the completed jobs.", {}, {})
    if len({job.metrics[sweep.metric] for job in jobs}) == 1:
        return Importance(f"All completed jobs have the same {sweep.metric}.", {}, {})
    if study is not None and study.user_attrs.get("request", {}).get("metric") == sweep.metric:
        return of_study(study)
    return of_forest(sweep, keys)


def of_study(study: Study) -> Importance:
    """The share of the variance of the metric that each parameter alone explains. Hutter et al. 2014."""
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    values = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    return Importance("The share of the variance by functional ANOVA (Optuna's), of the completed trials.", values, {})


def of_forest(sweep: Sweep, keys: list[str]) -> Importance:
    """The share of a key in the R^2 that a random forest loses when values are shuffled. Breiman 2001."""
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    jobs = sweep.scored
    target = np.array([job.metrics[sweep.metric] for job in jobs])
    columns, categorical = [], []
    for number, key in enumerate(keys):
        values = [job.value(key) for job in jobs]
        numbers = [as_number(value) for value in values]
        if key == SEED or None in numbers:
            categorical.append(number)
            numbers = [sorted(set(values)).index(value) for value in values]
        columns.append(numbers)
    features = np.array(columns, dtype=float).T
    encoder = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), categorical), remainder="passthrough")
    forest = RandomForestRegressor(NUM_TREES, oob_score=True, random_state=0)
    model = make_pipeline(encoder, forest).fit(features, target)
    found = permutation_importance(model, features, target, n_repeats=NUM_SHUFFLES, random_state=0)
    losses = found.importances.clip(min=0)
    losses /= max(losses.mean(axis=1).sum(), 1e-12)
    order = np.argsort(-losses.mean(axis=1), kind="stable")
    method = (
        f"The share of a key in the R² that a random forest of {NUM_TREES} trees, fitted to the {len(jobs)} completed "
        "jobs, loses when the values of one key after the other are shuffled among them (permutation importance). "
        f"Out of bag the forest has R² = {forest.oob_score_:.2f}: "
        f"{'below 0.5, its importances say little' if forest.oob_score_ < 0.5 else '1 would be perfect'}."
    )
    return Importance(
        method,
        {keys[number]: float(losses[number].mean()) for number in order},
        {keys[number]: float(losses[number].std()) for number in order},
    )
