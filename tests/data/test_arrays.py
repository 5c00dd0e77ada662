"""Arrays of every layout, type and file, and what is said of those that are none."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.data import FAST
from helpers.refusals import refused

from vae_lab.data import sets
from vae_lab.utils.errors import UsageError

COLOUR = np.random.default_rng(0).integers(0, 256, (20, 3, 6, 5), dtype=np.uint8)
GREY, LABELS = COLOUR[:, :1], np.arange(20) % 3


def load(path, **options):
    return sets.arrays(str(path), **options).load()


def saved(folder, name="a.npy", **members):
    np.save(folder / name, *members.values()) if name.endswith("y") else np.savez(folder / name, **members)
    return folder / name


@pytest.mark.parametrize(
    ("array", "options", "expected"),
    [
        (COLOUR, {}, COLOUR),
        (COLOUR.transpose(0, 2, 3, 1), {}, COLOUR),
        (np.asfortranarray(COLOUR), {}, COLOUR),
        (GREY[:, 0], {}, GREY),
        (GREY.transpose(0, 2, 3, 1), {}, GREY),
        (COLOUR.reshape(20, -1), {"shape": [3, 6, 5]}, COLOUR),
        (COLOUR.transpose(0, 2, 3, 1), {"shape": [3, 6, 5]}, COLOUR),
        (
            COLOUR[..., :4, :4].reshape(20, -1)[:, :16],
            {},
            COLOUR[..., :4, :4].reshape(20, -1)[:, :16].reshape(-1, 1, 4, 4),
        ),
        (COLOUR / 255, {}, COLOUR),
        ((COLOUR / 255).astype(np.float16), {}, COLOUR),
        (COLOUR.astype(">i8"), {}, COLOUR),
        (COLOUR / 127.5 - 1, {"range": [-1, 1]}, COLOUR),
        (COLOUR.astype(np.float32), {"range": [0, 255]}, COLOUR),
        (COLOUR.astype(np.uint16) * 257, {"range": [0, 65535]}, COLOUR),
        (GREY > 127, {}, (GREY > 127) * 255),
        ((GREY > 127).astype(np.uint8), {}, (GREY > 127) * 255),
    ],
)
def test_every_layout_and_type_gives_the_same_images(tmp_path, array, options, expected):
    images = load(saved(tmp_path, array=array), **options)
    assert images.pixels.dtype == torch.uint8 and np.array_equal(images.pixels.numpy(), expected)
    assert [len(images.splits[split]) for split in ("train", "val", "test")] == [16, 2, 2]
    assert torch.cat([*images.splits.values()]).sort().values.tolist() == list(range(20))


def test_one_array_of_uint8_is_mapped_and_never_written(tmp_path):
    path = saved(tmp_path, array=COLOUR)
    images = load(path)
    assert f" {path}" in Path("/proc/self/maps").read_text()
    images.pixels.fill_(0)
    assert np.array_equal(np.load(path), COLOUR)


@pytest.mark.parametrize(
    ("members", "keys", "sizes"),
    [
        ({"x_train": GREY, "y_train": LABELS, "x_test": GREY[:5], "y_test": LABELS[:5]}, None, [18, 2, 5]),
        ({"train_images": GREY, "train_labels": LABELS[:, None], "val_images": GREY[:4], "val_labels": LABELS[:4, None],
          "test_images": GREY[:5], "test_labels": LABELS[:5, None]}, None, [20, 4, 5]),
        ({"images": GREY, "labels": LABELS.astype("U3")}, None, [16, 2, 2]),
        ({"data": GREY, "y": LABELS, "z": GREY}, {"images": "data", "labels": "y"}, [16, 2, 2]),
        ({"a": GREY, "b": GREY[:3]}, {"train_images": "a", "val_images": "b"}, [18, 3, 2]),
        ({"arr_0": GREY}, None, [16, 2, 2]),
        ({"x": GREY, "y": LABELS, "z": LABELS}, None, [16, 2, 2]),
    ],
)  # fmt: skip
def test_the_names_that_people_use(tmp_path, members, keys, sizes):
    images = load(saved(tmp_path, "a.npz", **members), keys=keys)
    assert [len(images.splits[split]) for split in ("train", "val", "test")] == sizes
    assert np.array_equal(images.pixels[:20].numpy(), GREY) and images.warnings == ()
    if any("y" in name or "label" in name for name in members):
        assert images.class_names == ("0", "1", "2")
        assert (
            images.labels.tolist()
            == (LABELS.tolist() + [0, 1, 2, 0] * (sizes == [20, 4, 5]) + LABELS[:5].tolist())[: len(images.pixels)]
        )


def test_labels_that_are_not_one_for_each_image_are_left_out_with_a_warning(tmp_path):
    images = load(saved(tmp_path, "a.npz", images=GREY, labels=np.zeros((20, 14))))
    assert (
        images.labels is None and "labels of the shapes [(20, 14)] for [20] images are left out" in images.warnings[0]
    )


@pytest.mark.parametrize(("header", "has_labels"), [("label,{}", True), ("{}", False), ("", False), ("", True)])
def test_a_csv_with_and_without_labels_and_header(tmp_path, header, has_labels):
    names = ",".join(f"pixel{i}" for i in range(16))
    flat = GREY[..., :4, :4].reshape(20, -1)
    rows = np.c_[LABELS, flat] if has_labels else flat
    lines = [header.format(names)] * bool(header) + [",".join(map(str, row)) for row in rows]
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    images = load(tmp_path / "a.csv")
    assert np.array_equal(images.pixels.numpy(), GREY[..., :4, :4])
    assert (images.labels.tolist() == LABELS.tolist()) if has_labels else images.labels is None


def test_a_first_row_of_any_numbers_is_no_header(tmp_path):
    (tmp_path / "a.csv").write_text("-1,-0.5,1e-3,1\n" + "0,0,0,0\n" * 19)
    assert load(tmp_path / "a.csv", range=(-1, 1)).pixels[0].flatten().tolist() == [0, 64, 128, 255]


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (COLOUR / 127.5 - 1, {}, r"float64 from -1 to 1, expected 0 to 1\nSet data\.range=\[BLACK,WHITE\], .*\[-1,1\]"),
        (COLOUR.astype(np.uint16) * 257, {}, r"uint16 from 0 to 65535, expected 0 to 255"),
        (np.full((3, 4, 4), np.nan), {}, r"not finite"),
        (COLOUR.reshape(20, -1), {}, r"shape \(20, 90\)\nSet data\.shape=\[C,H,W\]"),
        (COLOUR.reshape(20, -1), {"shape": [3, 6, 6]}, r"not of images \[3, 6, 6\]"),
        (np.zeros((5, 3, 8, 3)), {}, r"data\.shape"),
        (np.zeros((0, 8, 8)), {}, r"expected images"),
        (np.zeros(7), {}, r"expected images"),
        (np.zeros((8, 8, 3)), {}, r"data\.shape"),  # one picture
        (np.array([["a"]]), {"shape": [1, 1, 1]}, r"expected numbers"),
        (np.array([{"x": 1}], dtype=object), {}, r"cannot be read .*Python objects"),
    ],
)
def test_an_array_that_is_no_images_is_named(tmp_path, array, options, message):
    with pytest.raises(UsageError, match=rf"(?s)data\.file=.*a\.npy: .*{message}"):
        load(saved(tmp_path, array=array), **options)


def test_wrong_names_and_files_are_named(tmp_path):
    path = saved(tmp_path, "a.npz", a=GREY, b=GREY)
    for keys, found in ((None, "of unknown meaning"), ({"images": "c"}, "not c")):
        with pytest.raises(UsageError, match=rf"it has the arrays a, b, {found}\nSet data\.keys="):
            load(path, keys=keys)
    with pytest.raises(UsageError, match=r"data\.keys: there is no pictures\nexpected some of: images, labels, train_"):
        load(path, keys={"pictures": "a"})
    with pytest.raises(UsageError, match=r"data\.range=\[1, 1\]: expected"):
        load(path, range=(1, 1))
    with pytest.raises(UsageError, match=r"cannot be read \(.*No such file"):
        load(tmp_path / "b.npz")
    for name, content in (("c.npz", b"<html>"), ("c.npy", b""), ("c.csv", b"a,b\nc,d\n"), ("c.csv", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=rf"{name}: cannot be read"):
            load(tmp_path / name)
    with pytest.raises(UsageError, match=r"expected a file \.npz, \.npy or \.csv"):
        load(tmp_path / "c.mat")


def test_arrays_from_the_command_line(command):
    saved(command.cwd, "a.npz", pictures=np.repeat(COLOUR, 4, 0).transpose(0, 2, 3, 1), kind=np.repeat(LABELS, 4))
    options = ("data=arrays", "data.file=a.npz", *FAST, "callbacks.images=null")
    done = command(*options, "data.keys={images: pictures, labels: kind}", "model.conditional=true")
    assert done.code == 0, done.stderr
    refused(command(*options), "/a.npz", "pictures, kind", "data.keys={images: NAME")
