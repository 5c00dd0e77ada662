"""A folder of pictures: what is found, how it is labelled and divided, what is wrong with it."""

import os

import pytest
import torch
from PIL import Image

from vae_lab.data.cache import cache_key
from vae_lab.data.sources import folder as folder_module
from vae_lab.data.sources.folder import ImageFolder, find_pictures
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


def source(folder, **options):
    return ImageFolder(str(folder), **{"image_size": 4, "cache_dir": str(folder.parent / "cache")} | options)


def greys(images):
    return images.pixels[:, 0, 0, 0].tolist()


def test_every_picture_once_in_the_order_of_the_names(pictures):
    images = source(pictures).load()
    assert images.pixels.shape == (25, 3, 4, 4) and images.pixels.dtype == torch.uint8
    assert greys(images) == list(GREYS)
    assert images.labels is None and images.class_names == () and images.skipped == ()


def test_one_channel_and_the_other_options_reach_the_pictures(tmp_path):
    paint(tmp_path / "p" / "a.png", 40, size=(8, 4))
    images = source(tmp_path / "p", channels=1, background="black", val_size=0, test_size=0).load()
    assert images.pixels[0, 0].tolist() == [[0] * 4, [40] * 4, [40] * 4, [0] * 4]


def test_splits_are_whole_disjoint_and_stay_when_a_picture_is_added(pictures):
    def named(images):
        names = find_pictures(pictures)
        return {split: {names[i] for i in indices} for split, indices in images.splits.items()}

    before = named(source(pictures, val_size=0.3, test_size=0.3).load())
    paint(pictures / "05b.png", 77)
    after = named(source(pictures, val_size=0.3, test_size=0.3).load())
    assert sum(map(len, after.values())) == 26 and len(set.union(*after.values())) == 26
    assert all(before[split] == after[split] - {"05b.png"} and before[split] for split in before)


def test_what_counts_as_a_picture(tmp_path):
    for name in ("b.PNG", "a.jpg", "deep/er/c.JpEg", "d.webp", "e.bmp", "f.gif"):
        paint(tmp_path / name, 9)
    for name in (".hidden.png", ".thumbs/g.png", "deep/._a.png"):
        paint(tmp_path / name, 9)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    assert find_pictures(tmp_path) == ["a.jpg", "b.PNG", "d.webp", "deep/er/c.JpEg", "e.bmp", "f.gif"]


def test_the_first_level_folders_are_the_labels(tmp_path):
    for name in ("fire/a.png", "fire/old/b.png", "water/c.png", "earth/d.png"):
        paint(tmp_path / "p" / name, 9)
    images = source(tmp_path / "p", val_size=0, test_size=0).load()
    assert images.class_names == ("earth", "fire", "water")
    assert images.labels.tolist() == [0, 1, 1, 2] and images.labels.dtype == torch.int64


def test_one_picture_outside_a_subfolder_and_there_are_no_labels(tmp_path):
    paint(tmp_path / "p" / "fire" / "a.png", 9)
    paint(tmp_path / "p" / "b.png", 9)
    images = source(tmp_path / "p", val_size=0, test_size=0).load()
    assert images.labels is None and images.class_names == ()


def test_the_second_load_decodes_nothing(pictures, monkeypatch):
    first = source(pictures).load()
    monkeypatch.setattr(folder_module, "decode", None)
    second = source(pictures, val_size=0.3).load()  # splits are no part of the cache
    assert torch.equal(first.pixels, second.pixels)


def test_a_change_in_the_folder_or_in_the_options_decodes_anew(pictures):
    assert greys(source(pictures).load())[3] == 30
    os.utime(paint(pictures / "03.png", 200), ns=(5, 5))
    assert greys(source(pictures).load())[3] == 200
    (pictures / "03.png").unlink()
    assert len(source(pictures).load().pixels) == 24
    assert source(pictures, image_size=8).load().pixels.shape == (24, 3, 8, 8)


def test_a_half_written_cache_is_made_again(pictures):
    here = source(pictures)
    here.load()
    key = cache_key(pictures, find_pictures(pictures), here.options)
    (pictures.parent / "cache" / f"{key}.npy").write_bytes(b"half")
    assert greys(here.load()) == list(GREYS)


def test_many_pictures_on_many_threads_keep_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "num_cores", lambda: 8)
    for i in range(150):
        paint(tmp_path / "p" / f"{i:03d}.png", i, size=(1 + i % 40, 1 + i % 40))
    assert greys(source(tmp_path / "p").load()) == list(range(150))


