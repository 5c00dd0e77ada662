"""What each picture needs of the model and the images, and what a context provides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum

import torch

from vae_lab.figures.context import ExampleImages, FigureContext
from vae_lab.utils.errors import UsageError


class Requirement(StrEnum):
    """What a picture may need, in the words of an error message."""

    IMAGE = "an image"
    PAIR = "two images"
    CORRUPTION = "a corruption of the images"
    CLASSES = "a conditional model"
    SAMPLES = "a prior that can be sampled"
    TEMPERATURE = "priors that can be sampled at other temperatures"
    LAYERS = "several layers of latents"
    ONE_LAYER = "one layer of latents"
    CODES = "latents that are codes"
    POINTS = "one layer of latents that are not codes"
    VECTOR = "one vector of latents"
    AXES = "one vector of latents with unbounded values"
    KL = "a KL that is a sum over latent dimensions"


REQUIREMENTS: Mapping[str, frozenset[Requirement]] = {
    "reconstructions": frozenset({Requirement.IMAGE}),
    "denoising": frozenset({Requirement.IMAGE, Requirement.CORRUPTION}),
    "interpolations": frozenset({Requirement.PAIR, Requirement.POINTS}),
    "latent_scatter": frozenset({Requirement.IMAGE, Requirement.POINTS}),
    "aggregate_posterior": frozenset({Requirement.IMAGE, Requirement.VECTOR}),
    "code_usage": frozenset({Requirement.IMAGE, Requirement.CODES}),
    "samples": frozenset({Requirement.SAMPLES}),
    "samples_per_class": frozenset({Requirement.SAMPLES, Requirement.CLASSES}),
    "samples_by_temperature": frozenset({Requirement.TEMPERATURE, Requirement.LAYERS}),
    "latent_grid": frozenset({Requirement.AXES}),
    "traversals": frozenset({Requirement.AXES}),
    "kl_per_dimension": frozenset({Requirement.KL}),
    "kl_per_layer": frozenset({Requirement.IMAGE, Requirement.LAYERS}),
}


def satisfied_requirements(context: FigureContext) -> frozenset[Requirement]:
    """Requirements that the model and the images satisfy."""
    model, first, count = context.model, context.model.latents[0], len(context.examples)
    one_layer, points = not model.is_hierarchy, context.has_continuous_latents
    several, vector = len(model.latents) > 1, points and len(first.shape) == 1
    has = {
        Requirement.IMAGE: count >= 1,
        Requirement.PAIR: count >= 2,
        Requirement.CORRUPTION: context.corrupted is not None,
        Requirement.CLASSES: model.conditional,
        Requirement.SAMPLES: context.can_sample,
        Requirement.LAYERS: several,
        # `several` first: can_sample_at_temperature has to sample
        Requirement.TEMPERATURE: several and context.can_sample_at_temperature,
        Requirement.ONE_LAYER: one_layer,
        Requirement.CODES: any(latent.num_codes for latent in model.latents),
        Requirement.POINTS: points,
        Requirement.VECTOR: vector,
        # for a prior other than N(0, I), the range of latents is estimated from images
        Requirement.AXES: vector and first.kind == "vector" and (count >= 1 or context.space.prior_is_standard_normal),
        Requirement.KL: points and context.space.kl is not None,
    }
    return frozenset(need for need, there in has.items() if there)


def available_pictures(context: FigureContext) -> list[str]:
    """Pictures whose requirements the context satisfies."""
    has = satisfied_requirements(context)
    return [what for what, needs in REQUIREMENTS.items() if needs <= has]


def require_available(context: FigureContext, pictures: Sequence[str]) -> None:
    """Raises UsageError for a picture that the model does not support, whatever the images."""
    image = context.model.image
    blank = ExampleImages(
        torch.zeros(2, *image.shape), torch.zeros(2, dtype=torch.int64) if image.num_classes else None
    )
    context = replace(context, examples=blank)
    able, has = available_pictures(context), satisfied_requirements(context)
    for what in pictures:
        if what not in able:
            lacking = " and ".join(need for need in Requirement if need in REQUIREMENTS[what] - has)
            raise UsageError(
                f"callbacks.images.pictures has {what!r}, which needs {lacking}.\n"
                f"Available for this model: {', '.join(sorted(able))}"
            )
