"""What each picture needs of a model and of the images at hand, and what a scene has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum

import torch

from vae_lab.figures.context import Scene
from vae_lab.figures.examples import Examples, has_one_layer
from vae_lab.utils.errors import UsageError


class Need(StrEnum):
    """Something that a picture is drawn from, in words."""

    IMAGE = "an image"
    PAIR = "two images"
    CORRUPTION = "a corruption of the images"
    CLASSES = "a conditional model"
    SAMPLES = "a prior that can be sampled"
    TEMPERATURE = "priors that can be sampled at other temperatures"
    LAYERS = "several layers of latents"
    ONE_LAYER = "one layer of latents"
    CODES = "latents that are codes"
    POINTS = "one layer of latents that are no codes"
    VECTOR = "one vector of latents"
    AXES = "one vector of latents each of which may be any number"
    KL = "a KL that is a sum over latent dimensions"


NEEDS: Mapping[str, frozenset[Need]] = {
    "reconstructions": frozenset({Need.IMAGE}),
    "denoising": frozenset({Need.IMAGE, Need.CORRUPTION}),
    "interpolations": frozenset({Need.PAIR, Need.POINTS}),
    "latent_scatter": frozenset({Need.IMAGE, Need.POINTS}),
    "aggregate_posterior": frozenset({Need.IMAGE, Need.VECTOR}),
    "code_usage": frozenset({Need.IMAGE, Need.CODES}),
    "samples": frozenset({Need.SAMPLES}),
    "samples_per_class": frozenset({Need.SAMPLES, Need.CLASSES}),
    "samples_by_temperature": frozenset({Need.TEMPERATURE, Need.LAYERS}),
    "latent_grid": frozenset({Need.AXES}),
    "traversals": frozenset({Need.AXES}),
    "kl_per_dimension": frozenset({Need.KL}),
    "kl_per_layer": frozenset({Need.IMAGE, Need.LAYERS}),
}


def abilities(scene: Scene) -> frozenset[Need]:
    """What the model and the images suffice for."""
    model, first, count = scene.model, scene.model.latents[0], len(scene.examples)
    one_layer, points = has_one_layer(model), scene.has_points
    several, vector = len(model.latents) > 1, points and len(first.shape) == 1
    has = {
        Need.IMAGE: count >= 1,
        Need.PAIR: count >= 2,
        Need.CORRUPTION: scene.corrupted is not None,
        Need.CLASSES: model.conditional,
        Need.SAMPLES: scene.can_sample,
        Need.LAYERS: several,
        Need.TEMPERATURE: several and scene.can_temper,  # which takes a look, and is asked of several alone
        Need.ONE_LAYER: one_layer,
        Need.CODES: any(latent.num_codes for latent in model.latents),
        Need.POINTS: points,
        Need.VECTOR: vector,
        # Beyond N(0, I) it is the images that say where latents are.
        Need.AXES: vector and first.kind == "vector" and (count >= 1 or scene.space.prior_is_standard_normal),
        Need.KL: points and scene.space.kl is not None,
    }
    return frozenset(need for need, there in has.items() if there)


def drawable(scene: Scene) -> list[str]:
    """The pictures that the scene suffices for."""
    has = abilities(scene)
    return [what for what, needs in NEEDS.items() if needs <= has]


def require_drawable(scene: Scene, pictures: Sequence[str]) -> None:
    """UsageError for a picture that this model has not, whatever the images."""
    image = scene.model.image
    blank = Examples(torch.zeros(2, *image.shape), torch.zeros(2, dtype=torch.int64) if image.num_classes else None)
    scene = replace(scene, examples=blank)
    able, has = drawable(scene), abilities(scene)
    for what in pictures:
        if what not in able:
            lacking = " and ".join(need for need in Need if need in NEEDS[what] - has)
            raise UsageError(
                f"callbacks.images.pictures has {what!r}, which needs {lacking}.\n"
                f"Of this model there are {', '.join(sorted(able))}"
            )
