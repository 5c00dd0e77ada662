"""Fit a second-stage prior to the model and the images of a run, and evaluate the model under it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from vae_lab.core import Prior
from vae_lab.data.batches import Batch
from vae_lab.data.datamodule import ImageDataModule
from vae_lab.data.images import Split
from vae_lab.metrics.diagnostics import Diagnostics
from vae_lab.metrics.elbo_sums import ElboSums
from vae_lab.metrics.evaluator import SplitEvaluator
from vae_lab.metrics.importance import importance_bound
from vae_lab.models.base import LabelledBatches, parts_without_density
from vae_lab.models.vae import VAE
from vae_lab.objectives.bounds import elbo
from vae_lab.objectives.objective import Objective, Weights
from vae_lab.objectives.schedules import Constant
from vae_lab.second_stage.fitting import (
    IMPORTANCE,
    LATENTS,
    SAMPLES,
    FittingTask,
    LatentSamples,
    sample_posteriors,
)
from vae_lab.second_stage.stage import SecondStage, build_prior, require_single_layer
from vae_lab.training.build import build_node, restore_model
from vae_lab.utils.callables import Track
from vae_lab.utils.errors import UsageError
from vae_lab.utils.rng import FIT, seed_noise

Metrics = dict[str, float | None]  # in nats per image; None where the ELBO is not a bound on log p(x)
EVALUATED: tuple[Split, ...] = ("val", "test")
MIN_TRAINING_IMAGES = 512  # used even after a shorter training, if the split has as many
IMPORTANCE_BATCH = 50  # images per estimate of the importance bound


class PriorFit:
    """A second stage with the model of a run's checkpoint, the images of its checked config, and a prior to fit.

    UsageError: an unsupported model or kind of latents; images that are not those of the run.
    """

    def __init__(
        self,
        saved: dict[str, Any],
        run_config: DictConfig,
        node: DictConfig,
        device: torch.device,
        seed: int,
        track: Track,
    ) -> None:
        self.device, self.seed, self.track = device, seed, track
        self.stage: SecondStage = build_node(node)
        self.model = require_single_layer(restore_model(saved, run_config).to(device))
        self.prior = build_prior(self.stage, self.model, seed).to(device)  # before the images are read, to fail early
        self.data: ImageDataModule = build_node(run_config.data)
        self.data.setup()
        if self.data.image != self.model.image:
            raise UsageError(f"data: the model was trained on images of {self.model.image}\nfound {self.data.image}")
        if not self.data.size("train"):
            raise UsageError("data: no training images found; a prior is fitted to their latents")
        self.sizes = split_sizes(run_config, self.data, saved["global_step"])
        self.num_scored = min(self.stage.num_images or self.sizes["test"], self.sizes["test"])
        options = run_config.objective
        objective = Objective(elbo, Constant(), num_samples=options.num_samples, kl=options.kl)
        # The processes that trained beside this one have ended, so no sums are synchronised.
        sums = ElboSums.for_latents(self.model.latents, sync_on_compute=False).to(device)
        diagnostics = Diagnostics(self.model).to(device)
        self.evaluator = SplitEvaluator(sums, diagnostics, objective, self.data.preprocess, run_config.seed)

    def run(self) -> dict[str, Any]:
        """Fit the prior, then evaluate the model under its own prior (`trained`) and under the `fitted` one.

        log_pz: mean log p(z) in nats of the latents that the prior is `fitted` to, and of `held_out` ones.
        """
        start = time.perf_counter()
        latents = self._sample_posteriors("train", 0)
        if self.sizes["val"]:
            held_out = self._sample_posteriors("val", 1)
        else:
            latents, held_out = latents.split_held_out(self.stage.samples_per_image)
        task = FittingTask(self.prior, latents, held_out, self.seed, self.track)
        self.stage.fitting(task)
        log_pz = {"fitted": task.mean_log_prob(latents), "held_out": task.mean_log_prob(held_out)}
        fitted_at = time.perf_counter()
        metrics = {"trained": self._metrics()}
        with with_prior(self.model, self.prior.eval()):
            metrics["fitted"] = self._metrics()
        seconds = {"fit": fitted_at - start, "comparison": time.perf_counter() - fitted_at}
        return {"metrics": metrics, "log_pz": log_pz, "protocol": self._protocol(), "seconds": seconds}

    def _sample_posteriors(self, split: Split, number: int) -> LatentSamples:
        images = self.track(self.images(split, self.sizes[split]), "latents", self._num_batches(split))
        return sample_posteriors(self.model, images, self.stage.samples_per_image, self.seed, FIT, LATENTS, number)

    def _metrics(self) -> Metrics:
        """ELBO, log_px and KL of the validation and test images, and the importance bound of the first test images."""
        found: Metrics = {}
        for split in [split for split in EVALUATED if self.sizes[split]]:
            loader = self.data.val_dataloader() if split == "val" else self.data.test_dataloader()
            batches = self.track(islice(loader, self._num_batches(split)), "ELBO", self._num_batches(split))
            on_device = (Batch(x.to(self.device), None if y is None else y.to(self.device)) for x, y in batches)
            found |= elbo_terms(self.evaluator, self.model, split, on_device)
        if self.num_scored:
            images, num_samples = self.images("test", self.num_scored), self.stage.num_samples
            found[f"test/iw_elbo_{num_samples}"] = mean_importance_bound(
                self.model, images, num_samples, self.seed, self.track
            )
        return found

    def _num_batches(self, split: Split) -> int:
        return math.ceil(self.sizes[split] / self.data.eval_batch_size)

    def images(self, split: Split, count: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The first `count` images of a split, preprocessed as for evaluation; labels for a conditional model only."""
        for x, y in self.data.first_images(split, count):
            yield x.to(self.device), y.to(self.device) if y is not None and self.model.conditional else None

    @torch.no_grad()
    def samples(self, prior: Prior, num_latents: int, num_classes: int | None = None) -> Tensor:
        """Decoded means of samples of a prior, (num_latents, C, H, W) on the CPU.

        num_classes: decode the same latents with each of the first labels, (num_classes, num_latents, C, H, W).
        NotImplementedError: a prior without samples.
        """
        seed_noise(self.device, self.seed, FIT, SAMPLES)
        with with_prior(self.model, prior):
            z, y = self.model.sample_latents(num_latents), None
        if num_classes is not None:
            z = z.expand(num_classes, *z.shape)
            y = torch.arange(num_classes, device=self.device).unsqueeze(1).expand(num_classes, num_latents)
        return self.model.decode(z, y).mean.float().cpu()

    def _protocol(self) -> dict[str, Any]:
        return {
            "binarize": self.data.preprocess.binarize,
            "images": dict(self.sizes),
            "elbo": {"samples_per_image": self.evaluator.objective.num_samples, "kl": self.evaluator.objective.kl},
            f"test/iw_elbo_{self.stage.num_samples}": {"images": self.num_scored},
            "latents": {"samples_per_image": self.stage.samples_per_image},
            "held_out": "val" if self.sizes["val"] else "every twentieth training image, not fitted to",
            "seed": self.seed,
            "device": str(self.device),
        }


