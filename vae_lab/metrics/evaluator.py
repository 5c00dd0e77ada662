"""Evaluation of a whole split under the ELBO, whatever the training objective, with its own noise; no Lightning."""

from __future__ import annotations

from torch import Tensor

from vae_lab.data.batches import Batch
from vae_lab.data.images import Split
from vae_lab.data.transforms import Preprocess
from vae_lab.metrics.diagnostics import Diagnostics
from vae_lab.metrics.elbo_sums import ElboSums, bits_per_dim
from vae_lab.models.base import LabelledBatches, Model, fit_likelihood
from vae_lab.objectives.objective import Objective, Weights
from vae_lab.utils.distributed import ONE_PROCESS, Share
from vae_lab.utils.rng import EVALUATE, FIT, seed_noise


class SplitEvaluator:
    """One validation or test pass: `start`, `add` for each batch, then `means`.

    sums, diagnostics: on the device of the images. kl_per_dim: KL of each latent dimension at the last
    `latent_metrics`, (D,). fitted_at: step of the weights that the likelihood was last fitted to.
    """

    def __init__(
        self, sums: ElboSums, diagnostics: Diagnostics, objective: Objective, preprocess: Preprocess, seed: int
    ) -> None:
        self.sums, self.diagnostics = sums, diagnostics
        self.objective, self.preprocess, self.seed = objective, preprocess, seed
        self.kl_per_dim: Tensor | None = None
        self.fitted_at = -1

    def start(self, model: Model, training_batches: LabelledBatches, step: int) -> None:
        """Reset the sums and fit the likelihood."""
        self.sums.reset()
        self.diagnostics.reset()
        self.fit_likelihood(model, training_batches, step)

    def fit_likelihood(self, model: Model, training_batches: LabelledBatches, step: int) -> None:
        """Fit the likelihood: same images x (B, C, H, W) and noise, hence the same result, in all processes."""
        seed_noise(self.sums.device, self.seed, FIT)
        training = model.training
        fit_likelihood(model.eval(), training_batches)
        model.train(training)
        self.fitted_at = step

    def add(self, model: Model, batch: Batch, weights: Weights, number: int, share: Share = ONE_PROCESS) -> None:
        """Add the share of a process in batch `number`, uint8 images (B, C, H, W). weights: only used in the loss."""
        total = len(batch.images)
        if not share.weight(total):
            return
        own = share.rows(total)
        seed_noise(self.sums.device, self.seed, EVALUATE, 0, number)
        x = self.preprocess.evaluate(batch.images[own])
        y = batch.labels[own] if model.conditional and batch.labels is not None else None
        with share.noise(total, self.objective.num_samples):
            trace = model(x, self.objective.num_samples, y)
        terms = self.objective.terms(trace, x)
        loss, _ = self.objective(model.regularizer_inputs(trace, x, y), terms, weights)
        self.sums.update(trace, terms, loss)
        self.diagnostics.update(model, trace, terms.log_px, x, y)

    def means(self, model: Model, split: Split) -> dict[str, float]:
        """The sums' `compute` in nats per image as `<split>/elbo` and so on, and `<split>/bits_per_dim`."""
        means = {f"{split}/{name}": float(value) for name, value in self.sums.compute().items()}
        if model.is_mass_function:
            means[f"{split}/bits_per_dim"] = bits_per_dim(-means[f"{split}/elbo"], model.image.num_dims)
        return means

    def latent_metrics(self) -> dict[str, float]:
        """`active_units`, `kl/dim_<d>` or `kl/layer_<l>`, and the diagnostics; call after `means`."""
        with self.sums.sync_context():
            self.kl_per_dim = self.sums.kl_means()
            return self.sums.latent_metrics() | self.diagnostics.compute()
