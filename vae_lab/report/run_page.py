"""The page about a run, or about several side by side."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

from omegaconf import DictConfig, OmegaConf
from plotly.offline import get_plotlyjs

from vae_lab.callbacks.images import example_images
from vae_lab.data.datamodule import ImageDataModule
from vae_lab.figures.context import FigureContext, FigureSizes
from vae_lab.fit_prior import prepare_device
from vae_lab.inference import Lab, images_of, load
from vae_lab.models.base import evaluation_mode, parts_without_density
from vae_lab.report import plots, tables
from vae_lab.report.explorer import LatentFrames, explorer
from vae_lab.report.gallery import DESCRIPTIONS, Picture, fit, gallery
from vae_lab.report.page import MAX_LENGTH, render
from vae_lab.report.plots import Plot
from vae_lab.report.run_files import RunFiles, read_runs
from vae_lab.utils.errors import UsageError

MAX_RUNS = 8
MARGIN = 500_000  # of these, for tables, charts and scripts
FRAME_PIXELS = 16_000_000  # of the latent spaces of all runs
NO_MODEL = "No model, so no latent space, and no pictures but those in the folder"
SECTIONS = (
    ("numbers", "Numbers"), ("curves", "Training"), ("latent-space", "Latent space"), ("pictures", "Pictures"),
    ("posterior", "Posterior"), ("evaluation", "Evaluation"), ("environment", "Environment"),
)  # fmt: skip


@dataclass
class RunContent:
    """What the page shows of a run. missing: why the model or the images could not be loaded."""

    files: RunFiles
    words: str
    missing: str
    pictures: dict[str, Picture]
    explorer: LatentFrames | str | None = None  # or why the latents cannot be explored; None without model or images
    means: Plot | None = None
    thumbnails: dict[str, Any] | None = None
    kl: Plot | None = None

    @property
    def command(self) -> str:
        """What trains the run again."""
        return shlex.join(["python", "-m", "vae_lab.train", *self.files.overrides])

    @property
    def protocol(self) -> str:
        return tables.protocol_of(self.files)

    @property
    def evaluated(self) -> str:
        return tables.evaluation_protocol(self.files)

    @property
    def baseline(self) -> list[str]:
        return tables.baseline_lines(self.files)

    @property
    def config(self) -> str:
        return OmegaConf.to_yaml(self.files.config)

    @property
    def charts(self) -> dict[str, Plot]:
        """By the name of the element that shows each."""
        found = {f"means-{self.files.letter}": self.means, f"kl-{self.files.letter}": self.kl}
        return {name: chart for name, chart in found.items() if chart is not None}

    @property
    def length(self) -> int:
        """Characters of the large texts besides the pictures."""
        texts = self.explorer.sheets + self.explorer.thumbnails if isinstance(self.explorer, LatentFrames) else []
        return sum(map(len, texts)) + (len(self.thumbnails["sheet"]) if self.thumbnails else 0)


def run_page(config: DictConfig) -> str:
    """HTML. UsageError: a path that is no run, too many of them, or what `checkpoint`, `prior` and `data` ask for."""
    if len(config.runs) > MAX_RUNS:
        raise UsageError(
            f"found {len(config.runs)} runs, expected at most {MAX_RUNS} side by side\nthose of a sweep: sweep=DIR"
        )
    files = read_runs(config.runs, config.checkpoint, config.trusted)
    runs = [run_content(run, config, FRAME_PIXELS // len(files)) for run in files]
    others = sum(run.length for run in runs) + len(get_plotlyjs()) + MARGIN
    fit([picture for run in runs for picture in run.pictures.values()], MAX_LENGTH - others)
    curves = plots.training_curves(files)
    charts = {f"curve-{k}": curve for k, curve in enumerate(curves)}
    for run in runs:
        charts |= run.charts
    shown = {
        "numbers": tables.final_numbers(files),
        "curves": curves,
        "any_model": any(run.explorer is not None for run in runs),
        "picture_names": [name for name in DESCRIPTIONS if any(name in run.pictures for run in runs)],
        "any_means": any(run.means for run in runs),
        "evaluation": tables.evaluation_tables(files),
        "environment": tables.environment(files),
    }
    sections = [section for section, content in zip(SECTIONS, shown.values(), strict=True) if content]
    return render(
        "run.html", runs=runs, sections=sections, differences=tables.differences(files), descriptions=DESCRIPTIONS,
        charts={name: [chart.traces, chart.layout] for name, chart in charts.items()}, **shown,
    )  # fmt: skip


def run_content(run: RunFiles, config: DictConfig, budget: int) -> RunContent:
    """What the files of a run show, and its model as far as it can be loaded."""
    lab = load_lab(run, config)
    if isinstance(lab, str):
        return RunContent(run, in_words(run, None), lab, gallery(run, None))
    data, words = load_images(lab, config), in_words(run, lab)
    if isinstance(data, str):
        return RunContent(run, words, data, gallery(run, None))
    with figure_context(lab, data) as context:
        content = RunContent(run, words, "", gallery(run, context), explorer(context, budget))
        if context.has_continuous_latents:
            content.means, content.thumbnails = plots.posterior_means(context)
        content.kl = plots.kl_per_dimension(context)
    return content


def load_lab(run: RunFiles, config: DictConfig) -> Lab | str:
    """The model of a run, or why there is none. UsageError: there is none as the command line asks for."""
    prior: Any = config.prior or (None if run.is_export else "trained")  # an export has one prior
    try:
        lab = load(run.folder, run.checkpoint, config.trusted, prior)
    except UsageError as error:
        if config.prior is not None or config.checkpoint != "best":
            raise
        return f"{NO_MODEL}: {error}"
    if not all(bool(parameter.isfinite().all()) for parameter in lab.model.parameters()):
        return f"{NO_MODEL}: the {run.checkpoint} weights, of step {lab.step:,}, are not finite"
    return lab.to(prepare_device(config.device, lab.config))


def load_images(lab: Lab, config: DictConfig) -> ImageDataModule | str:
    """The images of a run, or why there are none. UsageError: they are not where the command line says."""
    try:
        return images_of(lab, config.data)
    except UsageError as error:
        if any(value is not None for value in config.data.values()):
            raise
        return f"No images, so no latent space: {error} (data.root=DIR says where they are now)"


@contextmanager
def figure_context(lab: Lab, data: ImageDataModule) -> Iterator[FigureContext]:
    """Pictures of the sizes that the run's config has."""
    chosen = OmegaConf.select(lab.config, "callbacks.images") or {}
    sizes = FigureSizes(**{it.name: chosen[it.name] for it in fields(FigureSizes) if it.name in chosen})
    corrupted = None if data.preprocess.corruption is None else data.preprocess.corrupt
    examples = example_images(data, plots.NUM_POINTS, lab.model.latents)
    with evaluation_mode(lab.model, sizes.seed):
        yield FigureContext(lab.model, examples, sizes, f"step {lab.step:,}", corrupted=corrupted)


