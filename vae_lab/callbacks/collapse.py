"""Warnings about posterior collapse, overfitting, dead codes and ignored labels."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from lightning.pytorch import Callback, Trainer

log = logging.getLogger("vae_lab")

# Nats per image. Early in training the posterior may be the same for all images yet far from the prior: 100 nats.
MAX_KL_WHEN_INACTIVE = 1.0


class MetricsOrNaN(dict[str, float]):
    """Metrics by name; a missing one is NaN, for which every comparison is false."""

    def __missing__(self, name: str) -> float:
        return math.nan


class Rule(NamedTuple):
    """A condition on the metrics, and its warning with advice; `sentence` may name metrics in braces."""

    name: str
    holds: Callable[[MetricsOrNaN, CollapseMonitor], bool]
    sentence: str


TRY = (
    "try objective/beta_schedule=linear_warmup, objective.free_bits=0.1, "
    "a smaller objective.beta or a smaller model.decoder"
)

MIN_CODES_USED = 0.1  # share of the codebook
MIN_LABEL_GAIN = 0.1  # nats per image

RULES = (
    Rule(
        "inactive",
        lambda m, watch: (
            m["active_units"] == 0 and m["val/kl"] < max(MAX_KL_WHEN_INACTIVE, watch.min_kl) and m["beta"] != 0
        ),
        f"posterior collapse: no latent dimension is active (active_units is 0); {TRY}",
    ),
    Rule(
        "no_kl",
        # A KL of exactly 0 is a model without a prior; active_units of 0 is covered by the rule above.
        lambda m, watch: 0 < m["val/kl"] < watch.min_kl and m["active_units"] != 0 and m["beta"] != 0,
        f"posterior collapse: the KL is near 0 (val/kl is {{val/kl:.2g}} nats); {TRY}",
    ),
    Rule(
        "overfit",
        lambda m, watch: watch.max_gap < m["gap"] < math.inf and m["fall"] > watch.max_gap / 5,
        "overfitting: val/elbo is falling and {gap:.0%} below train/elbo; "
        "try callbacks=early_stopping, optimizer=adamw, a smaller model.latent_dim or a smaller model.decoder",
    ),
    Rule(
        "dead_codes",
        lambda m, watch: m["codes_used"] < MIN_CODES_USED,
        "dead codes: only {codes_used:.1%} of the codebook is used; try a smaller model.posterior.num_codes, a larger "
        "objective.regularizers.commitment.weight or a larger model.posterior.restart_below",
    ),
    Rule(
        "ignored_labels",
        lambda m, watch: m["label_gain"] < MIN_LABEL_GAIN,
        "ignored labels: a wrong label costs the decoder only {label_gain:.2g} nats; try a smaller model.latent_dim, "
        "a larger objective.beta, or model.conditional=false",
    ),
)


class CollapseMonitor(Callback):
    """Logs a warning, once per rule, when the rule has held at `patience` validations in a row.

    Args:
        patience: validations in a row, at least 1.
        min_kl: nats per image; a KL below it counts as posterior collapse. 0 disables the rule.
        max_gap: largest accepted gap between train/elbo and val/elbo, as a share of |train/log_px| + train/kl. This is
            |train/elbo| where log p(x|z) is negative, and unlike it stays positive where a density's ELBO changes sign.

    The overfitting rule also requires val/elbo to have fallen from its best by a fifth of `max_gap`. A gap alone is
    normal: averaged weights lag behind, the optimal-variance Gaussian scores a training batch with the batch's own
    variance, and small data sets show a gap early. Both ELBOs have beta = 1, whatever was minimised.
    """

    patience: int  # declared here because the rules above read them
    min_kl: float
    max_gap: float

    def __init__(self, patience: int = 3, min_kl: float = 0.1, max_gap: float = 0.1) -> None:
        if patience < 1 or min_kl < 0 or max_gap < 0:
            raise ValueError(
                "callbacks.collapse: patience must be at least 1, min_kl and max_gap at least 0; "
                f"found patience={patience}, min_kl={min_kl}, max_gap={max_gap}"
            )
        self.patience, self.min_kl, self.max_gap = patience, min_kl, max_gap
        self._current: list[str] = []
        self._counts: dict[str, int] = {}  # consecutive validations at which each rule held
        self._warned: list[str] = []
        self._best = -math.inf  # val/elbo

    @property
    def warnings(self) -> list[str]:
        """The warnings that hold as of the last validation."""
        return list(self._current)

    def state_dict(self) -> dict[str, Any]:
        lists = {"current": list(self._current), "warned": list(self._warned)}
        return {**lists, "counts": dict(self._counts), "best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._current, self._counts = list(state_dict["current"]), dict(state_dict["counts"])
        self._warned, self._best = list(state_dict["warned"]), state_dict["best"]

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking:
            return
        metrics = self._with_gaps({**pl_module.metrics, **pl_module.epoch_means()})
        self._counts = {rule.name: self._count(rule, metrics) for rule in RULES}
        wrong = [rule for rule in RULES if self._counts[rule.name] >= self.patience]
        self._current = [rule.sentence.format_map(metrics) for rule in wrong]
        for rule, sentence in zip(wrong, self._current, strict=True):
            if rule.name not in self._warned and trainer.is_global_zero:
                log.warning("warning: %s", sentence)
        self._warned += [rule.name for rule in wrong if rule.name not in self._warned]

    def _count(self, rule: Rule, metrics: MetricsOrNaN) -> int:
        return self._counts.get(rule.name, 0) + 1 if rule.holds(metrics, self) else 0

    def _with_gaps(self, found: dict[str, float]) -> MetricsOrNaN:
        """Metrics with `gap` (train/elbo - val/elbo) and `fall` (best - val/elbo) as shares of the training terms."""
        m = MetricsOrNaN(found)
        self._best = max(self._best, m["val/elbo"])
        scale = abs(m["train/log_px"]) + m["train/kl"]
        if scale > 0:
            m |= {"gap": (m["train/elbo"] - m["val/elbo"]) / scale, "fall": (self._best - m["val/elbo"]) / scale}
        return m
