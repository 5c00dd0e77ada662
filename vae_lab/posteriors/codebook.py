"""A codebook: vectors that are learned by averaging what they stand for."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from vae_lab.distributions.codes import merge_code_features
from vae_lab.utils.distributed import all_reduce_sum, broadcast_from_first


class Codebook(nn.Module):
    """K vectors that follow, as moving averages, the outputs of an encoder that they stand for.

    The features of each place are cut into `num_groups` of `code_dim`, each of which is one code; all groups and places
    share the vectors. Averages: van den Oord et al. 2017, arXiv:1711.00937, appendix A.1. decay: theirs; the first
    batch counts whole. restart_below: a code whose share of the outputs falls below this share of an even one starts
    anew from a random output of the batch (Dhariwal et al. 2020, arXiv:2005.00341, section 3.1), as all codes do at the
    first batch; 0 restarts only codes that were never used.

    The vectors change while training, before they are used, and take no gradient. Several processes keep equal books.
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
        self.register_buffer("sums", torch.zeros(num_codes, code_dim))  # of a batch's outputs of each code, averaged
        self.register_buffer("usage", torch.zeros(num_codes))  # how many they are, averaged

    @torch.no_grad()
    def forward(self, inputs: Tensor) -> Tensor:
        """The numbers of the codes nearest to an encoder's output, after the codes have followed it while training.

        inputs: (N, F, *map) to (N, G, *map), int64.
        """
        rows = self._rows(inputs)
        if self.training:
            self._restart_dead_codes(rows)
        indices = self._nearest(rows)
        if self.training:
            self._update_averages(rows, indices)
        return self._as_indices(indices, inputs)

    @torch.no_grad()
    def indices(self, z: Tensor) -> Tensor:
        """The numbers of the codes nearest to latents, int64: (N, F, *map) to (N, G, *map). Changes nothing."""
        return self._as_indices(self._nearest(self._rows(z)), z)

    def embed(self, indices: Tensor) -> Tensor:
        """The latents of code numbers, (N, G, *map) to (N, F, *map); no gradient."""
        return merge_code_features(embedding(indices, self.vectors))

    def _rows(self, z: Tensor) -> Tensor:
        """What is one code each, (N * G * places, code_dim)."""
        if z.dim() < 2 or z.shape[1] != self.num_groups * self.code_dim:
            raise ValueError(f"codes of {self.num_groups * self.code_dim} features (N, F, *map); found {(*z.shape,)}")
        groups = z.float().reshape(len(z), self.num_groups, self.code_dim, *z.shape[2:])
        return groups.movedim(2, -1).reshape(-1, self.code_dim)

    def _as_indices(self, indices: Tensor, z: Tensor) -> Tensor:
        return indices.reshape(len(z), self.num_groups, *z.shape[2:])

    def _nearest(self, rows: Tensor) -> Tensor:
        """|c|^2 / 2 - x c is smallest; around the codes' centre, for far from 0 it would be lost in rounding."""
        centre = self.vectors.mean(0)
        vectors = self.vectors - centre
        with torch.autocast(rows.device.type, enabled=False):  # it would round the products to 8 bits
            return torch.addmm(vectors.square().sum(1) / 2, rows - centre, vectors.T, alpha=-1).argmin(1)

    def _restart_dead_codes(self, rows: Tensor) -> None:
        fair = self.usage.mean()
        dead = self.usage <= self.restart_below * fair  # at the first batch all, for none is used
        drawn = broadcast_from_first(self._random_rows(rows))
        self.usage.copy_(torch.where(dead, fair, self.usage))
        self.sums.copy_(torch.where(dead[:, None], fair * drawn, self.sums))
        self.vectors.copy_(torch.where(dead[:, None], drawn, self.vectors))

    def _random_rows(self, rows: Tensor) -> Tensor:
        """As many rows as there are codes, in random order; again from the first where there are fewer."""
        order = torch.rand(len(rows), device=rows.device).topk(min(self.num_codes, len(rows))).indices
        return rows[order[torch.arange(self.num_codes, device=rows.device) % len(order)]]

    def _update_averages(self, rows: Tensor, indices: Tensor) -> None:
        counts = torch.ones_like(rows[:, :1])
        batch = rows.new_zeros(self.num_codes, self.code_dim + 1)
        batch = all_reduce_sum(batch.index_add_(0, indices, torch.cat((rows, counts), 1)))
        self.sums.lerp_(batch[:, :-1], 1 - self.decay)
        self.usage.lerp_(batch[:, -1], 1 - self.decay)
        used = batch[:, -1:] > 0  # the others' averages shrink alike, and at the first batch are 0 / 0
        self.vectors.copy_(torch.where(used, self.sums / self.usage[:, None], self.vectors))
