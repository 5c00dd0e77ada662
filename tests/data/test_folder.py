"""A folder of pictures: what is found, how it is labelled and split, what is cached, what is wrong with it."""

import os
import resource

import numpy as np
import pytest
import torch
from helpers.data import FAST
from PIL import Image

from vae_lab.data import cache, sets
from vae_lab.data.sets.pictures import find_pictures
from vae_lab.utils.errors import UsageError

GREYS = range(0, 250, 10)


def paint(path, grey, size=(6, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, grey).save(path)
    return path


@pytest.fixture
def pictures(tmp_path):
    """25 pictures, each of its own grey, in the order of their names."""
    for i, grey in enumerate(GREYS):
        paint(tmp_path / "pictures" / f"{i:02d}.png", grey)
    return tmp_path / "pictures"


def load(folder, **options):
    return sets.folder(str(folder), **{"image_size": 4, "cache_dir": str(folder.parent / "cache")} | options).load()


def greys(images):
    return images.pixels[:, 0, 0, 0].tolist()


def test_every_picture_once_in_the_order_of_the_names(pictures):
    images = load(pictures)
    assert images.pixels.shape == (25, 3, 4, 4) and images.pixels.dtype == torch.uint8
    assert greys(images) == list(GREYS)
    assert images.labels is None and images.class_names == () and images.skipped == ()


def test_the_options_reach_the_pictures(tmp_path):
    paint(tmp_path / "p" / "a.png", 40, size=(8, 4))
    images = load(tmp_path / "p", channels=1, background="black", val_size=0, test_size=0)
    assert images.pixels[0, 0].tolist() == [[0] * 4, [40] * 4, [40] * 4, [0] * 4]


def test_what_counts_as_a_picture(tmp_path):
    read = ["a.jpg", "b.PNG", "d.webp", "deep/er/c.JpEg", "e.bmp", "f.gif", "g.tif", "h.pgm"]
    for name in read:
        paint(tmp_path / name, 9)
    for name in (".hidden.png", ".thumbs/g.png", "deep/._a.png"):
        paint(tmp_path / name, 9)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    assert find_pictures(tmp_path) == (read, ["notes.txt"])


def test_links_to_folders_are_followed_once_and_never_in_circles(tmp_path):
    for name in ("p/cats/a.png", "elsewhere/dogs/b.png", "p/.store/fish/c.png", "elsewhere/dogs/old/d.png"):
        paint(tmp_path / name, 9)
    links = {"p/dogs": "elsewhere/dogs", "p/fish": "p/.store/fish", "p/alias": "p/cats", "p/dogs2": "elsewhere/dogs",
             "p/cats/up": "p", "elsewhere/dogs/root": "p", "elsewhere/dogs/self": "elsewhere/dogs",
             "p/.store/fish/round": "p/.store/fish"}  # fmt: skip
    for link, target in links.items():
        (tmp_path / link).symlink_to(tmp_path / target)
    expected = ["cats/a.png", "dogs/b.png", "dogs/old/d.png", "fish/c.png"]
    assert find_pictures(tmp_path / "p")[0] == expected
    (tmp_path / "link").symlink_to("p")
    assert find_pictures(tmp_path / "link")[0] == expected


def test_what_is_left_out_is_counted_and_named(pictures):
    for name in ("a.heic", "b.heic", "sub/c.psd", "README"):
        (pictures / name).parent.mkdir(exist_ok=True)
        (pictures / name).write_bytes(b"another format")
    (warning,) = load(pictures).warnings
    assert "4 files are left out" in warning
    assert "2 .heic such as a.heic" in warning and "1 .psd such as sub/c.psd" in warning
    assert load(pictures).warnings == (warning,)  # from the cache


def test_the_first_level_folders_are_the_labels_if_all_pictures_are_in_one(tmp_path):
    for name in ("fire/a.png", "fire/old/b.png", "water/c.png", "earth/d.png"):
        paint(tmp_path / "p" / name, 9)
    images = load(tmp_path / "p", val_size=0, test_size=0)
    assert images.class_names == ("earth", "fire", "water")
    assert images.labels.tolist() == [0, 1, 1, 2] and images.labels.dtype == torch.int64
    assert images.warnings == ()
    paint(tmp_path / "p" / "b.png", 9)
    images = load(tmp_path / "p", val_size=0, test_size=0)
    assert images.labels is None and images.class_names == ()
    assert images.warnings == ("no labels, because 1 pictures are in no class folder, such as b.png",)


# --- splits by folder -----------------------------------------------------------------------------------------------


def by_split(images):
    return {split: sorted(greys(images._replace(pixels=images.pixels[rows]))) for split, rows in images.splits.items()}


@pytest.mark.parametrize("val", ["val", "Valid", "validation"])
def test_folders_that_are_named_so_are_the_splits_and_theirs_the_classes(tmp_path, val):
    for part, levels in (("train", (1, 2, 3)), (val, (4,)), ("test", (5, 6))):
        for grey in levels:
            paint(tmp_path / "p" / part / ("dogs", "cats")[grey % 2] / f"{grey}.png", grey)
    images = load(tmp_path / "p")
    assert by_split(images) == {"train": [1, 2, 3], "val": [4], "test": [5, 6]}
    assert images.class_names == ("cats", "dogs")
    assert images.labels.tolist() == [1 - grey % 2 for grey in greys(images)]


def test_validation_pictures_are_taken_from_train_where_only_test_is_there(tmp_path):
    for i in range(60):
        paint(tmp_path / "p" / ("test" if i < 10 else "train") / f"{i}.png", i)
    paint(tmp_path / "p" / "extra" / "x.png", 99)
    paint(tmp_path / "p" / "y.png", 99)
    images = load(tmp_path / "p", val_size=0.3, test_size=0.5)
    found = by_split(images)
    assert found["test"] == list(range(10)) and 5 < len(found["val"]) < 30
    assert sorted(found["train"] + found["val"]) == list(range(10, 60)) and images.labels is None
    assert "2 pictures beside the folders of the splits are left out, such as extra/x.png" in images.warnings[0]


def test_a_folder_train_alone_is_a_class_as_any_other(tmp_path):
    for name in ("train/a.png", "trains/b.png"):
        paint(tmp_path / "p" / name, 9)
    assert load(tmp_path / "p", val_size=0, test_size=0).class_names == ("train", "trains")


# --- 16 bits --------------------------------------------------------------------------------------------------------


def paint16(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 6), level, np.uint16)).save(path)


