"""The scatter of the posterior centres as a map: from a place to a position on the picture, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from vae_lab.explore.explorer import Explorer
from vae_lab.figures.canvas import DPI, content_box, figure_png
from vae_lab.figures.latent_paths import principal_directions
from vae_lab.figures.pictures import latent_scatter


class LatentMap:
    """The plane of two latent dimensions, or of two principal components of more, drawn by `latent_scatter`.

    A position is a share of the picture's width and height from its upper left corner. Away from the plane a place
    has its nearest point; what is decoded at a position is the point of the plane.
    """

    def __init__(self, explorer: Explorer) -> None:
        centres = explorer.centres
        self.origin, self.directions = torch.zeros(centres.shape[1]), torch.eye(2, centres.shape[1])
        if centres.shape[1] > 2:
            self.origin, directions = centres.mean(0), principal_directions(centres).float()
            self.directions = torch.nn.functional.pad(directions, (0, 0, 0, 2 - len(directions)))
        self._figure = latent_scatter(explorer.context)
        self.png = figure_png(self._figure)
        (left, bottom), (right, top) = content_box(self._figure).get_points() * DPI
        self._left, self._top, self._width, self._height = left, top, right - left, top - bottom

    def position(self, z: Tensor) -> tuple[float, float]:
        """Of a place (D,); one beyond the axes is at their border."""
        axes = self._figure.axes[0]
        (x, y), limits = ((z - self.origin) @ self.directions.T).tolist(), (axes.get_xlim(), axes.get_ylim())
        inside = [min(max(value, low), high) for value, (low, high) in zip((x, y), limits, strict=True)]
        x, y = axes.transData.transform(inside)
        return (x - self._left) / self._width, (self._top - y) / self._height

    def place(self, x: float, y: float) -> Tensor:
        """The place at a position, (D,)."""
        pixel = (self._left + x * self._width, self._top - y * self._height)
        point = self._figure.axes[0].transData.inverted().transform(pixel)
        return self.origin + torch.tensor(point, dtype=torch.float32) @ self.directions
