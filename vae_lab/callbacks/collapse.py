"""Warns of what a curve shows too late: latents, codes or labels that nothing is made of, images learned by heart."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from lightning.pytorch import Callback, Trainer

log = logging.getLogger("vae_lab")

# Early on a posterior may be the same for all images yet far from the prior: 100 nats that training takes away again.
UNSETTLED_KL = 1.0


class MetricsOrNaN(dict[str, float]):
    """Metrics by name; one that a model does not have is NaN, of which no comparison holds."""

    def __missing__(self, name: str) -> float:
        return math.nan


class Rule(NamedTuple):
    """What is wrong with a run, and what to try; the sentence may name metrics in braces."""

    name: str
    holds: Callable[[MetricsOrNaN, CollapseMonitor], bool]
    sentence: str


TRY = (
    "try objective/beta_schedule=linear_warmup, objective.free_bits=0.1, "
    "a smaller objective.beta or a smaller model.decoder"
)

LEAST_CODES_USED = 0.1  # of a codebook
LEAST_LABEL_GAIN = 0.1  # nats per image

RULES = (
    Rule(
        "inactive",
        lambda m, watch: m["active_units"] == 0 and m["val/kl"] < max(UNSETTLED_KL, watch.min_kl) and m["beta"] != 0,
        f"no latent dimension differs between images (active_units is 0): {TRY}",
    ),
    Rule(
        "no_kl",
        # Not 0, as without a prior; where no latent is active the rule above says it already.
        lambda m, watch: 0 < m["val/kl"] < watch.min_kl and m["active_units"] != 0 and m["beta"] != 0,
        f"latents tell next to nothing of their image (val/kl is {{val/kl:.2g}} nats): {TRY}",
    ),
    Rule(
        "overfit",
        lambda m, watch: watch.max_gap < m["gap"] < math.inf and m["fall"] > watch.max_gap / 5,
        "val/elbo falls and is {gap:.0%} below train/elbo, training images are learned by heart: "
        "try callbacks=early_stopping, optimizer=adamw, a smaller model.latent_dim or a smaller model.decoder",
    ),
    Rule(
        "dead_codes",
        lambda m, watch: m["codes_used"] < LEAST_CODES_USED,
        "only {codes_used:.1%} of the codes are used: try a smaller model.posterior.num_codes, a larger "
        "objective.regularizers.commitment.weight or a larger model.posterior.restart_below",
    ),
    Rule(
        "ignored_labels",
        lambda m, watch: m["label_gain"] < LEAST_LABEL_GAIN,
        "the decoder ignores its labels (another class costs {label_gain:.2g} nats): try a smaller model.latent_dim, "
        "a larger objective.beta, or model.conditional=false",
    ),
)


class CollapseMonitor(Callback):
    """Says once, through the log, what has been wrong at `patience` validations in a row, and what to try.

    Args:
        patience: validations in a row, at least 1.
        min_kl: nats per image; a KL below it tells nothing of an image. 0 turns this off.
        max_gap: how far val/elbo may lie below train/elbo, as a share of |train/log_px| + train/kl. Where log p(x|z) is
            negative that is |train/elbo|; unlike it, it stays above 0 where a density's ELBO changes its sign.

    A gap alone is no alarm: val/elbo must also have fallen from its best by a fifth of `max_gap`. Averaged weights lag
    behind, the Gaussian of optimal variance scores a training batch by its own variance, and few images are soon told
    from new ones; none of this is harm while val/elbo rises. Both ELBOs have beta = 1, whatever was minimised.
    """

    patience: int  # declared for the rules above, which read them
    min_kl: float
    max_gap: float

    def __init__(self, patience: int = 3, min_kl: float = 0.1, max_gap: float = 0.1) -> None:
        if patience < 1 or min_kl < 0 or max_gap < 0:
            raise ValueError(
                "callbacks.collapse: patience is at least 1, min_kl and max_gap are at least 0; "
                f"found patience={patience}, min_kl={min_kl}, max_gap={max_gap}"
            )
        self.patience, self.min_kl, self.max_gap = patience, min_kl, max_gap
        self._current: list[str] = []
        self._counts: dict[str, int] = {}  # validations in a row at which each rule held
        self._warned: list[str] = []
        self._best = -math.inf  # val/elbo

    @property
    def warnings(self) -> list[str]:
        """What is wrong as of the last validation."""
        return list(self._current)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run has to know to warn as one that never stopped."""
        lists = {"current": list(self._current), "warned": list(self._warned)}
        return {**lists, "counts": dict(self._counts), "best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As it was."""
        self._current, self._counts = list(state_dict["current"]), dict(state_dict["counts"])
        self._warned, self._best = list(state_dict["warned"]), state_dict["best"]

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Look at what the validation found."""
        if trainer.sanity_checking:
            return
        metrics = self._seen({**pl_module.metrics, **pl_module.epoch_means()})
        self._counts = {rule.name: self._count(rule, metrics) for rule in RULES}
        wrong = [rule for rule in RULES if self._counts[rule.name] >= self.patience]
        self._current = [rule.sentence.format_map(metrics) for rule in wrong]
        for rule, sentence in zip(wrong, self._current, strict=True):
            if rule.name not in self._warned and trainer.is_global_zero:
                log.warning("warning: %s", sentence)
        self._warned += [rule.name for rule in wrong if rule.name not in self._warned]

    def _count(self, rule: Rule, metrics: MetricsOrNaN) -> int:
        return self._counts.get(rule.name, 0) + 1 if rule.holds(metrics, self) else 0

    def _seen(self, found: dict[str, float]) -> MetricsOrNaN:
        """The metrics, and how far val/elbo is below train/elbo and below its best, as shares of the training terms."""
        m = MetricsOrNaN(found)
        self._best = max(self._best, m["val/elbo"])
        scale = abs(m["train/log_px"]) + m["train/kl"]
        if scale > 0:
            m |= {"gap": (m["train/elbo"] - m["val/elbo"]) / scale, "fall": (self._best - m["val/elbo"]) / scale}
        return m