def test_twelve_bits_in_sixteen_are_a_warning_or_scaled(tmp_path):
    for i in range(10):
        paint16(tmp_path / "p" / f"{i}.png", 400 * i)
    for _ in range(2):
        images = load(tmp_path / "p")
        assert max(greys(images)) == 14
        assert "no 16-bit picture is brighter than 3600 of 65535: set data.range=[0,3600]" in images.warnings[0]
    scaled = load(tmp_path / "p", range=(0, 3600))
    assert max(greys(scaled)) == 255 and scaled.warnings == ()
    paint16(tmp_path / "p" / "bright.png", 20_000)
    assert load(tmp_path / "p").warnings == ()


def test_splits_shapes_and_four_channels_from_the_command_line(command):
    for part, count in (("train", 24), ("val", 8), ("test", 8)):
        for i in range(count):
            paint16(command.cwd / "p" / part / "ab"[i % 2] / f"{i}.tif", 150 * i)
        (command.cwd / "p" / part / "b" / "x.heic").write_text("left out")
    options = ("data=folder", "data.folder=p", *FAST, "trainer.max_epochs=1", "model=conv")
    done = command(
        *options,
        "data.image_size=[16,24]",
        "data.channels=4",
        "callbacks.images=null",
        "second_stage=null",
        "name=four",
    )
    assert done.code == 0, done.stderr
    assert "3 files are left out" in done.stderr and "data.range=[0,3450]" in done.stderr
    done = command(*options, "data.image_size=[8,16]", "data.range=[0,4095]", "callbacks.images=null", "name=wide",
                   "model.conditional=true")  # fmt: skip
    assert done.code == 0, done.stderr
    assert "data.range=" not in done.stderr


# --- the cache ----------------------------------------------------------------------------------------------------


def test_the_second_load_decodes_nothing_and_writing_to_the_images_changes_no_file(pictures, monkeypatch):
    load(pictures).pixels.fill_(9)
    monkeypatch.setattr(cache, "decode", None)
    assert greys(load(pictures, val_size=0.3)) == list(GREYS)  # splits are no part of the cache


