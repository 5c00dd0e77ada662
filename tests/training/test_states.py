"""What has a state (discriminators, codebooks, multipliers) is saved, restored and left alone with the weights."""

import pytest
import torch
from helpers.steps import STATEFUL, composed, images_of, model_of, step_of
from torch.testing import assert_close

from vae_lab.core import ImageSpec, TrainingSpec
from vae_lab.training.build import build_node
from vae_lab.training.step import term_names

IMAGE = ImageSpec(1, 8, 8, 2)


def stateful_step(**options):
    model = model_of(*STATEFUL, image=IMAGE)
    spec = TrainingSpec(IMAGE, model.latents, 100)
    objective = build_node(composed(*STATEFUL).objective, spec=spec)
    settings = {"algorithm": torch.optim.Adam, "lr": 1e-3, **options}
    step = step_of(model, objective=objective, batch_size=8, **settings)
    step.optimizer = step.settings.build(model.parameters(), objective.discriminators)
    return step


def state_of(step) -> dict[str, torch.Tensor]:
    parts = {"model": step.model, "objective": step.objective}
    return {f"{part}.{name}": value.clone() for part, module in parts.items()
            for name, value in module.state_dict().items()}  # fmt: skip


def test_a_step_moves_codes_multiplier_and_critic_and_measures_each():
    step = stateful_step()
    before = state_of(step)
    record = step(images_of(8, IMAGE), 0)
    after = state_of(step)
    for part in (
        "posterior.codes.vectors",
        "constraint.log_multiplier",
        "regularizers.perceptual.discriminator",
        "encoder",
    ):
        names = [name for name in before if part in name]
        assert names and any(not torch.equal(before[name], after[name]) for name in names), part
    assert term_names(step.objective) == ("loss", "log_px", "kl", "commitment", "perceptual", "discriminator")
    assert record.terms.shape == (6,) and record.terms.isfinite().all()


def test_a_step_that_is_not_finite_changes_none_of_it():
    step = stateful_step()
    step(images_of(8, IMAGE), 0)
    before = state_of(step)
    handle = step.model.decoder.register_forward_hook(lambda _, __, output: output * float("nan"))
    assert step(images_of(8, IMAGE), 1).nonfinite
    handle.remove()
    after = state_of(step)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_a_critic_has_its_own_learning_rate_and_the_models_schedule(factor):
    step = stateful_step(schedule=lambda *_: factor)
    step(images_of(8, IMAGE), 0)
    rates = [group["lr"] for group in step.optimizer.param_groups]
    (discriminator,) = step.objective.discriminators
    assert rates == pytest.approx([1e-3 * factor, discriminator.discriminator_lr * factor])


def test_clipping_and_the_gradient_norm_are_of_the_model_alone():
    free, clipped = stateful_step(), stateful_step(clip_norm=1e-3)
    norms = [float(step(images_of(8, IMAGE), 0, measure=True).gradient_norm) for step in (free, clipped)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    of_critic = [
        {name: value for name, value in state_of(step).items() if ".discriminator." in name} for step in (free, clipped)
    ]
    assert_close(of_critic[0], of_critic[1])
