"""Fit a second-stage prior to the model and the images of a run, and evaluate the model under it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from vae_lab.data.datamodule import ImageDataModule
from vae_lab.data.images import Split
from vae_lab.models.base import Model
from vae_lab.models.vae import VAE
from vae_lab.second_stage.comparison import ElboSettings, elbo_terms, mean_importance_bound, with_prior
from vae_lab.second_stage.fitting import LATENTS, SAMPLES, FittingTask, LatentSamples, ProgressCallback
from vae_lab.second_stage.stage import SecondStage, build_prior, require_single_layer, sample_posteriors
from vae_lab.training.build import build_node, restore_model
from vae_lab.utils.errors import UsageError
from vae_lab.utils.rng import FIT, seed_noise

Metrics = dict[str, float | None]
MIN_TRAINING_IMAGES = 512  # used even after a shorter training, if the split has as many


@dataclass(frozen=True)
class FirstImages:
    """The first `size` images of a split, as `EvaluationImages`."""

    data: ImageDataModule
    split: Split
    size: int
    device: torch.device
    conditional: bool

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        left = len(self)
        for x, y in islice(self._batches(), -(-left // self.data.eval_batch_size)):
            yield x[:left].to(self.device), y[:left].to(self.device) if y is not None and self.conditional else None
            left -= len(x)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        if self.split == "train":
            return self.data.first_training_images(len(self))
        batches = self.data.val_dataloader() if self.split == "val" else self.data.test_dataloader()
        return ((self.data.preprocess.evaluate(batch.images), batch.labels) for batch in batches)


class PriorFitResults(NamedTuple):
    """Results of a prior fit, as plain values."""

    metrics: dict[str, Metrics]  # keys: `trained`, the prior of the training; `fitted`
    log_pz: dict[str, float]  # mean in nats; keys: latents that the prior is `fitted` to, `held_out` latents
    protocol: dict[str, Any]
    seconds: dict[str, float]


@dataclass(frozen=True)
class PriorFit:
    """A second stage with a run's model and images, and a prior to fit."""

    stage: SecondStage
    model: VAE
    prior: nn.Module
    data: ImageDataModule
    sizes: Mapping[Split, int]  # images to use of each split
    device: torch.device
    seed: int
    report_progress: ProgressCallback

    def run(self, estimate: ElboSettings) -> PriorFitResults:
        """Fit the prior, then evaluate the model under its own prior and under the fitted one."""
        start = time.perf_counter()
        latents, held_out = self._latents()
        task = FittingTask(self.prior, latents, held_out, self.seed, self.report_progress)
        self.stage.fitting(task)
        log_pz = {"fitted": task.mean_log_prob(latents), "held_out": task.mean_log_prob(held_out)}
        fitted_at = time.perf_counter()
        metrics = self._compare_priors(estimate)
        seconds = {"fit": fitted_at - start, "comparison": time.perf_counter() - fitted_at}
        return PriorFitResults(metrics, log_pz, self._protocol(estimate), seconds)

    def _latents(self) -> tuple[LatentSamples, LatentSamples]:
        """Latents to fit to and held-out ones: training and validation images, or a split of the training images."""
        latents = self._sample_posteriors("train", 0)
        if self.sizes["val"]:
            return latents, self._sample_posteriors("val", 1)
        return latents.split_held_out(self.stage.samples_per_image)

    def _sample_posteriors(self, split: Split, number: int) -> LatentSamples:
        seed = (self.seed, FIT, LATENTS, number)
        return sample_posteriors(
            self.model, self._images(split), self.stage.samples_per_image, seed, self.report_progress
        )

    def _compare_priors(self, estimate: ElboSettings) -> dict[str, Metrics]:
        trained = self._metrics(estimate)
        with with_prior(self.model, self.prior.eval()):
            return {"trained": trained, "fitted": self._metrics(estimate)}

    def _metrics(self, estimate: ElboSettings) -> Metrics:
        found: Metrics = {}
        splits: tuple[Split, ...] = ("val", "test")
        for split in (split for split in splits if self.sizes[split]):
            terms = elbo_terms(self.model, self._images(split), estimate, self.report_progress)
            found |= {f"{split}/{name}": value for name, value in terms.items()}
        if images := self._importance_images:
            count = self.stage.num_samples
            bound = mean_importance_bound(self.model, images, count, self.seed, self.report_progress)
            found[f"test/iw_elbo_{count}"] = bound
        return found

    def _images(self, split: Split, most: int | None = None) -> FirstImages:
        size = self.sizes[split] if most is None else min(most, self.sizes[split])
        return FirstImages(self.data, split, size, self.device, self.model.conditional)

    @property
    def _importance_images(self) -> FirstImages:
        """Images whose importance-weighted bound is estimated."""
        return self._images("test", self.stage.num_images)

    @torch.no_grad()
    def samples(self, num_latents: int, num_classes: int | None = None) -> Tensor:
        """Decoded means of samples of the fitted prior, (num_latents, C, H, W) on the CPU.

        num_classes: decode the same latents with each of the first labels, (num_classes, num_latents, C, H, W).
        """
        seed_noise(self.device, self.seed, FIT, SAMPLES)
        with with_prior(self.model, self.prior):
            z, y = self.model.sample_latents(num_latents), None
            if num_classes is not None:
                z = z.expand(num_classes, *z.shape)
                y = torch.arange(num_classes, device=self.device)[:, None].expand(-1, num_latents)
            return self.model.decode(z, y).mean.float().cpu()

    def _protocol(self, estimate: ElboSettings) -> dict[str, Any]:
        return {
            "binarize": self.data.preprocess.binarize,
            "images": dict(self.sizes),
            "elbo": {"samples_per_image": estimate.num_samples, "kl": estimate.kl},
            f"test/iw_elbo_{self.stage.num_samples}": {"images": len(self._importance_images)},
            "latents": {"samples_per_image": self.stage.samples_per_image},
            "held_out": "val" if self.sizes["val"] else "every twentieth training image, not fitted to",
            "seed": self.seed,
            "device": str(self.device),
        }