def in_words(run: RunFiles, lab: Lab | None) -> str:
    """The experiment: networks, families, bound, data."""
    parts = [f"{run.option('model')} on {run.option('data')}"] if run.choices else []
    named = {
        "posterior": "model/posterior", "prior": "model/prior", "likelihood": "model/likelihood",
        "bound": "objective/bound", "regularizers": "objective/regularizers",
        "prior fitted after training": "second_stage", "optimizer": "optimizer",
    }  # fmt: skip
    for words, group in named.items():
        if run.choices.get(group) not in (None, "none"):
            parts.append(f"{words} {str(run.choices[group]).replace('_', ' ')}")
    if lab is not None:
        latents = ", ".join("x".join(map(str, latent.shape)) for latent in lab.model.latents)
        count = sum(parameter.numel() for parameter in lab.model.parameters())
        parts += [f"images {lab.image}", f"latents {latents}", f"{count:,} parameters"]
        parts.append(f"{run.checkpoint} weights, of step {lab.step:,}")
        if lab.fitted_prior is not None:
            parts.append(f"samples from the fitted prior '{lab.fitted_prior}'")
        if without := parts_without_density(lab.model):
            parts.append(f"{' and '.join(without)} has no density: what is called elbo is no bound on log p(x)")
    return "; ".join(parts)
