"""The cache of decoded pictures: whole or absent, whatever stops its writing."""

import multiprocessing
import os
import re
import resource
from pathlib import Path

import numpy as np
import pytest

from vae_lab.data.cache import DecodedPicture, build_cache, cache_key, open_cache
from vae_lab.utils.errors import UsageError

SHAPE = (3, 4, 4)
KEY = "key"


def rows(count=3, value=0):
    return [DecodedPicture(f"{i}.png", np.full(SHAPE, i + value, np.uint8)) for i in range(count)]


def files(cache_dir):
    return sorted(path.name for path in cache_dir.iterdir())


def test_what_was_written_is_read_back(tmp_path):
    bad = DecodedPicture("bad.png", None, "bad.png: truncated.")
    built = build_cache(tmp_path, KEY, SHAPE, [*rows(2), bad, rows(4)[3]])
    assert open_cache(tmp_path, "other", SHAPE) is None
    for cached in (built, open_cache(tmp_path, KEY, SHAPE)):
        assert cached.names == ("0.png", "1.png", "3.png")
        assert cached.skipped == {"bad.png": "bad.png: truncated."}
        assert cached.pixels.shape == (3, *SHAPE) and cached.pixels[:, 0, 0, 0].tolist() == [0, 1, 3]
    assert files(tmp_path) == ["key.json", "key.npy"]
    assert np.array_equal(np.load(tmp_path / "key.npy"), built.pixels.numpy())


def test_rows_that_are_not_contiguous_and_names_that_are_no_utf8_are_kept(tmp_path):
    turned = np.arange(48, dtype=np.uint8).reshape(4, 4, 3).transpose(2, 0, 1)
    cached = build_cache(tmp_path, KEY, SHAPE, [DecodedPicture("caf\udce9.png", turned)])
    assert np.array_equal(cached.pixels[0].numpy(), turned) and cached.names == ("caf\udce9.png",)


def test_writing_to_the_tensor_changes_no_file(tmp_path):
    build_cache(tmp_path, KEY, SHAPE, rows()).pixels.fill_(9)
    assert open_cache(tmp_path, KEY, SHAPE).pixels.max() == 2


def test_no_good_picture_at_all_is_an_empty_tensor(tmp_path):
    cached = build_cache(tmp_path, KEY, SHAPE, [DecodedPicture("a", None, "a: bad")])
    assert cached.pixels.shape == (0, *SHAPE) and list(cached.skipped) == ["a"]


DAMAGE = {
    "pixels cut short": lambda folder: os.truncate(folder / "key.npy", 200),
    "pixels empty": lambda folder: (folder / "key.npy").write_bytes(b""),
    "pixels gone": lambda folder: (folder / "key.npy").unlink(),
    "pixels of another shape": lambda folder: np.save(folder / "key.npy", np.zeros((3, 3, 4, 5), np.uint8)),
    "names gone": lambda folder: (folder / "key.json").unlink(),
    "names cut short": lambda folder: (folder / "key.json").write_text('[["0.p'),
    "names of fewer": lambda folder: (folder / "key.json").write_text('[["0.png"], {}]'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_incomplete_cache_is_not_used_and_is_made_again(tmp_path, damage):
    build_cache(tmp_path, KEY, SHAPE, rows())
    DAMAGE[damage](tmp_path)
    assert open_cache(tmp_path, KEY, SHAPE) is None
    again = build_cache(tmp_path, KEY, SHAPE, rows(value=5))
    assert again.pixels[:, 0, 0, 0].tolist() == [5, 6, 7]
    assert files(tmp_path) == ["key.json", "key.npy"]


@pytest.mark.parametrize("error", [UsageError("a bad picture"), KeyboardInterrupt()])
def test_rows_that_stop_half_way_leave_nothing(tmp_path, error):
    def stopping():
        yield from rows(2)
        raise error

    with pytest.raises(type(error)):
        build_cache(tmp_path, KEY, SHAPE, stopping())
    assert list(tmp_path.iterdir()) == []


def build_and_die(cache_dir):
    def dying():
        yield from rows(2)
        os._exit(9)  # as kill -9: nothing is cleaned up

    build_cache(cache_dir, KEY, SHAPE, dying())


def test_a_killed_build_is_never_used(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=build_and_die, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 9 and open_cache(tmp_path, KEY, SHAPE) is None


def test_the_file_of_the_last_of_two_builders_stays_and_the_first_ones_tensor_too(tmp_path):
    first = []

    def overtaken():
        yield from rows(3, value=5)
        first.append(build_cache(tmp_path, KEY, SHAPE, rows(3)))  # another process, just before this one ends

    assert build_cache(tmp_path, KEY, SHAPE, overtaken()).pixels[:, 0, 0, 0].tolist() == [5, 6, 7]
    assert first[0].pixels[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert files(tmp_path) == ["key.json", "key.npy"]


def test_a_row_of_another_shape_or_type_is_refused(tmp_path):
    for wrong in (np.zeros((3, 4, 5), np.uint8), np.zeros(SHAPE, np.float32)):
        with pytest.raises(ValueError, match=r"a\.png: .* expected uint8 \(3, 4, 4\)"):
            build_cache(tmp_path, KEY, SHAPE, [DecodedPicture("a.png", wrong)])


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match=rf"data\.cache_dir={re.escape(str(tmp_path))}/file/cache: cannot be written"):
        build_cache(tmp_path / "file" / "cache", KEY, SHAPE, rows())


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path):
    """A limit on the size of files stands in for the disk; Python ignores its signal and sees an OSError."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(UsageError, match=r"data\.cache_dir=.*cannot be written"):
            build_cache(tmp_path, KEY, SHAPE, rows(250) * 10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_the_key_changes_with_names_sizes_times_and_options(tmp_path):
    def key(names=("a.png", "b.png"), options="options", content=b"1", time=1):
        (tmp_path / "a.png").write_bytes(content)
        os.utime(tmp_path / "a.png", ns=(time, time))
        return cache_key(tmp_path, names, options)

    (tmp_path / "b.png").write_bytes(b"22")
    assert key() == key()
    assert len({key(), key(names=["a.png"]), key(options="others"), key(content=b"333"), key(time=2)}) == 5


def test_memory_stays_bounded_while_a_large_cache_is_made_and_opened(tmp_path):
    """64 MiB of rows: anonymous memory grows by far less, while writing and once mapped."""
    row, before = np.ones((3, 128, 128), np.uint8), anonymous_bytes()
    peak = 0

    def watched():
        nonlocal peak
        for i in range(1_365):
            peak = max(peak, anonymous_bytes()) if i % 100 == 0 else peak
            yield DecodedPicture(f"{i}", row)

    cached = build_cache(tmp_path, KEY, (3, 128, 128), watched())
    assert int(cached.pixels.sum()) == 1_365 * 3 * 128 * 128
    assert max(peak, anonymous_bytes()) - before < 16 * 2**20


def anonymous_bytes():
    with Path("/proc/self/status").open() as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))
