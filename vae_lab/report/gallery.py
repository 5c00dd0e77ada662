"""The pictures of a run: those in its folder as they are, and what is missing drawn from the loaded model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vae_lab.figures.canvas import encode_gif, figure_png
from vae_lab.figures.context import FigureContext
from vae_lab.figures.pictures import available_pictures, draw_figure, network
from vae_lab.report.frames import reduced
from vae_lab.report.page import embedded
from vae_lab.report.run_files import RunFiles

DESCRIPTIONS = {
    "reconstructions": "Images, and below each its reconstruction",
    "denoising": "Images, corrupted, and restored",
    "samples": "Samples from the prior",
    "samples_per_class": "Samples from the prior for each class",
    "samples_by_temperature": "Samples at lower temperatures of the priors",
    "prior_samples": "Samples of the trained prior and of the one fitted to the latents",
    "nearest_training_images": "Samples, and the training images nearest to them",
    "latent_grid": "The plane of two latent dimensions, decoded",
    "traversals": "One latent dimension varied in each row, the most active first",
    "interpolations": "Interpolations between images",
    "samples.gif": "Samples from the prior over the epochs",
    "latent_grid.gif": "The plane of the two latent dimensions over the epochs",
    "latent_scatter": "Posterior means of images",
    "kl_per_dimension": "KL of each latent dimension",
    "kl_per_layer": "KL of each layer",
    "aggregate_posterior": "Histograms of the aggregate posterior beside the prior",
    "code_usage": "How often each code is used",
    "network": "The layers of the network",
}
INTERACTIVE = ("latent_scatter", "kl_per_dimension")  # the page has charts of them where there is a model
STEPS = ((1.0, 88), (0.5, 80), (0.35, 70))  # scale and quality of a picture that has to become smaller


@dataclass
class Picture:
    description: str
    source: str  # where it comes from
    content: bytes
    suffix: str
    level: int = 0  # how often it was made smaller

    @property
    def length(self) -> int:
        """Characters in the page."""
        return 4 * len(self.content) // 3

    @property
    def address(self) -> str:
        return embedded(self.content, self.suffix)

    def reduce(self, original: bytes) -> None:
        """Make it smaller, at most as often as there are STEPS."""
        scale, quality = STEPS[self.level]
        self.content, self.suffix, self.level = reduced(original, scale, quality), ".webp", self.level + 1


def gallery(run: RunFiles, context: FigureContext | None) -> dict[str, Picture]:
    """Pictures by name, in the order of the page."""
    drawn = {} if context is None else dict(_missing(run, context))
    found: dict[str, Picture] = {}
    for name, description in DESCRIPTIONS.items():
        if name in INTERACTIVE and context is not None and name in available_pictures(context):
            continue
        if (file := _file(run.folder, name)) is not None:
            found[name] = Picture(description, str(file.relative_to(run.folder)), file.read_bytes(), file.suffix)
        elif name.endswith(".gif") and len(frames := bare_grids(run.folder, name[:-4])) > 1:
            found[name] = Picture(description, "the grids of the epochs", encode_gif(frames), ".gif")
        elif name in drawn:
            found[name] = Picture(description, "drawn for this page", drawn[name], ".png")
    return found


def _file(folder: Path, name: str) -> Path | None:
    """A picture of a run, or of an export; its last bare grid where training ended before the annotated picture."""
    if name == "prior_samples":
        return next(iter(sorted((folder / "images").glob("prior_samples=*.png"))), None)
    file = name if name.endswith(".gif") else f"{name}.png"
    return next((path for path in (folder / "images" / file, folder / file) if path.is_file()), None)


def bare_grids(folder: Path, name: str) -> list[Path]:
    """The grids of a picture that were drawn during training, in order."""
    for unit in ("epoch", "step"):
        if frames := sorted((folder / "images").glob(f"{name}_{unit}=*.png")):
            return frames
    return []


def _missing(run: RunFiles, context: FigureContext) -> Iterator[tuple[str, bytes]]:
    """What the model has and the folder has not."""
    able = [name for name in available_pictures(context) if name not in INTERACTIVE]
    for name in able:
        if _file(run.folder, name) is None:
            yield name, figure_png(draw_figure(name, context))
    if not context.model.is_hierarchy and _file(run.folder, "network") is None:
        yield "network", figure_png(network(context))


def fit(pictures: Sequence[Picture], budget: int) -> None:
    """Make the largest pictures smaller until all of them have at most `budget` characters."""
    originals = {id(picture): picture.content for picture in pictures}
    while sum(picture.length for picture in pictures) > budget:
        able = [picture for picture in pictures if picture.level < len(STEPS)]
        if not able:
            return
        largest = max(able, key=lambda picture: picture.length)
        largest.reduce(originals[id(largest)])