def damage(pictures):
    whole = (pictures / "07.png").read_bytes()
    (pictures / "07.png").write_bytes(whole[: len(whole) // 2])
    (pictures / "11.png").touch()
    (pictures / "11.png").write_bytes(b"")
    (pictures / "20.png").write_text("no picture")


def test_a_bad_picture_stops_the_run_names_it_and_leaves_no_cache(pictures):
    damage(pictures)
    with pytest.raises(UsageError, match=rf"{pictures}/07\.png: (?s:.*)data\.on_bad_image=skip"):
        source(pictures).load()
    assert list((pictures.parent / "cache").iterdir()) == []


def test_skip_goes_on_and_says_which(pictures):
    damage(pictures)
    for _ in range(2):  # decoded, then from the cache
        images = source(pictures, on_bad_image="skip").load()
        assert images.skipped == ("07.png", "11.png", "20.png")
        assert greys(images) == [grey for i, grey in enumerate(GREYS) if i not in (7, 11, 20)]
        assert sum(map(len, images.splits.values())) == 22


def test_stop_after_skip_still_stops(pictures):
    damage(pictures)
    source(pictures, on_bad_image="skip").load()
    with pytest.raises(UsageError, match=r"07\.png: (?s:.*)data\.on_bad_image=skip"):
        source(pictures, on_bad_image="stop").load()


def test_nothing_but_bad_pictures_is_an_error_even_with_skip(tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.png").write_text("no picture")
    with pytest.raises(UsageError, match=r"none of its 1 pictures can be read.\nThe first: .*a\.png: not a picture in"):
        source(tmp_path / "p", on_bad_image="skip", val_size=0, test_size=0).load()


def test_a_picture_above_max_pixels_is_named(pictures):
    with pytest.raises(UsageError, match=r"00\.png: 6x6 pixels, more than data\.max_pixels=35"):
        source(pictures, max_pixels=35).load()


def test_a_link_to_nowhere_is_a_bad_picture_like_others(pictures):
    (pictures / "04b.png").symlink_to("gone.png")
    with pytest.raises(UsageError, match=r"04b\.png: .*No such file(?s:.*)data\.on_bad_image=skip"):
        source(pictures).load()
    images = source(pictures, on_bad_image="skip").load()
    assert images.skipped == ("04b.png",) and greys(images) == list(GREYS)


def test_a_folder_that_cannot_be_listed_is_named(pictures, monkeypatch):
    paint(pictures / "closed" / "a.png", 9)
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UsageError, match=r"pictures/closed cannot be listed \(Permission denied\)"):
        source(pictures).load()


def test_a_missing_folder_is_three_lines_and_names_the_digits(tmp_path):
    with pytest.raises(UsageError) as raised:
        source(tmp_path / "gone").load()
    first, second, third = str(raised.value).split("\n")
    assert first == f"data.folder: no such folder: {tmp_path}/gone"
    assert "png, jpg, jpeg, webp, bmp, gif" in second and "data.folder=DIR" in second and "pokemon" not in second
    assert "data=digits" in third


def test_a_missing_pokemon_folder_names_its_download(tmp_path):
    with pytest.raises(UsageError, match=r"python -m vae_lab\.data\.download pokemon"):
        source(tmp_path / "pokemon").load()


def test_an_empty_folder_is_told_from_a_missing_one(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=rf"data\.folder: no picture in {tmp_path}/empty"):
        source(tmp_path / "empty").load()


def test_a_folder_too_small_to_divide_is_refused_before_decoding(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "decode", None)
    paint(tmp_path / "p" / "a.png", 9)
    with pytest.raises(UsageError, match=r"leave no image to train on: there are 1 images"):
        source(tmp_path / "p", val_size=0.495, test_size=0.495).load()


def test_a_cache_that_cannot_be_written_is_named(pictures):
    with pytest.raises(UsageError, match=r"data\.cache_dir=.*/00\.png: cannot be written"):
        source(pictures, cache_dir=str(pictures / "00.png")).load()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"on_bad_image": "ignore"}, r"data\.on_bad_image=ignore: expected stop or skip"),
        ({"fit": "squeeze"}, r"data\.fit=squeeze"),
        ({"channels": 2}, r"data\.channels=2"),
        ({"image_size": 0}, r"data\.image_size=0"),
        ({"background": "whitish"}, r"data\.background=whitish"),
        ({"val_size": 5000}, r"data\.val_size=5000: expected a fraction"),
        ({"val_size": 0.5, "test_size": 0.5}, "expected their sum to be below 1"),
    ],
)
def test_a_wrong_option_is_named_at_construction(tmp_path, option, message):
    with pytest.raises(UsageError, match=message):
        source(tmp_path, **option)


@pytest.mark.skipif("VAE_LAB_DATA" not in os.environ, reason="the real pictures are not here")
def test_the_real_pictures_are_drawn_on_white(tmp_path):
    images = ImageFolder(os.environ["VAE_LAB_DATA"] + "/pokemon", image_size=32, cache_dir=str(tmp_path)).load()
    corners = images.pixels[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].float().mean()
    assert images.pixels.shape[1:] == (3, 32, 32) and corners > 250
