"""Pictures in a zip or tar: used as the folder they were, and refused whole where they could do harm."""

import bz2
import gzip
import io
import lzma
import multiprocessing
import os
import stat
import struct
import tarfile
import time
import zipfile

import pytest
from helpers.data import write_pictures

from vae_lab.data.sources import archives
from vae_lab.data.sources.archives import unpack_archive
from vae_lab.data.sources.folder import ImageFolder, find_pictures
from vae_lab.utils.errors import UsageError

KINDS = ("zip", "tar", "tar.gz", "tgz", "tar.bz2", "tar.xz")
PACKERS = {"gz": gzip.compress, "tgz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


def source(folder, tmp_path, **options):
    return ImageFolder(str(folder), **{"image_size": 4, "cache_dir": str(tmp_path / "cache")} | options)


def packed(path, files):
    """An archive of these members: bytes, or a ZipInfo or TarInfo to write as it is with the bytes."""
    buffer = io.BytesIO()
    if path.suffix == ".zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files:
                archive.writestr(name, content)
    else:
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, content in files:
                info = tarfile.TarInfo(name) if isinstance(name, str) else name
                info.size = info.size or len(content)
                archive.addfile(info, io.BytesIO(content))
    path.write_bytes(PACKERS.get(path.suffix[1:], bytes)(buffer.getvalue()))
    return path


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    folder = write_pictures(tmp_path_factory.mktemp("one"), count=1)
    return (folder / "000.png").read_bytes()


def everything(folder):
    """Every path below the folder, and what it holds."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def refused(archive, message, tmp_path, **options):
    """Refused with a message, at once, and nothing was left anywhere."""
    (tmp_path / "cache").mkdir(exist_ok=True)
    before, start = everything(tmp_path), time.process_time()
    with pytest.raises(UsageError, match=rf"(?s){archive.name}: .*{message}.*unpack it yourself") as raised:
        source(archive, tmp_path, **options).load()
    assert str(raised.value).count("\n") == 2
    assert everything(tmp_path) == before and time.process_time() - start < 3


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_is_the_folder_it_was_made_of(tmp_path, kind):
    folder = write_pictures(tmp_path / "p" / "cats", count=12, seed=1).parent
    write_pictures(folder / "dogs", count=12, seed=2)
    names = find_pictures(folder)
    archive = packed(tmp_path / f"p.{kind.upper()}", [(f"./{name}", (folder / name).read_bytes()) for name in names])
    images, expected = source(archive, tmp_path).load(), source(folder, tmp_path).load()
    assert (images.pixels == expected.pixels).all() and images.class_names == ("cats", "dogs")
    assert all(images.splits[split].tolist() == expected.splits[split].tolist() for split in images.splits)


def test_a_folder_around_everything_is_no_class(tmp_path, picture):
    archive = packed(tmp_path / "p.zip", [(f"p/{name}.png", picture) for name in "abc"])
    assert source(archive, tmp_path, val_size=0, test_size=0).load().labels is None


def test_only_pictures_are_unpacked_and_no_hidden_ones(tmp_path, picture):
    others = ["notes.txt", "run.sh", "a.tiff", ".hidden.png", ".git/a.png", "__MACOSX/a.png", "__MACOSX/._a.png", "png"]
    good = ["a.PNG", "deep/er/b.jpeg", "with\\backslash.png"]
    for kind in ("zip", "tar"):
        archive = packed(tmp_path / f"p.{kind}", [(name, picture) for name in others + good])
        folder = unpack_archive(archive, tmp_path / "cache", 10**6)
        assert find_pictures(folder) == ["a.PNG", "deep/er/b.jpeg", "with/backslash.png"]
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert len(files) == 3 and not any(path.stat().st_mode & 0o111 for path in files)


def test_it_is_unpacked_once_and_again_when_it_or_what_was_unpacked_changes(tmp_path, picture):
    archive = packed(tmp_path / "p.zip", [("a.png", picture), ("b.png", picture)])
    folder = unpack_archive(archive, tmp_path / "cache", 10**6)
    inode = (folder / "a.png").stat().st_ino
    assert unpack_archive(archive, tmp_path / "cache", 10**6) == folder and (folder / "a.png").stat().st_ino == inode
    old = (folder / "a.png").stat().st_mtime_ns
    (folder / "a.png").unlink()
    assert unpack_archive(archive, tmp_path / "cache", 10**6) == folder and (folder / "a.png").stat().st_mtime_ns == old
    (folder / "b.png").write_bytes(b"")
    unpack_archive(archive, tmp_path / "cache", 10**6)
    assert (folder / "b.png").read_bytes() == picture
    os.utime(archive, ns=(5, 5))
    assert unpack_archive(archive, tmp_path / "cache", 10**6) != folder
    assert not list((tmp_path / "cache").glob(".building-*"))


def together(archive, cache_dir, barrier, results):
    barrier.wait()
    folder = unpack_archive(archive, cache_dir, 10**6)
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


NAMES = {
    "/etc/a.png": "is an absolute name",
    "\\\\server\\a.png": "is an absolute name",
    "C:\\a.png": "is an absolute name",
    "c:a.png": "is an absolute name",
    "../a.png": "leads out of its folder",
    "b/../../a.png": "leads out of its folder",
    "b\\..\\..\\a.png": "leads out of its folder",
    "../outside.txt": "leads out of its folder",
}


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, picture, kind, name):
    archive = packed(tmp_path / f"p.{kind}", [("good.png", picture), (name, picture)])
    refused(archive, NAMES[name], tmp_path)


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("names", [("a.png", "./a.png"), ("b//a.png", "b/a.png"), ("a.png", "a.png/b.png")])
def test_names_that_are_one_are_refused(tmp_path, picture, kind, names):
    for order in (names, names[::-1]):
        archive = packed(tmp_path / f"p.{kind}", [(name, picture) for name in order])
        refused(archive, "has the same path as another member", tmp_path)


TAR_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a device",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


@pytest.mark.parametrize("kind", TAR_KINDS)
@pytest.mark.parametrize("name", ["link.png", "link"])
def test_a_tar_with_more_than_files_and_folders_is_refused(tmp_path, picture, kind, name):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    archive = packed(tmp_path / "p.tar", [("good.png", picture), (info, b""), ("link/a.png", picture)])
    refused(archive, f"{name}' is {TAR_KINDS[kind]}", tmp_path)


@pytest.mark.parametrize(("mode", "what"), [(stat.S_IFLNK, "a symbolic link"), (stat.S_IFCHR, "a device")])
def test_a_zip_with_a_link_or_device_is_refused(tmp_path, picture, mode, what):
    info = zipfile.ZipInfo("link.png")
    info.external_attr = (mode | 0o777) << 16
    archive = packed(tmp_path / "p.zip", [("good.png", picture), (info, b"/etc/passwd")])
    refused(archive, f"'link.png' is {what}", tmp_path)


def patched(archive, signature, offset, value):
    """The archive with some bytes behind every such signature changed."""
    content, at = bytearray(archive.read_bytes()), 0
    while (at := content.find(signature, at)) >= 0:
        content[at + offset : at + offset + len(value)] = value
        at += 4
    archive.write_bytes(content)
    return archive


def test_an_encrypted_zip_is_refused(tmp_path, picture):
    archive = packed(tmp_path / "p.zip", [("a.png", picture)])
    refused(patched(archive, b"PK\1\2", 8, b"\1\0"), "'a.png' is encrypted", tmp_path)


def test_a_packing_that_is_not_known_is_refused(tmp_path, picture):
    archive = packed(tmp_path / "p.zip", [("a.png", picture)])
    refused(patched(archive, b"PK\1\2", 10, b"\x63\0"), "'a.png' is damaged", tmp_path)


def test_a_zip_that_holds_other_bytes_than_it_says_is_refused(tmp_path, picture):
    archive = packed(tmp_path / "p.zip", [("a.png", picture)])
    for size in (len(picture) - 1, len(picture) + 1):
        patched(archive, b"PK\1\2", 24, struct.pack("<I", size))
        refused(archive, "'a.png' (is damaged|does not have the)", tmp_path)


def test_a_zip_bomb_is_refused(tmp_path):
    """Ten gigabytes of zeros in ten megabytes; also where it claims fewer."""
    archive = tmp_path / "bomb.zip"
    with (
        zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        file.open("a.png", "w") as member,
    ):
        for _ in range(32):
            member.write(bytes(2**23))
    patched(archive, b"PK\1\2", 24, struct.pack("<I", 4_000_000_000))
    refused(archive, "it unpacks to more than 100 times its size", tmp_path)
    patched(archive, b"PK\1\2", 24, struct.pack("<I", 100_000_001))
    refused(archive, "'a.png' has 100000001 bytes, more than data.max_bytes=100000000", tmp_path)
    patched(archive, b"PK\1\2", 24, struct.pack("<I", 5_000_000))
    refused(archive, "'a.png' is damaged", tmp_path)


@pytest.mark.parametrize("name", ["zeros.png", "zeros.bin"])
@pytest.mark.parametrize("kind", ["tar.gz", "tar.xz"])
def test_a_tar_bomb_is_refused(tmp_path, name, kind):
    """Ten gigabytes are claimed, a quarter of one is there."""
    archive, header = tmp_path / f"bomb.{kind}", tarfile.TarInfo(name)
    header.size = 10_000_000_000
    with gzip.open(archive, "wb", 1) if kind == "tar.gz" else lzma.open(archive, "wb", preset=0) as file:
        file.write(header.tobuf())
        for _ in range(32):
            file.write(bytes(2**23))
    refused(archive, "(more than 100 times its size|more than data.max_bytes=100000000)", tmp_path)


def test_a_tar_header_that_claims_a_name_of_gigabytes_is_refused(tmp_path):
    for kind in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
        header = tarfile.TarInfo("long")
        header.type, header.size = kind, 2_000_000_000
        archive = tmp_path / "long.tar"
        archive.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(10_000))
        refused(archive, "a header of 2000000[0-9]+ bytes", tmp_path)


def test_many_small_members_are_a_bomb_too(tmp_path, picture, monkeypatch):
    archive = packed(tmp_path / "p.zip", [(f"{i}.png", picture) for i in range(5)])
    monkeypatch.setattr(archives, "MAX_MEMBERS", 4)
    refused(archive, "it has more than 4 members", tmp_path)
    monkeypatch.setattr(archives, "MAX_MEMBERS", 5)
    monkeypatch.setattr(archives, "MAX_TOTAL", 5 * len(picture) - 1)
    refused(archive, f"its pictures are more than {5 * len(picture) - 1} bytes", tmp_path)


def test_a_picture_above_max_bytes_is_named(tmp_path, picture):
    archive = packed(tmp_path / "p.tar", [("a.png", picture), ("big.bin", picture * 2), ("b.png", picture + b"x")])
    message = rf"'b\.png' has {len(picture) + 1} bytes, more than data.max_bytes={len(picture)}"
    refused(archive, message, tmp_path, max_bytes=len(picture))


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_archive_is_refused(tmp_path, picture, kind):
    whole = packed(tmp_path / f"p.{kind}", [(f"{i}.png", picture) for i in range(20)]).read_bytes()
    archive = tmp_path / f"bad.{kind}"
    header = len(picture) // 512 * 512 + 1024 + 100 if kind == "tar" else len(whole) // 2  # a tar has no other checksum
    for content in (whole[: len(whole) // 2], whole[:header] + b"\xa5" + whole[header + 1 :], b"", b"PK no", b"<html>"):
        archive.write_bytes(content)
        refused(archive, "(damaged|cut short|does not have the)", tmp_path)


def test_a_flipped_bit_in_a_zips_name_does_not_leave_the_picture_out(tmp_path, picture):
    archive = packed(tmp_path / "p.zip", [("a.png", picture), ("b.png", picture)])
    content = archive.read_bytes()
    archive.write_bytes(
        content[: content.rindex(b"b.png")] + content[content.rindex(b"b.png") :].replace(b"png", b"pnf")
    )
    refused(archive, "it is damaged", tmp_path)


def test_a_damaged_length_in_a_zips_list_does_not_leave_pictures_out(tmp_path, picture):
    """The first member claims a comment, which is the second one's place in the list."""
    archive = packed(tmp_path / "p.zip", [("a.png", picture), ("b.png", picture)])
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\1\2") + 32] = 46 + len("b.png")
    archive.write_bytes(content)
    refused(archive, r"it is damaged \(1 members of 2\)", tmp_path)


def test_a_tar_cut_between_two_members_is_refused(tmp_path, picture):
    """For tarfile itself it just ends."""
    archive = packed(tmp_path / "p.tar", [(f"{i}.png", picture) for i in range(3)])
    os.truncate(archive, 2 * (512 + -(-len(picture) // 512) * 512))
    refused(archive, "it is damaged or cut short at byte", tmp_path)


def test_an_archive_without_pictures_is_refused(tmp_path):
    refused(packed(tmp_path / "p.zip", [("a.txt", b"x")]), "it holds no picture", tmp_path)


def test_what_is_no_file_is_refused_and_a_folder_with_such_a_name_is_a_folder(tmp_path):
    os.mkfifo(tmp_path / "p.zip")
    with pytest.raises(UsageError, match=r"p\.zip: it cannot be read \(a named pipe\)"):
        source(tmp_path / "p.zip", tmp_path).load()
    assert len(source(write_pictures(tmp_path / "folder.zip"), tmp_path).load().pixels) == 30


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path, picture):
    archive = packed(tmp_path / "p.zip", [("a.png", picture)])
    with pytest.raises(UsageError, match=r"p\.zip: cannot be unpacked into data\.cache_dir=.*/p\.zip \(.+\)"):
        unpack_archive(archive, archive, 10**6)


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
    assert done.code == 2 and "bad.zip: its member '../../a.png' leads out of its folder" in done.stderr
