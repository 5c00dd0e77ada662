"""python -m vae_lab.evaluate RUN: the numbers of a run, each with its protocol and standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from vae_lab.fit_prior import prepare_device, progress_bar
from vae_lab.runs.cli import run_command
from vae_lab.runs.command_line import run_as_first_argument
from vae_lab.runs.processes import group_of_torchrun
from vae_lab.runs.resume import read_summary, run_dir_of
from vae_lab.runs.sweep import require_single_run
from vae_lab.utils.errors import UsageError
from vae_lab.utils.files import write_atomically
from vae_lab.utils.signals import StopSignals

if TYPE_CHECKING:
    from torch import Tensor

    from vae_lab.data.datamodule import ImageDataModule
    from vae_lab.inference import Lab
    from vae_lab.metrics.subject import Row, Subject

Section = Callable[[], Iterator["Row"]]
SPLITS = ("train", "val", "test")
SHARED = ("likelihood", "anomaly")  # sections that the processes of torchrun compute together, the first one all others


def main() -> None:
    run_as_first_argument()
    run_command(evaluate, config_name="evaluate")


def evaluate(config: DictConfig) -> None:
    require_single_run("evaluate takes one run at a time")
    import torch

    from vae_lab.inference import images_of, load
    from vae_lab.metrics.results import print_table, write_part
    from vae_lab.metrics.subject import Row, Subject

    named, options = Path(config.run), config.evaluation
    if (run := run_dir_of(named)) != named:  # a checkpoint in it
        config.run, config.checkpoint = str(run), named.stem
    check(options)
    lab = load(run, config.checkpoint, config.trusted, config.prior)
    with StopSignals() as stop_signals, group_of_torchrun() as share:
        device = prepare_device(config.device, lab.config)
        torch.backends.cudnn.allow_tf32 = False  # float32, as the protocol says
        data = images_of(lab, config.data)
        root = lab.config.data.get("root")
        if not data.size(options.split):
            raise UsageError(f"evaluation.split={options.split}: the data of this run have no such images")
        stop_signals.defer_to_safe_points()
        with progress_bar(stop_signals.raise_if_requested) as track:
            subject = Subject(lab.to(device).model, data, device, options.split, config.seed, track, share)
            common, found = protocol(config, lab, subject), dict[str, list[Row]]()
            for name, section in sections(subject, options, root).items():
                if share.rank == 0 or name in SHARED:
                    found[name] = list(section())
                if share.rank == 0:  # an interruption keeps what is done
                    write_part(run, name, found[name], subject.per_image, common)
    if share.rank:
        return
    if subject.nearest is not None:
        write_atomically(run / "images" / "nearest_training_images.png", nearest_png(*subject.nearest))
    print_table(run, found, common)


def check(options: DictConfig) -> None:
    """UsageError: a value that no evaluation accepts, found before anything is loaded."""
    from typing import get_args

    from vae_lab.metrics.features import FeatureName

    if options.split not in SPLITS:
        raise UsageError(f"evaluation.split={options.split}: expected {', '.join(SPLITS)}")
    if options.quality is not None and options.quality.features not in get_args(FeatureName):
        raise UsageError(
            f"evaluation.quality.features={options.quality.features}: expected {', '.join(get_args(FeatureName))}"
        )
    for key in (*(f"likelihood.{it}" for it in ("num_samples", "num_images")), "quality.num_images",
                *(f"likelihood.ais.{it}" for it in ("num_steps", "num_chains", "num_leapfrog", "num_images")),
                "representation.num_train", "representation.num_factored"):  # fmt: skip
        value = OmegaConf.select(options, key)
        if value is not None and value < 1:
            raise UsageError(f"evaluation.{key}={value}: expected at least 1")


def sections(subject: Subject, options: DictConfig, root: str | None) -> dict[str, Section]:
    """The parts of an evaluation that were asked for, in the order of the table. root: where the run's data lie."""
    from vae_lab.metrics import baseline, cost, representation

    found: dict[str, Section] = {}
    if options.likelihood is not None:
        found["likelihood"] = partial(_likelihood, subject, options.likelihood)
    if options.baseline:
        found["baseline"] = partial(baseline.baseline_rows, subject)
    if options.against is not None:
        found["anomaly"] = partial(_anomaly, subject, _strangers(subject, options.against, root), options.against)
    found["reconstruction"] = partial(representation.reconstruction_rows, subject)
    if options.representation is not None:
        found["representation"] = partial(representation.representation_rows, subject, options.representation.num_train)
        found["disentanglement"] = partial(_disentanglement, subject, options.representation.num_factored)
    if options.quality is not None:
        found["samples"] = partial(_quality, subject, options.quality)
    if options.cost:
        found["cost"] = partial(cost.cost_rows, subject)
    return found


