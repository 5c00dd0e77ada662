"""The tested model beside probabilistic PCA with as many latents: is it better than a linear one?"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from rich.console import Console
from torch import Tensor

from vae_lab.data.datamodule import datamodule_of
from vae_lab.data.images import Split
from vae_lab.metrics.baseline import ProbabilisticPCA, channel_moments, fit_baseline, reconstruction_metrics
from vae_lab.models.base import Model, evaluation_mode, parts_without_density

log = logging.getLogger("vae_lab")
NAME = "probabilistic PCA"
SHOWN = ("mse", "chroma", "elbo", "log_likelihood")


class Stopped(Exception):  # noqa: N818 - a request, not an error
    """The run was asked to stop during the comparison."""


class Baseline(Callback):
    """After the test, fits probabilistic PCA to the training images and compares it with the model on the test images.

    Sets the metrics `test/mse`, of the reconstruction at the posterior's point estimate, and with colour `test/chroma`
    and `test/reconstruction_nll`; and the module's `baseline`: the same of PCA and, if the model's ELBO bounds the log
    of a density, the exact log p(x) as `log_likelihood`. `left_out` gives the reason if there is no PCA.
    """

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Compare, on the first process; between two batches, a run that is asked to stop abandons it."""
        if not trainer.is_global_zero:
            return
        model = pl_module.evaluation_model
        num_latents = sum(math.prod(latent.shape) for latent in model.latents)
        with pl_module.stopwatch.timed("baseline"), evaluation_mode(model, pl_module.seed):
            try:
                found, compared = _compare(trainer, pl_module, num_latents)
            except Stopped:
                found, compared = {}, {"left_out": "the run was asked to stop"}
        pl_module.baseline = {"name": NAME, "num_latents": num_latents, **compared}
        pl_module.metrics |= found
        for logger in trainer.loggers:
            logger.log_metrics(found, step=trainer.global_step)
        console = Console(stderr=True)
        for line in comparison_lines(pl_module.metrics, pl_module.baseline):
            log.info(line)
            console.print(line, highlight=False, soft_wrap=True)


def comparison_lines(metrics: dict[str, float], row: dict[str, Any]) -> list[str]:
    """A line for the model and one for the baseline; empty if nothing was compared."""
    if "test/mse" not in metrics:
        return []
    model = {name: metrics[f"test/{name}"] for name in SHOWN if f"test/{name}" in metrics}
    name = f"{row['name']}, {row['num_latents']} latents"
    rows = {"model": _values(model), name: row.get("left_out") or _values(row)}
    return [f"{who:<{len(name)}}  {what}" for who, what in rows.items()]


def _values(row: dict[str, Any]) -> str:
    digits = {"mse": ".5f", "chroma": ".3f"}
    return "  ".join(f"{name} {row[name]:{digits.get(name, '.2f')}}" for name in SHOWN if name in row)


def _compare(trainer: Trainer, module: Any, num_latents: int) -> tuple[dict[str, float], dict[str, Any]]:
    """The model's metrics, and PCA's or the reason why it is left out."""
    data, model = datamodule_of(trainer), module.evaluation_model

    def rows(count: int) -> Iterator[Tensor]:
        return (x.flatten(1) for x, _ in _images(module, data, "train", count))

    fitted = fit_baseline(rows, num_latents, model.image.num_dims, data.size("train"))
    num_tested = int(sum(trainer.num_test_batches)) * data.eval_batch_size
    tested = _images(module, data, "test", min(num_tested, data.size("test")))
    ours, theirs = _test(model, fitted.pca, fitted.mean.view(model.image.shape), tested, module.device)
    ours = {f"test/{name}": value for name, value in ours.items()}
    return ours, {"left_out": fitted.left_out} if fitted.left_out else {"num_images": fitted.num_images, **theirs}


def _test(
    model: Model, pca: ProbabilisticPCA | None, mean: Tensor, batches: Iterator[Any], device: torch.device
) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics of the model and of PCA. mean: the mean training image, (C, H, W)."""
    channels, height, width = mean.shape
    ours, theirs, deviations = torch.zeros(3, channels, channels, dtype=torch.float64)
    count, log_likelihood = 0, 0.0
    for x, y in batches:
        labels = y.to(device) if y is not None and model.conditional else None
        x_hat = model.reconstruct(x.to(device), labels).mean.cpu()
        ours += channel_moments(x - x_hat)
        deviations += channel_moments(x - mean)
        count += len(x)
        if pca is not None:
            theirs += channel_moments(x - pca.reconstruct(x.flatten(1)).view_as(x))
            log_likelihood += float(pca.log_prob(x.flatten(1)).sum())
    metrics = partial(reconstruction_metrics, deviations=deviations, num_pixels=height * width, count=count)
    if pca is None:
        return metrics(ours), {}
    # The log of a density is not comparable with that of a probability mass.
    comparable = model.likelihood.levels is None and not parts_without_density(model)
    return metrics(ours), metrics(theirs) | ({"log_likelihood": log_likelihood / count} if comparable else {})


def _images(module: Any, data: Any, split: Split, count: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    for batch in data.first_images(split, count):
        if module.stop_requested():
            raise Stopped
        yield batch
