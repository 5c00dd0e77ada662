"""Posterior families over discrete latents: vector quantisation with its codebook, and categorical variables."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import embedding

from vae_lab.core import LatentKind, Posterior
from vae_lab.distributions.codes import OneHotCategoricals, OneHotCodes, QuantizedDelta, merge_code_features
from vae_lab.utils.distributed import all_reduce_sum, broadcast_from_first


class Codebook(nn.Module):
    """The code vectors of vector quantisation: K moving averages of the encoder outputs assigned to them.

    The features of each position are split into `num_groups` groups of `code_dim`, one code each; all groups and
    positions share the vectors. Averages: van den Oord et al. 2017, arXiv:1711.00937, appendix A.1. decay: of the
    averages; the first batch has full weight. restart_below: a code used less than this fraction of the mean usage is
    reset to a random output of the batch (Dhariwal et al. 2020, arXiv:2005.00341, section 3.1), as all codes are at the
    first batch; 0 resets only codes that were never used.

    In training mode the vectors are updated before they are used, without gradient, and equally in all processes.
    ValueError: fewer than two codes, rates outside [0, 1).
    """

    vectors: Tensor
    sums: Tensor
    usage: Tensor

    def __init__(
        self, num_groups: int, code_dim: int, num_codes: int, decay: float = 0.99, restart_below: float = 0.05
    ) -> None:
        super().__init__()
        if num_codes < 2:
            raise ValueError(f"model.posterior.num_codes is at least 2; found {num_codes}")
        for name, rate in (("decay", decay), ("restart_below", restart_below)):
            if not 0 <= rate < 1:
                raise ValueError(f"model.posterior.{name} lies in [0, 1); found {rate}")
        self.num_groups, self.code_dim, self.num_codes = num_groups, code_dim, num_codes
        self.decay, self.restart_below = decay, restart_below
        self.register_buffer("vectors", torch.randn(num_codes, code_dim))
        # Moving averages over batches: the sum of the outputs assigned to each code, and their count.
        self.register_buffer("sums", torch.zeros(num_codes, code_dim))
        self.register_buffer("usage", torch.zeros(num_codes))

    @torch.no_grad()
    def forward(self, inputs: Tensor) -> Tensor:
        """Indices of the nearest codes, int64: (N, F, *map) to (N, G, *map). Updates the codebook in training mode."""
        rows = self._rows(inputs)
        if self.training:
            self._restart_dead_codes(rows)
        indices = self._nearest(rows)
        if self.training:
            self._update_averages(rows, indices)
        return self._as_indices(indices, inputs)

    @torch.no_grad()
    def indices(self, z: Tensor) -> Tensor:
        """Indices of the nearest codes, int64: (N, F, *map) to (N, G, *map). Never updates the codebook."""
        return self._as_indices(self._nearest(self._rows(z)), z)

    def embed(self, indices: Tensor) -> Tensor:
        """Latents of code indices, (N, G, *map) to (N, F, *map); no gradient."""
        return merge_code_features(embedding(indices, self.vectors))

    def _rows(self, z: Tensor) -> Tensor:
        """One row per code, (N * G * positions, code_dim)."""
        if z.dim() < 2 or z.shape[1] != self.num_groups * self.code_dim:
            raise ValueError(f"codes of {self.num_groups * self.code_dim} features (N, F, *map); found {(*z.shape,)}")
        groups = z.float().reshape(len(z), self.num_groups, self.code_dim, *z.shape[2:])
        return groups.movedim(2, -1).reshape(-1, self.code_dim)

    def _as_indices(self, indices: Tensor, z: Tensor) -> Tensor:
        return indices.reshape(len(z), self.num_groups, *z.shape[2:])

    def _nearest(self, rows: Tensor) -> Tensor:
        """Indices that minimise |c|^2 / 2 - x c; centred on the mean code, since far from 0 it is lost in rounding."""
        centre = self.vectors.mean(0)
        vectors = self.vectors - centre
        with torch.autocast(rows.device.type, enabled=False):  # bf16 would round the products to 8 bits
            return torch.addmm(vectors.square().sum(1) / 2, rows - centre, vectors.T, alpha=-1).argmin(1)

    def _restart_dead_codes(self, rows: Tensor) -> None:
        fair = self.usage.mean()
        dead = self.usage <= self.restart_below * fair  # all of them at the first batch: usage is 0
        replacements = broadcast_from_first(self._random_rows(rows))
        self.usage.copy_(torch.where(dead, fair, self.usage))
        self.sums.copy_(torch.where(dead[:, None], fair * replacements, self.sums))
        self.vectors.copy_(torch.where(dead[:, None], replacements, self.vectors))

    def _random_rows(self, rows: Tensor) -> Tensor:
        """Sample num_codes rows in random order, repeating them if there are fewer."""
        order = torch.rand(len(rows), device=rows.device).topk(min(self.num_codes, len(rows))).indices
        return rows[order[torch.arange(self.num_codes, device=rows.device) % len(order)]]

    def _update_averages(self, rows: Tensor, indices: Tensor) -> None:
        counts = torch.ones_like(rows[:, :1])
        batch = rows.new_zeros(self.num_codes, self.code_dim + 1)
        batch = all_reduce_sum(batch.index_add_(0, indices, torch.cat((rows, counts), 1)))
        self.sums.lerp_(batch[:, :-1], 1 - self.decay)
        self.usage.lerp_(batch[:, -1], 1 - self.decay)
        used = batch[:, -1:] > 0  # an unused code's sum and usage decay alike, and are 0 / 0 at the first batch
        self.vectors.copy_(torch.where(used, self.sums / self.usage[:, None], self.vectors))


class NearestCode(Posterior):
    """A point mass at the codes nearest to the encoder's output: VQ-VAE. van den Oord et al. 2017, arXiv:1711.00937.

    latent_dim: features of each position. code_dim: features of one code, a divisor of latent_dim; default latent_dim,
    one code per position. num_codes, decay, restart_below: see `Codebook`. Train it with the regularizer `commitment`,
    which keeps the encoder's output near its codes. ValueError: a code_dim that does not divide latent_dim, or options
    that `Codebook` rejects.
    """

    kind: LatentKind = "codes"
    codes: Codebook

    def __init__(
        self,
        latent_dim: int,
        num_codes: int = 512,
        code_dim: int | None = None,
        decay: float = 0.99,
        restart_below: float = 0.05,
    ) -> None:
        super().__init__()
        size = latent_dim if code_dim is None else code_dim
        if size < 1 or latent_dim % size:
            raise ValueError(
                f"model.posterior.code_dim={size}: not a divisor of model.latent_dim={latent_dim}; "
                f"choose a divisor of {latent_dim}, or null for one code per position"
            )
        self.num_params = self.num_features = latent_dim
        self.codes = Codebook(latent_dim // size, size, num_codes, decay, restart_below)

    def forward(self, params: Tensor) -> Distribution:
        """params: (B, D, *map), the vectors to quantise. In training mode they update the codebook."""
        inputs = params.float()
        indices = self.codes(inputs)
        return QuantizedDelta(inputs, indices, self.codes.embed(indices))


class RelaxedCategorical(Posterior):
    """latent_dim categorical variables per position as one-hot vectors: Gumbel-softmax, or Concrete.

    Jang et al. 2017, arXiv:1611.01144; Maddison et al. 2017, arXiv:1611.00712. num_categories: of each variable.
    temperature: of the relaxation. In training mode samples are relaxed, which gives them a gradient, and the objective
    is no bound: the KL, also an estimated one, is that of the categorical variables, but the decoder gets relaxed
    samples. In evaluation mode samples are one-hot, and the reported ELBO is a bound for that discrete model.
    ValueError: fewer than two categories, temperature <= 0.
    """

    kind: LatentKind = "codes"
    codes: OneHotCodes

    def __init__(self, latent_dim: int, num_categories: int = 10, temperature: float = 2 / 3) -> None:
        super().__init__()
        if num_categories < 2:
            raise ValueError(f"model.posterior.num_categories is at least 2; found {num_categories}")
        if temperature <= 0:
            raise ValueError(f"model.posterior.temperature is above 0; found {temperature}")
        self.num_params = self.num_features = latent_dim * num_categories
        self.temperature = temperature
        self.codes = OneHotCodes(num_categories)

    def forward(self, params: Tensor) -> Distribution:
        """params: (B, D K, *map), K logits of each variable."""
        logits = params.float().unflatten(1, (-1, self.codes.num_codes))
        return OneHotCategoricals(logits, self.temperature if self.training else None)