def _likelihood(subject: Subject, options: DictConfig) -> Iterator[Row]:
    from vae_lab.metrics import likelihood

    yield from likelihood.elbo_rows(subject)
    yield from likelihood.importance_rows(subject, options.num_samples, options.num_images)
    yield from likelihood.kl_parts_rows(subject)
    if (ais := options.ais).num_steps is not None:
        sizes = (ais.num_steps, ais.num_chains, ais.num_leapfrog, ais.num_images)
        yield from likelihood.annealed_rows(subject, *sizes)
        if ais.simulated:
            yield from likelihood.bidirectional_rows(subject, *sizes)


def _disentanglement(subject: Subject, num_images: int) -> Iterator[Row]:
    from vae_lab.metrics.representation import disentanglement_rows

    images = subject.data.images
    if images.factors is None:
        return disentanglement_rows(subject, None, [], num_images)
    factors = images.factors.values[images.splits[subject.split]]
    return disentanglement_rows(subject, factors.numpy(), images.factors.categorical, num_images)


def _quality(subject: Subject, options: DictConfig) -> Iterator[Row]:
    import os

    from vae_lab.metrics.features import build_features
    from vae_lab.metrics.quality import quality_rows

    cache = Path(os.environ.get("VAE_LAB_CACHE", "~/.cache/vae_lab")).expanduser()
    yield from quality_rows(subject, build_features(options.features, subject, cache), options.num_images)


def _strangers(subject: Subject, other: str, root: str | None) -> Subject:
    """The same model before the images of another data config, in the run's root. UsageError: they do not fit."""
    from dataclasses import replace

    from hydra import compose

    from vae_lab.training.build import build_node

    node = compose("train", overrides=[f"data={other}", f"data.binarize={subject.data.preprocess.binarize}"]).data
    if root is not None and "root" in node:
        node.root = root
    data: ImageDataModule = build_node(node)
    data.setup()
    if subject.model.conditional and len(data.class_names) != subject.model.image.num_classes:
        raise UsageError(
            f"evaluation.against={other}: the model is conditional on {subject.model.image.num_classes} classes\n"
            f"found images of {len(data.class_names)} classes"
        )
    if data.image.shape != subject.model.image.shape:
        shapes = f"{data.image.shape} instead of {subject.model.image.shape}"
        raise UsageError(f"evaluation.against={other}: its images (C, H, W) are {shapes}")
    return replace(subject, data=data, per_image={})


def _anomaly(subject: Subject, strangers: Subject, other: str) -> Iterator[Row]:
    """`auroc`: whether the ELBO is higher for the images of the run than for those of another data config."""
    from vae_lab.metrics.cost import auroc
    from vae_lab.metrics.likelihood import elbo_rows
    from vae_lab.metrics.subject import Row, left_out

    for each in (subject, strangers):
        if "elbo" not in each.per_image and "elbo" in {row.name for row in elbo_rows(each) if row.value is None}:
            yield from left_out("no bound on log p(x)", "auroc")
            return
    own, theirs = subject.per_image["elbo"], strangers.per_image["elbo"]
    protocol = {"score": "elbo", "against": other, "images": len(own), "their images": len(theirs)}
    yield Row("auroc", auroc(own, theirs), protocol=protocol)


def protocol(config: DictConfig, lab: Lab, subject: Subject) -> dict[str, Any]:
    """What holds for all numbers."""
    from vae_lab.runs.provenance import versions

    run = Path(config.run)
    status = read_summary(run).get("status", "unfinished")
    return {
        "run_status": status,
        "checkpoint": config.checkpoint,
        "step": lab.step,
        "prior": lab.fitted_prior or "trained",
        "split": subject.split,
        "images": subject.data.size(subject.split),
        "binarize": subject.data.preprocess.binarize,
        "seed": subject.seed,
        "device": subject.device.type,
        "precision": "float32",
        "versions": versions(),
    }


def nearest_png(samples: Tensor, images: Tensor) -> bytes:
    from vae_lab.figures.canvas import figure_png
    from vae_lab.figures.grids import stacked

    parts = {"sample": samples.cpu(), "nearest": images.cpu()}
    title = "Samples, and the training images nearest to them"
    return figure_png(stacked(parts, title=title, xlabel="nearest in the features of the evaluation").figure())


if __name__ == "__main__":
    main()