def test_a_change_in_the_folder_or_in_the_options_decodes_anew(pictures):
    assert greys(load(pictures))[3] == 30
    os.utime(paint(pictures / "03.png", 200), ns=(5, 5))
    assert greys(load(pictures))[3] == 200
    (pictures / "03.png").unlink()
    assert len(load(pictures).pixels) == 24
    assert load(pictures, image_size=8).pixels.shape == (24, 3, 8, 8)


@pytest.mark.parametrize("suffix", [".npy", ".json"])
@pytest.mark.parametrize("length", [None, 0, -1])
def test_an_incomplete_cache_is_made_again(pictures, suffix, length):
    load(pictures)
    (file,) = (pictures.parent / "cache").glob(f"*{suffix}")
    file.unlink() if length is None else file.write_bytes(file.read_bytes()[:length])
    assert greys(load(pictures)) == list(GREYS)
    assert len(list(file.parent.iterdir())) == 2


def test_a_stopped_decoding_and_a_full_disk_leave_nothing(pictures, monkeypatch):
    """A limit on the size of files stands in for the disk; Python ignores its signal and sees an OSError."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(UsageError, match=r"data\.cache_dir=.*cannot be written"):
            load(pictures, image_size=128)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((pictures.parent / "cache").iterdir()) == []

    def interrupted(path, options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(pictures)
    assert list((pictures.parent / "cache").iterdir()) == []


def test_many_pictures_on_many_threads_keep_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "num_cores", lambda: 8)
    for i in range(150):
        paint(tmp_path / "p" / f"{i:03d}.png", i, size=(1 + i % 40, 1 + i % 40))
    assert greys(load(tmp_path / "p")) == list(range(150))


# --- what is wrong ------------------------------------------------------------------------------------------------


def test_unreadable_pictures_stop_the_run_or_are_left_out(pictures):
    whole = (pictures / "07.png").read_bytes()
    (pictures / "07.png").write_bytes(whole[: len(whole) // 2])
    (pictures / "11.png").write_bytes(b"")
    (pictures / "20b.png").symlink_to("gone.png")
    for _ in range(2):  # decoded, then from the cache
        with pytest.raises(UsageError, match=rf"{pictures}: 07\.png cannot be decoded (?s:.*)3 of 26 pictures"):
            load(pictures)
        images = load(pictures, on_bad_image="skip")
        assert images.skipped == ("07.png", "11.png", "20b.png")
        kept = torch.cat([*images.splits.values()]).sort().values
        assert greys(images._replace(pixels=images.pixels[kept])) == [g for g in GREYS if g not in (70, 110)]


@pytest.mark.parametrize("on_bad_image", ["stop", "skip"])
def test_nothing_but_bad_pictures_is_an_error_even_with_skip(tmp_path, on_bad_image):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "caf\udce9.png").write_text("no picture, and a name that is no UTF-8")
    with pytest.raises(UsageError, match=r"\.png cannot be decoded.*\n1 of 1 pictures cannot be read"):
        load(tmp_path / "p", on_bad_image=on_bad_image, val_size=0, test_size=0)


def test_a_folder_that_cannot_be_listed_is_named(pictures, monkeypatch):
    paint(pictures / "closed" / "a.png", 9)
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UsageError, match=r"pictures/closed cannot be listed \(Permission denied\)"):
        load(pictures)


@pytest.mark.parametrize(
    ("name", "found", "download"),
    [("gone", "no such folder:", False), ("pokemon", "no such folder:", True), ("empty", "no picture in", False)],
)
def test_a_missing_or_empty_folder_is_three_lines_and_names_what_can_be_done(tmp_path, name, found, download):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError) as raised:
        load(tmp_path / name)
    first, second, third = str(raised.value).split("\n")
    assert first == f"data.folder={tmp_path}/{name}: {found} {tmp_path}/{name}"
    assert "png, jpg, jpeg, jpe, jfif, webp" in second and "data.folder=DIR" in second
    assert ("python -m vae_lab.data.download pokemon" in second) == download
    assert "data=digits" in third


def test_a_folder_too_small_to_split_is_refused_before_decoding(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "decode", None)
    paint(tmp_path / "p" / "a.png", 9)
    with pytest.raises(UsageError, match=r"leave no image to train on: there are 1 images"):
        load(tmp_path / "p", val_size=0.495, test_size=0.495)


def test_a_cache_that_cannot_be_written_is_named(pictures):
    with pytest.raises(UsageError, match=r"data\.cache_dir=.*/00\.png: cannot be written"):
        load(pictures, cache_dir=str(pictures / "00.png"))
