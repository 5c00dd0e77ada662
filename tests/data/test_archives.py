"""Pictures in a zip or tar: used as the folder they were, and refused whole where they are damaged or hostile."""

import io
import multiprocessing
import os
import random
import tarfile
import zipfile

import pytest
from helpers.data import write_pictures

from vae_lab.data.sources import archives
from vae_lab.data.sources.archives import unpack_archive
from vae_lab.data.sources.folder import ImageFolder, find_pictures
from vae_lab.utils.errors import UsageError

KINDS = {"zip": "", "tar": "w", "tar.gz": "w:gz", "tgz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}


def source(folder, tmp_path, **options):
    return ImageFolder(str(folder), **{"image_size": 4, "cache_dir": str(tmp_path / "cache")} | options)


def packed(path, files):
    """An archive of these members: a name, or a TarInfo to write as it is, and bytes."""
    if path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files:
                archive.writestr(name, content)
        return path
    with tarfile.open(path, KINDS[path.name.lower().partition(".")[2]]) as archive:
        for name, content in files:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = info.size or len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    folder = write_pictures(tmp_path_factory.mktemp("one"), count=1)
    return (folder / "000.png").read_bytes()


def refused(archive, message, tmp_path):
    """Refused in three lines, and nothing was left anywhere."""
    (tmp_path / "cache").mkdir(exist_ok=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=rf"(?s){archive.name}: .*{message}.*unpack it yourself") as raised:
        source(archive, tmp_path).load()
    assert str(raised.value).count("\n") == 2 and sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_is_the_folder_it_was_made_of(tmp_path, kind):
    folder = write_pictures(tmp_path / "p" / "cats", count=12, seed=1).parent
    write_pictures(folder / "dogs", count=12, seed=2)
    names = find_pictures(folder)
    archive = packed(tmp_path / f"p.{kind.upper()}", [(f"./{name}", (folder / name).read_bytes()) for name in names])
    images, expected = source(archive, tmp_path).load(), source(folder, tmp_path).load()
    assert (images.pixels == expected.pixels).all() and images.class_names == ("cats", "dogs")
    assert all(images.splits[split].tolist() == expected.splits[split].tolist() for split in images.splits)


def test_a_folder_around_everything_is_no_class_and_what_a_mac_adds_no_picture(tmp_path, picture):
    files = [(f"p/{name}.png", picture) for name in "abc"]
    archive = packed(tmp_path / "p.zip", [*files, ("__MACOSX/p/._a.png", b"no picture"), ("readme.txt", b"text")])
    images = source(archive, tmp_path, val_size=0, test_size=0).load()
    assert len(images.pixels) == 3 and images.labels is None


def test_it_is_unpacked_once_and_again_when_it_changes(tmp_path, picture):
    archive = packed(tmp_path / "p.zip", [("a.png", picture), ("b.png", picture)])
    folder = unpack_archive(archive, tmp_path / "cache")
    inode = (folder / "a.png").stat().st_ino
    assert unpack_archive(archive, tmp_path / "cache") == folder and (folder / "a.png").stat().st_ino == inode
    os.utime(archive, ns=(5, 5))
    assert unpack_archive(archive, tmp_path / "cache") != folder


def together(archive, cache_dir, barrier, results):
    barrier.wait()
    folder = unpack_archive(archive, cache_dir)
    results.put((str(folder), len(find_pictures(folder))))


def test_four_processes_at_once_leave_one_whole_folder(tmp_path, picture):
    archive = packed(tmp_path / "p.tar.gz", [(f"{i:03}.png", picture) for i in range(200)])
    fork = multiprocessing.get_context("fork")
    barrier, results = fork.Barrier(4), fork.Queue()
    processes = [fork.Process(target=together, args=(archive, tmp_path / "c", barrier, results)) for _ in range(4)]
    for process in processes:
        process.start()
    found = {results.get(timeout=30) for _ in processes}
    for process in processes:
        process.join()
    assert len(found) == 1 and found.pop()[1] == 200 and len(list((tmp_path / "c").iterdir())) == 1


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
@pytest.mark.parametrize("name", ["/etc/a.png", "../a.png", "b/../../a.png"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, picture, kind, name):
    refused(
        packed(tmp_path / f"p.{kind}", [("good.png", picture), (name, picture)]), "leads out of its folder", tmp_path
    )


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_a_tar_with_a_link_elsewhere_or_a_device_is_refused(tmp_path, picture, kind):
    info = tarfile.TarInfo("link.png")
    info.type, info.linkname = kind, "/etc/passwd"
    refused(packed(tmp_path / "p.tar", [("good.png", picture), (info, b"")]), "link.png", tmp_path)


def test_a_bomb_is_refused(tmp_path, monkeypatch):
    for kind in ("zip", "tar.gz"):
        archive = packed(tmp_path / f"p.{kind}", [("a.png", bytes(10**6))])
        monkeypatch.setattr(archives, "ALLOWANCE", 10**6 - 100 * archive.stat().st_size - 1)
        refused(archive, "it unpacks to more than 100 times its size", tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_archive_is_refused(tmp_path, picture, kind):
    whole = packed(tmp_path / f"p.{kind}", [(f"{i}.png", picture) for i in range(20)]).read_bytes()
    archive = tmp_path / f"bad.{kind}"
    half = len(whole) // 2 + (600 if kind == "tar" else 0)  # within a picture: a tar may end between two members
    for content in (whole[:half], b"", b"PK no", b"<html>"):
        archive.write_bytes(content)
        refused(archive, "cannot be unpacked", tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_random_damage_is_a_folder_or_refused_never_another_error(tmp_path, picture, kind):
    whole = packed(tmp_path / f"p.{kind}", [(f"{i}.png", picture) for i in range(3)]).read_bytes()
    archive, rng = tmp_path / f"bad.{kind}", random.Random(0)
    for number in range(40):
        content = bytearray(whole)
        for _ in range(rng.choice((1, 8))):
            content[rng.randrange(len(content))] = rng.randrange(256)
        archive.write_bytes(content[: rng.choice((len(content), rng.randrange(len(content))))])
        os.utime(archive, ns=(number, number))
        try:
            assert unpack_archive(archive, tmp_path / "cache").is_dir()
        except UsageError as error:
            assert str(archive) in str(error)


def test_an_archive_without_pictures_says_so(tmp_path):
    archive = packed(tmp_path / "p.zip", [("a.txt", b"x")])
    with pytest.raises(UsageError, match=r"p\.zip, unpacked: data\.folder: no picture in"):
        source(archive, tmp_path).load()


def test_a_folder_with_an_archives_name_is_a_folder(tmp_path):
    assert len(source(write_pictures(tmp_path / "folder.zip"), tmp_path).load().pixels) == 30


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path, picture):
    archive = packed(tmp_path / "p.zip", [("a.png", picture)])
    with pytest.raises(UsageError, match=r"p\.zip: cannot be unpacked into data\.cache_dir=.*/p\.zip \(.+\)"):
        unpack_archive(archive, archive)


def test_a_bad_picture_in_an_archive_is_named_with_the_archive(tmp_path, picture):
    archive = packed(tmp_path / "p.zip", [("a.png", picture), ("bad.png", picture[:-50])])
    with pytest.raises(UsageError, match=r"p\.zip, unpacked: .*/bad\.png: (?s:.*)data\.on_bad_image=skip"):
        source(archive, tmp_path).load()


def test_an_archive_trains_and_a_bad_one_is_said_on_the_command_line(command, pictures, picture, tmp_path):
    files = [(f"p/{path.name}", path.read_bytes()) for path in sorted(pictures.iterdir())]
    packed(tmp_path / "p.zip", files)
    fast = ("debug=fast", "data.image_size=8", "trainer.num_threads=1", "data=folder")
    done = command(*fast, "data.folder=p.zip")
    assert done.code == 0, done.stderr
    packed(tmp_path / "bad.zip", [*files, ("../../a.png", picture)])
    done = command("data=folder", "data.folder=bad.zip")
    assert done.code == 2 and "its member '../../a.png' leads out of its folder" in done.stderr
