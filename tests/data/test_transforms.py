"""From stored pixels to what a model sees: binarising, augmentation, and what is drawn once."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from vae_lab.data.datamodule import ImageDataModule
from vae_lab.data.images import DecodedImages
from vae_lab.data.transforms import Preprocess, augment, binarize_fixed, random_hue, random_shift, random_zoom


def noise(count: int, channels: int = 1, height: int = 8, width: int = 8, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, height, width), generator=generator, dtype=torch.uint8)


def every_level() -> torch.Tensor:
    return torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)


def grey(level: int, pixels: int = 40_000) -> torch.Tensor:
    return torch.full((1, 1, 1, pixels), level, dtype=torch.uint8)


class Source:
    """60 images: 40 train, 12 val, 8 test."""

    def load(self) -> DecodedImages:
        rows = torch.arange(60)
        splits = {"train": rows[:40], "val": rows[40:52], "test": rows[52:]}
        return DecodedImages(noise(60), splits, labels=rows)


def loaded(split: str, **options) -> torch.Tensor:
    """x of a whole split as evaluation sees it."""
    data = ImageDataModule(Source(), eval_batch_size=5, **options)
    data.setup()
    batches = {"val": data.val_dataloader, "test": data.test_dataloader}[split]()
    return torch.cat([data.preprocess.evaluate(batch.images) for batch in batches])


# --- binarising -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["train", "evaluate"])
def test_grey_values_are_kept_exactly(when):
    x = getattr(Preprocess("none"), when)(every_level())
    assert x.dtype == torch.float32
    assert torch.equal(x.flatten(), torch.arange(256) / 255)


@pytest.mark.parametrize("when", ["train", "evaluate"])
def test_the_threshold_is_half(when):
    x = getattr(Preprocess("threshold"), when)(every_level())
    assert torch.equal(x.flatten(), (torch.arange(256) / 255 >= 0.5).float())


def test_fixed_images_pass_as_they_were_drawn():
    images = binarize_fixed(noise(5), 0)
    for x in (Preprocess("fixed").train(images), Preprocess("fixed").evaluate(images)):
        assert torch.equal(x, (images == 255).float())


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


def test_a_dynamic_draw_is_fresh_each_time_and_the_seeds_own():
    dynamic, images = Preprocess("dynamic"), noise(4)
    torch.manual_seed(3)
    first, second = dynamic.train(images), dynamic.train(images)
    torch.manual_seed(3)
    assert torch.equal(dynamic.train(images), first)
    assert not torch.equal(first, second)


def test_images_drawn_once_are_black_or_white_by_their_grey_value():
    drawn = binarize_fixed(noise(50), 1)
    assert drawn.dtype == torch.uint8 and set(drawn.unique().tolist()) == {0, 255}
    assert binarize_fixed(grey(0), 1).sum() == 0
    assert (binarize_fixed(grey(255), 1) == 255).all()
    on = (binarize_fixed(grey(128), 1) == 255).double().mean().item()
    assert on == pytest.approx(128 / 255, abs=5 * math.sqrt(0.25 / 40_000))


@settings(max_examples=30)
@given(count=st.integers(1, 40), chunk=st.integers(1, 50), side=st.integers(1, 9), seed=st.integers(0, 2**62))
def test_what_is_drawn_once_depends_on_the_seed_and_not_on_the_chunks(count, chunk, side, seed):
    images = noise(count, height=side)
    before = torch.get_rng_state()
    whole = binarize_fixed(images, seed)
    assert torch.equal(binarize_fixed(images, seed, chunk), whole)
    assert torch.equal(torch.get_rng_state(), before)  # nobody else's generator was used


def test_seeds_draw_different_images():
    assert len({binarize_fixed(noise(3), seed).numpy().tobytes() for seed in range(20)}) == 20


# --- augmentation -----------------------------------------------------------------------------------------


def test_a_flip_turns_whole_images_and_about_half_of_them():
    images = noise(1000, channels=3, height=2, width=4)
    torch.manual_seed(0)
    out = augment(images, flip=True, shift=0)
    turned = (out == images.flip(-1)).flatten(1).all(1)
    kept = (out == images).flatten(1).all(1)
    assert (turned ^ kept).all()
    assert abs(int(turned.sum()) - 500) < 5 * math.sqrt(250)


def moved(image: torch.Tensor, down: int, right: int) -> torch.Tensor:
    """The slow way, (C, H, W)."""
    _, height, width = image.shape
    out = torch.empty_like(image)
    for y in range(height):
        for x in range(width):
            out[:, y, x] = image[:, min(max(y + down, 0), height - 1), min(max(x + right, 0), width - 1)]
    return out


@settings(max_examples=25)
@given(
    most=st.integers(1, 3),
    channels=st.integers(1, 3),
    height=st.integers(3, 7),
    width=st.integers(3, 7),
    seed=st.integers(0, 2**32),
)
def test_a_shift_moves_each_image_whole_with_its_edges_repeated(most, channels, height, width, seed):
    images = noise(4, channels, height, width, seed)
    torch.manual_seed(seed)
    for image, out in zip(images, random_shift(images, most), strict=True):
        steps = range(-most, most + 1)
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


def test_evaluation_neither_augments_nor_draws():
    images = noise(20)
    before = torch.get_rng_state()
    for binarize in ("none", "threshold", "fixed", "dynamic"):
        x = Preprocess(binarize, flip=True, shift=3).evaluate(images)
        assert torch.equal(x, Preprocess(binarize).evaluate(images))
    assert torch.equal(torch.get_rng_state(), before)


def test_preparing_leaves_the_stored_images_alone():
    images = noise(20)
    before = images.clone()
    for binarize in ("none", "threshold", "fixed", "dynamic"):
        prepare = Preprocess(binarize, flip=True, shift=3)
        prepare.train(images)
        prepare.evaluate(images)
    binarize_fixed(images, 0)
    assert torch.equal(images, before)


# --- the data as a whole ----------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("binarize", ["none", "threshold", "fixed", "dynamic"])
def test_what_is_evaluated_is_the_same_twice(split, binarize):
    torch.manual_seed(1)
    first = loaded(split, binarize=binarize, flip=True, shift=2)
    torch.manual_seed(2)
    assert torch.equal(loaded(split, binarize=binarize), first)
    if binarize != "none":
        assert set(first.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_images_are_drawn_alike_under_fixed_and_dynamic_and_by_their_seed(split):
    fixed, dynamic = (loaded(split, binarize=name) for name in ("fixed", "dynamic"))
    assert torch.equal(fixed, dynamic)
    assert not torch.equal(loaded(split, binarize="fixed", binarize_seed=1), fixed)


def test_fixed_training_images_are_drawn_once_and_dynamic_ones_stay_grey():
    data = {name: ImageDataModule(Source(), binarize=name) for name in ("fixed", "dynamic")}
    for it in data.values():
        it.setup()
    drawn, again = (data["fixed"]._splits["train"] for _ in range(2))
    assert set(drawn.pixels.unique().tolist()) == {0, 255} and drawn is again
    kept = data["dynamic"]._splits["train"]
    assert torch.equal(kept.pixels[kept.indices], noise(60)[:40])


@pytest.mark.parametrize("binarize", ["none", "fixed", "dynamic"])
def test_labels_and_images_stay_together(binarize):
    data = ImageDataModule(Source(), binarize=binarize)
    data.setup()
    for split, expected in (("train", range(40)), ("val", range(40, 52)), ("test", range(52, 60))):
        part = data._splits[split]
        batch = part.batch(part.indices)
        assert batch.labels.tolist() == list(expected)
        black, white = noise(60)[list(expected)] == 0, noise(60)[list(expected)] == 255
        assert (batch.images[black] == 0).all() and (batch.images[white] == 255).all()


@pytest.mark.parametrize(("binarize", "levels"), [("none", 256), ("threshold", 2), ("fixed", 2), ("dynamic", 2)])
def test_a_model_is_told_how_many_values_a_pixel_has(binarize, levels):
    data = ImageDataModule(Source(), binarize=binarize)
    data.load()
    assert data.image.levels == levels


def test_examples_are_what_evaluation_sees():
    data = ImageDataModule(Source(), binarize="dynamic", eval_batch_size=5)
    x, labels = data.example_images("val", 7)
    assert torch.equal(x, loaded("val", binarize="dynamic")[:7])
    assert labels.tolist() == list(range(40, 47))


@pytest.mark.parametrize("name", ["batch_size", "eval_batch_size"])
def test_a_batch_without_images_is_refused(name):
    with pytest.raises(ValueError, match=rf"data\.{name} is a number of images"):
        ImageDataModule(Source(), **{name: 0})


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
    """Brightness, saturation and greys stay; a third of a turn exchanges the channels."""
    torch.manual_seed(seed)
    x = torch.rand(3, 3, 4, 4)
    turned = random_hue(x, most)
    assert_close(turned.mean(1), x.mean(1))
    assert_close(turned.square().sum(1), x.square().sum(1))
    grey = torch.rand(2, 1, 4, 4).expand(2, 3, 4, 4)
    assert_close(random_hue(grey, most), grey)


def test_a_third_of_a_turn_exchanges_the_channels(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *shape, device=None: torch.ones(shape))
    x = torch.arange(3.0).reshape(1, 3, 1, 1)
    assert_close(random_hue(x, 1 / 3), x.roll(1, 1))


@pytest.mark.parametrize(("options", "words"), [({"zoom": 1.0}, "data.zoom"), ({"hue": 0.6}, "data.hue")])
def test_a_jitter_out_of_range_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Preprocess(**options)


def test_jittered_pictures_are_grey_levels_in_range():
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    x = Preprocess(zoom=0.2, hue=0.1).train(images)
    assert x.min() >= 0 and x.max() <= 1 and torch.equal((x * 255).round() / 255, x)
