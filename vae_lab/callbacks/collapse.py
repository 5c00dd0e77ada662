"""Warnings about posterior collapse and latents far from the prior, overfitting, dead codes and ignored labels."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, Trainer

from vae_lab.objectives.objective import Objective

log = logging.getLogger("vae_lab")

# Nats per image. Early in training the posterior may be the same for all images yet far from the prior: 100 nats.
MAX_KL_WHEN_INACTIVE = 1.0
LOW_BETA, HIGH_KL = 0.1, 100.0
MIN_CODES_USED = 0.1  # share of the codebook
MIN_LABEL_GAIN = 0.1  # nats per image

RAISE_KL = (
    "try objective/beta_schedule=linear_warmup, objective.free_bits=0.1, "
    "a smaller objective.beta or a smaller model.decoder"
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

    def __init__(self, patience: int = 3, min_kl: float = 0.1, max_gap: float = 0.1) -> None:
        if patience < 1 or min_kl < 0 or max_gap < 0:
            raise ValueError(
                "callbacks.collapse: patience must be at least 1, min_kl and max_gap at least 0; "
                f"found patience={patience}, min_kl={min_kl}, max_gap={max_gap}"
            )
        self.patience, self.min_kl, self.max_gap = patience, min_kl, max_gap
        self._current: list[str] = []  # warnings that hold as of the last validation
        self._counts: dict[str, int] = {}  # consecutive validations at which each rule held
        self._warned: list[str] = []
        self._best = -math.inf  # val/elbo

    def state_dict(self) -> dict[str, Any]:
        return {"current": self._current, "counts": self._counts, "warned": self._warned, "best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._current, self._counts = list(state_dict["current"]), dict(state_dict["counts"])
        self._warned, self._best = list(state_dict["warned"]), state_dict["best"]

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        pl_module.caveats["collapse"] = self._current  # of a resumed run

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking:
            return
        found = self._problems({**pl_module.metrics, **pl_module.epoch_means()})
        found |= far_from_prior(pl_module.objective, pl_module.metrics, pl_module.config)
        self._counts = {rule: self._counts.get(rule, 0) + 1 for rule in found}
        lasting = {rule: warning for rule, warning in found.items() if self._counts[rule] >= self.patience}
        pl_module.caveats["collapse"] = self._current = list(lasting.values())
        new = [rule for rule in lasting if rule not in self._warned]
        self._warned = self._warned + new
        for rule in new if trainer.is_global_zero else ():
            log.warning("%s", lasting[rule])

    def _problems(self, metrics: dict[str, float]) -> dict[str, str]:
        """The rules that hold, each with its warning and advice."""
        m = defaultdict(lambda: math.nan, metrics)  # every comparison with NaN is false
        found = {}
        kl, active = m["val/kl"], m["active_units"]
        if m["beta"] != 0 and active == 0 and kl < max(MAX_KL_WHEN_INACTIVE, self.min_kl):
            found["inactive"] = f"posterior collapse: no latent dimension is active (active_units is 0); {RAISE_KL}"
        if m["beta"] != 0 and active != 0 and 0 < kl < self.min_kl:  # exactly 0 is a model without a prior
            found["no_kl"] = f"posterior collapse: the KL is near 0 (val/kl is {kl:.2g} nats); {RAISE_KL}"
        self._best = max(self._best, m["val/elbo"])
        scale = max(abs(m["train/log_px"]) + m["train/kl"], 0.0) or math.nan
        gap, fall = (m["train/elbo"] - m["val/elbo"]) / scale, (self._best - m["val/elbo"]) / scale
        if self.max_gap < gap < math.inf and fall > self.max_gap / 5:
            found["overfit"] = (
                f"overfitting: val/elbo is falling and {gap:.0%} below train/elbo; "
                "try callbacks=early_stopping, optimizer=adamw, a smaller model.latent_dim or a smaller model.decoder"
            )
        if m["codes_used"] < MIN_CODES_USED:
            found["dead_codes"] = (
                f"dead codes: only {m['codes_used']:.1%} of the codebook is used; try a smaller "
                "model.posterior.num_codes, a larger objective.regularizers.commitment.weight or a larger "
                "model.posterior.restart_below"
            )
        if m["label_gain"] < MIN_LABEL_GAIN:
            found["ignored_labels"] = (
                f"ignored labels: a wrong label costs the decoder only {m['label_gain']:.2g} nats; try a smaller "
                "model.latent_dim, a larger objective.beta, or model.conditional=false"
            )
        return found


def far_from_prior(objective: Objective, metrics: Mapping[str, float], config: Mapping[str, Any]) -> dict[str, str]:
    """The rule that samples of the prior will be poor: next to no weight on a large KL, and no second stage."""
    beta, kl = objective.beta, metrics.get("val/kl", math.nan)
    replaced = beta == 0 and len(objective.regularizers) > 0  # by a penalty that matches all latents to the prior
    if not (beta < LOW_BETA and kl > HIGH_KL) or replaced or (config.get("second_stage") or {}).get("_target_"):
        return {}
    return {
        "far_from_prior": (
            f"prior samples will be poor: at objective.beta={beta:g} the KL is {kl:.0f} nats, so that the latents lie "
            "far from the prior; fit a prior to them (second_stage=flow, or vae_lab.fit_prior), or raise objective.beta"
        )
    }