def split_sizes(run_config: DictConfig, data: ImageDataModule, steps: int) -> dict[Split, int]:
    """Images of each split that a run used up to an optimiser step, so that a short run is fitted quickly."""
    trained = steps * data.batch_size * run_config.optimizer.accumulate
    sizes: dict[Split, int] = {"train": min(data.size("train"), max(trained, MIN_TRAINING_IMAGES))}
    for split in EVALUATED:
        size, limit = data.size(split), run_config.trainer[f"limit_{split}_batches"]
        if isinstance(limit, float):  # a fraction of the batches, as Lightning understands it
            limit = int(limit * math.ceil(size / data.eval_batch_size))
        sizes[split] = size if limit is None else min(size, limit * data.eval_batch_size)
    return sizes


@contextmanager
def with_prior(model: VAE, prior: Prior) -> Iterator[None]:
    """Replace the model's prior within the context."""
    before = model.replace_prior(prior)
    try:
        yield
    finally:
        model.replace_prior(before)


@torch.no_grad()
def elbo_terms(evaluator: SplitEvaluator, model: VAE, split: Split, batches: Iterable[Batch]) -> Metrics:
    """`<split>/elbo`, `/log_px` and `/kl`, with the noise of the run's own evaluation."""
    evaluator.sums.reset()
    for number, batch in enumerate(batches):
        evaluator.add(model, batch, Weights(), number)
    means, bounded = evaluator.means(model, split), not parts_without_density(model)
    names = [f"{split}/{name}" for name in ("elbo", "log_px", "kl")]
    return {name: means[name] if bounded or name.endswith("log_px") else None for name in names}


def mean_importance_bound(
    model: VAE, images: LabelledBatches, num_samples: int, seed: int, track: Track
) -> float | None:
    """Importance-weighted bound in nats, mean over images; None without a bound."""
    if parts_without_density(model):
        return None
    bounds: list[Tensor] = []
    for number, (x, y) in enumerate(images):
        parts = torch.arange(len(x), device=x.device).split(IMPORTANCE_BATCH)
        for rows in track(parts, "importance bound", len(parts)):
            seed_noise(x.device, seed, FIT, IMPORTANCE, number, int(rows[0]))
            bounds.append(importance_bound(model, x[rows], num_samples, y=None if y is None else y[rows]))
    return float(torch.cat(bounds).double().mean())
