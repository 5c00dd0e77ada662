"""Pictures in a zip or tar: used as the folder they were, and refused whole where they are damaged or too large."""

import io
import os
import tarfile
import zipfile

import pytest
from helpers.data import write_pictures

from vae_lab.data import archives, sets
from vae_lab.data.archives import unpack_archive
from vae_lab.data.sets.pictures import find_pictures
from vae_lab.utils.errors import UsageError

KINDS = {"zip": "", "tar": "w", "tar.gz": "w:gz", "tgz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}


def load(folder, tmp_path, **options):
    return sets.folder(str(folder), **{"image_size": 4, "cache_dir": str(tmp_path / "cache")} | options).load()


def packed(path, files):
    """An archive of these names and bytes."""
    if path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files:
                archive.writestr(name, content)
        return path
    with tarfile.open(path, KINDS[path.name.lower().partition(".")[2]]) as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    folder = write_pictures(tmp_path_factory.mktemp("one"), count=1)
    return (folder / "000.png").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_is_the_folder_it_was_made_of(tmp_path, kind):
    folder = write_pictures(tmp_path / "p" / "cats", count=12, seed=1).parent
    write_pictures(folder / "dogs", count=12, seed=2)
    names, _ = find_pictures(folder)
    archive = packed(tmp_path / f"p.{kind.upper()}", [(f"./{name}", (folder / name).read_bytes()) for name in names])
    images, expected = load(archive, tmp_path), load(folder, tmp_path)
    assert (images.pixels == expected.pixels).all() and images.class_names == ("cats", "dogs")
    assert all(images.splits[split].tolist() == expected.splits[split].tolist() for split in images.splits)


def test_a_folder_around_everything_is_no_class_and_what_a_mac_adds_no_picture(tmp_path, picture):
    files = [(f"p/{name}.png", picture) for name in "abc"]
    archive = packed(tmp_path / "p.zip", [*files, ("__MACOSX/p/._a.png", b"no picture"), ("readme.txt", b"text")])
    images = load(archive, tmp_path, val_size=0, test_size=0)
    assert len(images.pixels) == 3 and images.labels is None


def test_it_is_unpacked_once_and_again_when_it_changes(tmp_path, picture):
    archive = packed(tmp_path / "p.zip", [("a.png", picture), ("b.png", picture)])
    folder = unpack_archive(archive, tmp_path / "cache")
    inode = (folder / "a.png").stat().st_ino
    assert unpack_archive(archive, tmp_path / "cache") == folder and (folder / "a.png").stat().st_ino == inode
    os.utime(archive, ns=(5, 5))
    assert unpack_archive(archive, tmp_path / "cache") != folder


def refused(archive, message, tmp_path):
    """Refused in three lines, and nothing is left anywhere."""
    (tmp_path / "cache").mkdir(exist_ok=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=rf"(?s){archive.name}: .*{message}.*unpack it yourself") as raised:
        load(archive, tmp_path)
    assert str(raised.value).count("\n") == 2 and sorted(tmp_path.rglob("*")) == before


def test_a_tar_never_writes_outside_its_folder(tmp_path, picture):
    refused(packed(tmp_path / "p.tar", [("good.png", picture), ("../../a.png", picture)]), "outside", tmp_path)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_bomb_is_refused(tmp_path, monkeypatch, kind):
    archive = packed(tmp_path / f"p.{kind}", [("a.png", bytes(10**6))])
    monkeypatch.setattr(archives, "ALLOWANCE", 10**6 - 100 * archive.stat().st_size - 1)
    refused(archive, "it unpacks to more than 100 times its size", tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_archive_is_refused(tmp_path, picture, kind):
    whole = packed(tmp_path / f"p.{kind}", [(f"{i}.png", picture) for i in range(20)]).read_bytes()
    archive = tmp_path / f"bad.{kind}"
    half = len(whole) // 2 + (600 if kind == "tar" else 0)  # within a picture: a tar may end between two members
    for content, message in (
        (whole[:half], "cannot be unpacked"),
        (b"", "cannot be unpacked"),
        (b"<html>", "HTML page"),
    ):
        archive.write_bytes(content)
        refused(archive, message, tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [({"a.txt": 0}, r"no picture in"), ({"a.png": 0, "bad.png": 50}, r"bad\.png cannot be decoded")],
)
def test_what_is_wrong_inside_is_said_of_the_archive(tmp_path, picture, files, message):
    archive = packed(tmp_path / "p.zip", [(name, picture[: len(picture) - cut]) for name, cut in files.items()])
    with pytest.raises(UsageError, match=rf"data\.folder={archive}: {message}"):
        load(archive, tmp_path)


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path, picture):
    archive = packed(tmp_path / "p.zip", [("a.png", picture)])
    with pytest.raises(UsageError, match=r"p\.zip: cannot be unpacked into data\.cache_dir=.*/p\.zip \(.+\)"):
        unpack_archive(archive, archive)


def test_an_archive_trains_from_the_command_line(command, pictures):
    packed(command.cwd / "p.zip", [(f"p/{path.name}", path.read_bytes()) for path in sorted(pictures.iterdir())])
    fast = ("debug=fast", "data.image_size=8", "trainer.num_threads=1", "callbacks.images=null", "data=folder")
    done = command(*fast, "data.folder=p.zip")
    assert done.code == 0, done.stderr
