"""Shapes drawn from their factors, and dSprites from a file like the published one."""

import numpy as np
import pytest
import torch
from helpers.data import FAST
from helpers.refusals import refused

from vae_lab.data import sets
from vae_lab.utils.errors import UsageError

SMALL = {"image_size": 32, "num_scales": 3, "num_orientations": 4, "num_positions": 5, "val_size": 10, "test_size": 20}


@pytest.fixture(scope="module")
def images():
    return sets.shapes(**SMALL).load()


def moments(images):
    """Area, and centre of mass (x, y), of each image."""
    mass = images.pixels[:, 0].double() / 255
    area, at = mass.sum((1, 2)), torch.arange(mass.shape[-1], dtype=torch.float64)
    return area, (mass.sum(1) * at).sum(1) / area, (mass.sum(2) * at).sum(1) / area


def test_one_image_for_each_combination_the_same_every_time(images):
    assert images.pixels.shape == (3 * 3 * 4 * 25, 1, 32, 32) and set(images.pixels.unique().tolist()) == {0, 255}
    values, names, categorical = images.factors
    assert names == ("shape", "scale", "orientation", "x", "y") and categorical == (True, *[False] * 4)
    assert values.dtype == torch.int64 and len(values.unique(dim=0)) == len(values) == len(images.pixels)
    assert [len(column.unique()) for column in values.T] == [3, 3, 4, 5, 5]
    again = sets.shapes(**SMALL).load()
    assert torch.equal(images.pixels, again.pixels)
    assert all(torch.equal(images.splits[split], again.splits[split]) for split in images.splits)
    assert [len(images.splits[split]) for split in ("train", "val", "test")] == [870, 10, 20]


def test_a_factor_changes_what_it_is_called(images):
    area, x, y = moments(images)
    values = images.factors.values

    def means(quantity, factor):
        return torch.stack(
            [quantity[values[:, factor] == level].mean() for level in range(values[:, factor].max() + 1)]
        )

    assert (means(area, 1).diff() > 10).all()
    assert (means(x, 3).diff() > 3).all() and means(x, 4).diff().abs().max() < 1e-6
    assert (means(y, 4).diff() > 3).all() and means(y, 3).diff().abs().max() < 1e-6
    shapes = images.pixels.view(3, 3, 4, -1)
    assert (shapes[2, 2, 0] != shapes[2, 2, 2]).any()  # a heart upside down
    assert (area == area.view(-1, 25)[:, :1].repeat(1, 25).flatten()).all()  # none is cut off


def test_sizes_out_of_range_are_named():
    with pytest.raises(UsageError, match=r"data\.num_scales=0"):
        sets.shapes(num_scales=0)
    with pytest.raises(UsageError, match=r"take 360\.0 GiB"):
        sets.shapes(image_size=1024, num_positions=32, num_scales=6, num_orientations=20)


@pytest.fixture
def published(tmp_path):
    """360 images of 16x16 under the names of the published file, with a pickled member beside them."""
    rng, grid = np.random.default_rng(0), np.indices((1, 3, 2, 3, 4, 5)).reshape(6, -1).T
    np.savez_compressed(
        tmp_path / "dsprites.npz",
        imgs=rng.integers(0, 2, (len(grid), 16, 16)).astype(np.uint8),
        latents_classes=grid,
        metadata=np.array({"title": "dSprites"}, dtype=object),
    )
    return tmp_path / "dsprites.npz"


def dsprites(file, **options):
    defaults = {"cache_dir": str(file.parent / "cache"), "val_size": 20, "test_size": 40}
    return sets.dsprites(str(file), **defaults | options).load()


def test_dsprites_is_unpacked_once_and_its_pickle_is_not_read(published):
    images = dsprites(published)
    with np.load(published) as arrays:
        assert np.array_equal(images.pixels[:, 0].numpy(), arrays["imgs"] * 255)
        assert np.array_equal(images.factors.values.numpy(), arrays["latents_classes"][:, 1:])
    (cached,) = (published.parent / "cache").iterdir()
    before = cached.stat().st_mtime_ns
    images.pixels.fill_(7)
    assert dsprites(published).pixels.max() == 255 and cached.stat().st_mtime_ns == before


@pytest.mark.parametrize("content", [None, b"", b"<html>", "cut", "other"])
def test_a_file_that_is_not_dsprites_is_named(published, content):
    whole = published.read_bytes()
    published.unlink()
    if content == "other":
        np.savez(published, x=np.zeros(3))
    elif content is not None:
        published.write_bytes(whole[: len(whole) // 2] if content == "cut" else content)
    with pytest.raises(UsageError, match=r"data\.file=.*dsprites\.npz: cannot be read (?s:.*)data=shapes"):
        dsprites(published)


def test_a_cache_that_cannot_be_written_is_named(published):
    with pytest.raises(UsageError, match=r"^data\.cache_dir=.*dsprites\.npz: cannot be written"):
        dsprites(published, cache_dir=str(published))


def test_both_train_from_the_command_line(command, published):
    sizes = [f"data.{name}={value}" for name, value in SMALL.items()]
    done = command("data=shapes", *sizes, *FAST, "callbacks.images=null", "name=shapes")
    assert done.code == 0, done.stderr
    sizes = ["data.val_size=20", "data.test_size=40", f"data.file={published}", "name=dsprites"]
    done = command("data=dsprites", *sizes, *FAST, "callbacks.images=null")
    assert done.code == 0, done.stderr
    refused(command("data=dsprites", "data.root=nowhere"), "nowhere/dsprites_ndarray", "data=shapes")
