"""What callbacks may wait for: the metrics of a validation, by the names that design and README give them."""

from __future__ import annotations

from lightning.pytorch import Trainer

from vae_lab.callbacks.checkpoint import BestCheckpoint
from vae_lab.callbacks.metrics_table import MetricsTable
from vae_lab.data.module import ImageData, validates
from vae_lab.errors import UsageError
from vae_lab.models import Model
from vae_lab.signatures import nearest

TERMS = ("val/elbo", "val/log_px", "val/kl", "val/loss")


def require_monitored(trainer: Trainer, model: Model, data: ImageData, optimized_metric: str) -> None:
    """UsageError where a callback or a sweep waits for a metric that no validation of this run gives.

    Lightning would say so after the first epoch. Without a validation our own take the last weights for the best.
    """
    _require_mass_function(optimized_metric, "optimized_metric", model)
    validated = validates(trainer, data)
    known = [*TERMS, "active_units", *(["val/bits_per_dim"] if model.is_mass_function else [])]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        monitor = getattr(callback, "monitor", None)
        if monitor is None or (isinstance(callback, BestCheckpoint | MetricsTable) and not validated):
            continue
        if not validated:
            raise UsageError(
                f"{type(callback).__name__} waits for {monitor}, and nothing is validated in this run\n"
                "set data.val_size above 0 (and trainer.limit_val_batches other than 0), or leave it out of callbacks"
            )
        _require_mass_function(monitor, f"{type(callback).__name__}: monitor", model)
        if monitor not in known and not monitor.startswith(("kl/dim_", "kl/layer_")):
            near = nearest(monitor, known)
            hint = f"\ndid you mean {near}?" if near else ""
            raise UsageError(
                f"{type(callback).__name__}: monitor={monitor}: there is no such metric{hint}\n"
                f"expected one of: {', '.join(known)}"
            )


def _require_mass_function(metric: str, where: str, model: Model) -> None:
    split, _, name = metric.partition("/")
    if name == "bits_per_dim" and not model.is_mass_function:
        levels = model.likelihood.levels
        what = "a density" if levels is None else f"of {levels} levels where the pixels have {model.image.levels}"
        raise UsageError(
            f"{where}={metric}: bits per dimension are of a probability of the pixels, and "
            f"{type(model.likelihood).__name__} is {what}\n"
            f"choose model/likelihood=logistic_mixture (or bernoulli for binary pixels), or {split}/elbo"
        )