def prepare_prior_fit(
    saved: dict[str, Any],
    run_config: DictConfig,
    node: DictConfig,
    device: torch.device,
    seed: int,
    report_progress: ProgressCallback,
) -> PriorFit:
    """Build a config's second stage for the model of a run's checkpoint and the images of its checked config.

    UsageError: an unsupported model or kind of latents; images that are not those of the run.
    """
    stage: SecondStage = build_node(node)
    model = require_single_layer(restore_model(saved, run_config).to(device))
    prior = build_prior(stage, model, seed).to(device)  # before the images are read, to fail early
    data: ImageDataModule = build_node(run_config.data)
    require_same_images(data, model)
    data.setup()
    sizes = split_sizes(run_config, data, saved["global_step"])
    return PriorFit(stage, model, prior, data, sizes, device, seed, report_progress)


def split_sizes(run_config: DictConfig, data: ImageDataModule, steps: int) -> dict[Split, int]:
    """Images of each split that a run used up to an optimiser step, so that a short run is fitted quickly."""
    trained = steps * data.batch_size * run_config.optimizer.accumulate
    return {
        "train": min(data.size("train"), max(trained, MIN_TRAINING_IMAGES)),
        "val": num_evaluated(data, "val", run_config.trainer.limit_val_batches),
        "test": num_evaluated(data, "test", run_config.trainer.limit_test_batches),
    }


def num_evaluated(data: ImageDataModule, split: Split, limit: int | float | None) -> int:
    """Images of a split within `limit`: a number of batches, or a fraction of them (Lightning's limit_*_batches)."""
    size, batch = data.size(split), data.eval_batch_size
    if limit is None:
        return size
    return min(size, batch * (limit if isinstance(limit, int) else int(limit * math.ceil(size / batch))))


def require_same_images(data: ImageDataModule, model: Model) -> None:
    """UsageError: the images have another spec than the run's, or there are no training images."""
    if data.image != model.image:
        raise UsageError(f"data: the model was trained on images of {model.image}\nfound {data.image}")
    if not data.size("train"):
        raise UsageError("data: no training images found; a prior is fitted to their latents")


def elbo_settings(run_config: DictConfig) -> ElboSettings:
    """The settings with which a run estimated its ELBO."""
    return ElboSettings(run_config.objective.num_samples, run_config.objective.kl, run_config.seed)
