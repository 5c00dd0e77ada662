"""Checks the metric names that callbacks monitor against the metrics of a validation."""

from __future__ import annotations

from lightning.pytorch import Trainer
from omegaconf import DictConfig

from vae_lab.callbacks.checkpoint import BestCheckpoint
from vae_lab.config.schema import LOWER_IS_BETTER
from vae_lab.config.validation import names_to_choose
from vae_lab.data.datamodule import ImageDataModule, has_validation
from vae_lab.models.base import Model, parts_without_density
from vae_lab.objectives.objective import IMPORTANCE_WEIGHTED, Objective
from vae_lab.utils.errors import UsageError

TERMS = ("val/elbo", "val/log_px", "val/kl", "val/loss")


def chosen_monitor(node: DictConfig, model: Model, objective: Objective) -> dict[str, str]:
    """Options of a callback with `monitor: auto`, else none: val/elbo, or val/loss where something else is minimised.

    That is at beta = 0, under an importance-weighted bound, and where the ELBO is no bound.
    """
    if node.get("monitor") != "auto":
        return {}
    other = objective.beta == 0 or objective.bound in IMPORTANCE_WEIGHTED or parts_without_density(model)
    return {"monitor": "val/loss", "mode": "min"} if other else {"monitor": "val/elbo"}


def require_known_monitors(trainer: Trainer, model: Model, data: ImageDataModule, optimized_metric: str) -> None:
    """Raise UsageError if a callback or a sweep monitors a metric that no validation of this run computes.

    Lightning would raise after the first epoch. Without validation, BestCheckpoint keeps the last weights.
    """
    known, validated = validation_metrics(model), has_validation(trainer, data)
    if not optimized_metric.startswith("train/"):
        _require_known(optimized_metric.replace("test/", "val/"), "optimized_metric", known, model)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        monitor = getattr(callback, "monitor", None)
        if monitor is None or (isinstance(callback, BestCheckpoint) and not validated):
            continue
        name = type(callback).__name__
        if not validated:
            raise UsageError(
                f"{name} monitors {monitor}, but this run has no validation\n"
                "set data.val_size above 0 (and trainer.limit_val_batches other than 0), or remove it from callbacks"
            )
        _require_known(monitor, f"{name}: monitor", known, model)
        if monitor.endswith(LOWER_IS_BETTER) and getattr(callback, "mode", "min") == "max":
            raise UsageError(
                f"{name}: lower {monitor} is better, but mode=max\n"
                "set mode=min beside the monitor (callbacks.best.mode=min)"
            )


def validation_metrics(model: Model) -> list[str]:
    """Names of the metrics of a validation; `kl/dim_` is the prefix of those of single dimensions."""
    known = [*TERMS, *(["val/bits_per_dim"] if model.is_mass_function else [])]
    if len(model.latents) > 1:
        known += [f"kl/layer_{layer}" for layer in range(len(model.latents))]
    elif model.latents[0].kind != "codes":
        known += ["active_units", *(["kl/dim_"] if model.latents[0].kind == "vector" else [])]
    if any(latent.num_codes for latent in model.latents):
        known += ["codes_used", "code_perplexity"]
    return [*known, *(["label_gain"] if model.conditional and len(model.latents) == 1 else [])]


def _require_known(metric: str, where: str, known: list[str], model: Model) -> None:
    split, _, name = metric.partition("/")
    if metric in known or (metric.startswith("kl/dim_") and "kl/dim_" in known):
        return
    if name == "bits_per_dim" and not model.is_mass_function:
        raise UsageError(f"{where}={metric}: bits per dimension need {_missing_mass_function(model, split)}")
    raise UsageError(f"{where}={metric}: no such metric{names_to_choose(metric, known)}")


def _missing_mass_function(model: Model, split: str) -> str:
    if points := parts_without_density(model):
        return f"a bound on log p(x), and {' and '.join(points)} has no density\nuse {split}/log_px"
    levels = model.likelihood.levels
    found = "a density" if levels is None else f"one over {levels} levels, not {model.image.levels}"
    return (
        f"a probability mass function of the pixels, and {type(model.likelihood).__name__} is {found}\n"
        f"use model/likelihood=logistic_mixture (or bernoulli for binary pixels), or {split}/elbo"
    )
