"""From stored pixels to what a model sees: binarised, augmented, some of it sampled once."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from vae_lab.data.datamodule import ImageDataModule
from vae_lab.data.images import DecodedImages
from vae_lab.data.transforms import Preprocess, binarize_fixed, random_hue, random_shift, random_zoom

BINARIZE = ("none", "threshold", "fixed", "dynamic")
EVERY_LEVEL = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)


def noise(count: int, channels: int = 1, height: int = 8, width: int = 8, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, height, width), generator=generator, dtype=torch.uint8)


def grey(level: int, pixels: int = 40_000) -> torch.Tensor:
    return torch.full((1, 1, 1, pixels), level, dtype=torch.uint8)


def source() -> DecodedImages:
    """60 images: 40 train, 12 val, 8 test."""
    rows = torch.arange(60)
    return DecodedImages(noise(60), {"train": rows[:40], "val": rows[40:52], "test": rows[52:]}, labels=rows)


def module(**options) -> ImageDataModule:
    data = ImageDataModule(source, eval_batch_size=5, **options)
    data.setup()
    return data


def loaded(split: str, **options) -> torch.Tensor:
    """x of a whole split as evaluation sees it."""
    data = module(**options)
    batches = {"val": data.val_dataloader, "test": data.test_dataloader}[split]()
    return torch.cat([data.preprocess.evaluate(batch.images) for batch in batches])


# --- binarising ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["train", "evaluate"])
def test_grey_values_are_kept_exactly_and_the_threshold_is_half(when):
    x, binary = (getattr(Preprocess(name), when)(EVERY_LEVEL).flatten() for name in ("none", "threshold"))
    assert x.dtype == binary.dtype == torch.float32
    assert torch.equal(x, torch.arange(256) / 255)
    assert torch.equal(binary, (x >= 0.5).float())


def test_a_dynamic_pixel_is_on_with_its_grey_value_as_probability():
    dynamic = Preprocess("dynamic")
    assert dynamic.train(grey(0)).sum() == 0
    assert dynamic.train(grey(255)).mean() == 1
    torch.manual_seed(0)
    for level in (1, 64, 128, 254):
        p = level / 255
        x = dynamic.train(grey(level))
        assert set(x.unique().tolist()) <= {0.0, 1.0}
        assert x.mean().item() == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / x.numel()))


def test_dynamic_binarisation_is_sampled_anew_each_time_and_is_a_function_of_the_seed():
    dynamic, images = Preprocess("dynamic"), noise(4)
    torch.manual_seed(3)
    first, second = dynamic.train(images), dynamic.train(images)
    torch.manual_seed(3)
    assert torch.equal(dynamic.train(images), first)
    assert not torch.equal(first, second)


def test_fixed_images_are_black_or_white_by_their_grey_value():
    binary = binarize_fixed(noise(50), 1)
    assert binary.dtype == torch.uint8 and set(binary.unique().tolist()) == {0, 255}
    for x in (Preprocess("fixed").train(binary), Preprocess("fixed").evaluate(binary)):
        assert torch.equal(x, (binary == 255).float())
    assert binarize_fixed(grey(0), 1).sum() == 0
    assert (binarize_fixed(grey(255), 1) == 255).all()
    on = (binarize_fixed(grey(128), 1) == 255).double().mean().item()
    assert on == pytest.approx(128 / 255, abs=5 * math.sqrt(0.25 / 40_000))


@settings(max_examples=30)
@given(count=st.integers(1, 40), chunk=st.integers(1, 50), side=st.integers(1, 9), seed=st.integers(0, 2**62))
def test_fixed_images_depend_on_the_seed_and_not_on_the_chunks(count, chunk, side, seed):
    images = noise(count, height=side)
    before = torch.get_rng_state()
    assert torch.equal(binarize_fixed(images, seed, chunk), binarize_fixed(images, seed))
    assert torch.equal(torch.get_rng_state(), before)


# --- augmentation -------------------------------------------------------------------------------------------------


def test_a_flip_turns_whole_images_and_about_half_of_them():
    images = noise(1000, channels=3, height=2, width=4)
    torch.manual_seed(0)
    out = Preprocess(flip=True).train(images).mul(255).round()
    turned = (out == images.flip(-1)).flatten(1).all(1)
    kept = (out == images).flatten(1).all(1)
    assert (turned ^ kept).all()
    assert abs(int(turned.sum()) - 500) < 5 * math.sqrt(250)


@settings(max_examples=25)
@given(
    most=st.integers(1, 3),
    channels=st.integers(1, 3),
    height=st.integers(3, 7),
    width=st.integers(3, 7),
    seed=st.integers(0, 2**32),
)
def test_a_shift_moves_each_image_whole_with_its_edges_repeated(most, channels, height, width, seed):
    def moved(image, down, right):
        rows, columns = torch.arange(height) + down, torch.arange(width) + right
        return image[:, rows.clamp(0, height - 1)][:, :, columns.clamp(0, width - 1)]

    images, steps = noise(4, channels, height, width, seed), range(-most, most + 1)
    torch.manual_seed(seed)
    for image, out in zip(images, random_shift(images, most), strict=True):
        assert any(torch.equal(out, moved(image, down, right)) for down in steps for right in steps)


def test_every_move_up_to_the_limit_happens_and_none_beyond():
    """One white pixel in the middle: where it lands is the move."""
    images = torch.zeros(2000, 1, 9, 9, dtype=torch.uint8)
    images[:, :, 4, 4] = 255
    torch.manual_seed(0)
    places = random_shift(images, 2).nonzero()[:, 2:] - 4
    moves, counts = places.unique(dim=0, return_counts=True)
    assert len(places) == 2000
    assert {tuple(move) for move in moves.tolist()} == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}
    assert counts.min() > 40  # of 80 expected


@pytest.mark.parametrize("binarize", BINARIZE)
def test_evaluation_samples_nothing_and_the_stored_images_stay(binarize):
    images, before = noise(20), torch.get_rng_state()
    prepare = Preprocess(binarize, flip=True, shift=3, zoom=0.1)
    assert torch.equal(prepare.evaluate(images), Preprocess(binarize).evaluate(images))
    assert torch.equal(torch.get_rng_state(), before)
    prepare.train(images)
    assert torch.equal(images, noise(20))


def test_zoom_keeps_the_centre_and_a_factor_of_two_doubles_a_square(monkeypatch):
    x = torch.zeros(1, 1, 8, 8)
    x[..., 3:5, 3:5] = 255
    assert random_zoom(x, 0.0) is x
    monkeypatch.setattr(torch, "rand", lambda *shape, device=None: torch.ones(shape))  # the greatest factor
    doubled = random_zoom(x, 0.999999)
    assert doubled[..., 3:5, 3:5].min() > 254.9
    assert_close(doubled.sum(), 4 * x.sum(), rtol=1e-4, atol=0.1)


@given(st.floats(0, 0.5), st.integers(0, 2**32))
def test_hue_turns_colours_about_grey(most, seed):
    """Brightness, saturation and greys stay."""
    torch.manual_seed(seed)
    x = torch.rand(3, 3, 4, 4)
    turned = random_hue(x, most)
    assert_close(turned.mean(1), x.mean(1))
    assert_close(turned.square().sum(1), x.square().sum(1))
    assert_close(random_hue(torch.cat([x, x[:, :1]], 1), most)[:, 3:], x[:, :1])  # transparency stays
    grey = torch.rand(2, 1, 4, 4).expand(2, 3, 4, 4)
    assert_close(random_hue(grey, most), grey)


def test_a_third_of_a_turn_exchanges_the_channels(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *shape, device=None: torch.ones(shape))
    x = torch.arange(3.0).reshape(1, 3, 1, 1)
    assert_close(random_hue(x, 1 / 3), x.roll(1, 1))


def test_zoomed_and_rotated_pictures_are_grey_levels_in_range():
    x = Preprocess(zoom=0.2, hue=0.1).train(noise(4, channels=3))
    assert x.min() >= 0 and x.max() <= 1 and torch.equal((x * 255).round() / 255, x)


# --- the data as a whole ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("binarize", BINARIZE)
def test_what_is_evaluated_is_the_same_twice(split, binarize):
    torch.manual_seed(1)
    first = loaded(split, binarize=binarize, flip=True, shift=2)
    torch.manual_seed(2)
    assert torch.equal(loaded(split, binarize=binarize), first)
    if binarize != "none":
        assert set(first.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_images_are_alike_under_fixed_and_dynamic_and_follow_their_seed(split):
    fixed, dynamic = (loaded(split, binarize=name) for name in ("fixed", "dynamic"))
    assert torch.equal(fixed, dynamic)
    assert not torch.equal(loaded(split, binarize="fixed", binarize_seed=1), fixed)


@pytest.mark.parametrize(("binarize", "levels"), [("none", 256), ("threshold", 2), ("fixed", 2), ("dynamic", 2)])
def test_labels_and_images_stay_together_and_the_model_learns_the_number_of_levels(binarize, levels):
    data = module(binarize=binarize)
    assert data.image.levels == levels
    for split, expected in (("train", range(40)), ("val", range(40, 52)), ("test", range(52, 60))):
        parts = list(data.first_images(split))
        x, labels = torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])
        assert labels.tolist() == list(expected)
        images = noise(60)[list(expected)]
        assert (x[images == 0] == 0).all() and (x[images == 255] == 1).all()
        assert (x.unique().numel() == 2) == (binarize != "none")


def test_examples_are_what_evaluation_sees():
    x, labels = module(binarize="dynamic").example_images("val", 7)
    assert torch.equal(x, loaded("val", binarize="dynamic")[:7])
    assert labels.tolist() == list(range(40, 47))


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: ImageDataModule(source, batch_size=0), "data.batch_size"),
        (lambda: ImageDataModule(source, eval_batch_size=0), "data.eval_batch_size"),
        (lambda: Preprocess(zoom=1.0), "data.zoom"),
        (lambda: Preprocess(hue=0.6), "data.hue"),
    ],
)
def test_a_value_out_of_range_is_named(make, key):
    with pytest.raises(ValueError, match=key):
        make()
