"""Corruption of the encoder's input; the clean image is scored."""

import pytest
import torch
from helpers.steps import composed, images_of, small_model, step_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from vae_lab.data.transforms import GaussianNoise, Masked, Preprocess, SaltAndPepper
from vae_lab.training.build import build_node


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 5),
    st.sampled_from([1, 3]),
    st.integers(1, 17),
    st.integers(1, 17),
    st.sampled_from([GaussianNoise(0.5), SaltAndPepper(0.4), Masked(0.5, 3, 0.25)]),
)
def test_a_corruption_keeps_shape_type_and_range(count, channels, height, width, corruption):
    x = torch.rand(count, channels, height, width)
    seen = corruption(x)
    assert seen.shape == x.shape and seen.dtype == x.dtype
    assert seen.min() >= 0 and seen.max() <= 1


def test_noise_has_the_scale_that_was_asked_for():
    torch.manual_seed(0)
    x = torch.full((4, 1, 100, 100), 0.5)
    noise = GaussianNoise(0.1)(x) - x  # five standard deviations from being cut
    assert float(noise.mean()) == pytest.approx(0, abs=2e-3)
    assert float(noise.std()) == pytest.approx(0.1, rel=2e-2)


def test_salt_and_pepper_are_as_many_and_the_same_in_all_channels():
    torch.manual_seed(0)
    seen = SaltAndPepper(0.3)(torch.full((4, 3, 100, 100), 0.5))
    assert_close(seen[:, 0], seen[:, 1], rtol=0, atol=0)
    for value in (0.0, 1.0):
        assert float((seen == value).float().mean()) == pytest.approx(0.15, abs=1e-2)


def test_whole_patches_are_masked():
    torch.manual_seed(0)
    x = torch.rand(500, 1, 8, 8) + 0.5
    masked = Masked(0.25, 4)(x) == 0
    by_patch = masked.unfold(2, 4, 4).unfold(3, 4, 4).float().mean((-1, -2))
    assert set(by_patch.unique().tolist()) == {0.0, 1.0}
    assert float(by_patch.mean()) == pytest.approx(0.25, abs=3e-2)
    assert (Masked(1.0, 5, 0.25)(x) == 0.25).all() and (Masked(0.0)(x) == x).all()


@pytest.mark.parametrize("name", ["gaussian_noise", "salt_and_pepper", "masked"])
def test_a_config_names_a_corruption(name):
    assert build_node(composed(f"data/corruption={name}").data).preprocess.corruption is not None
    assert build_node(composed().data).preprocess.corruption is None


def test_the_encoder_sees_the_corrupted_image_and_the_clean_one_is_scored():
    images, encoded, scored = images_of(8), [], []
    model = small_model()
    model.encoder.register_forward_hook(lambda _, inputs, __: encoded.append(inputs[0]))
    step = step_of(model, preprocess=Preprocess(corruption=torch.zeros_like))
    terms = step.objective.terms
    step.objective.terms = lambda trace, x: scored.append(x) or terms(trace, x)
    step(images, 0)
    assert (encoded[0] == 0).all()
    assert_close(scored[0], images.float() / 255)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: GaussianNoise(-1.0), "data.corruption.scale"),
        (lambda: SaltAndPepper(1.5), "data.corruption.probability"),
        (lambda: Masked(-0.1), "data.corruption.probability"),
        (lambda: Masked(0.5, 0), "data.corruption.patch_size"),
        (lambda: Masked(0.5, 4, 2.0), "data.corruption.value"),
    ],
)
def test_a_value_out_of_range_is_named(make, key):
    with pytest.raises(ValueError, match=key):
        make()
