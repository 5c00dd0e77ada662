"""Parquet files as Hugging Face stores pictures."""

import io
import json
import sys

import numpy as np
import pytest
from helpers.data import FAST
from helpers.refusals import refused
from PIL import Image

from vae_lab.data import cache, sets
from vae_lab.utils.errors import UsageError


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").touch()
    with pytest.raises(UsageError, match=r"needs pyarrow, .*\n.*pip install 'vae_lab\[parquet\]'"):
        load(tmp_path / "a.parquet")


def load(files, **options):
    return sets.parquet(str(files), 4, **options).load()


def png(grey):
    buffer = io.BytesIO()
    Image.new("L", (6, 6), grey).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def written(tmp_path):
    """Writes a file of these greys, with labels 0, 1, 0, ... of the classes cat and dog."""
    pyarrow, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    def write(name, greys, label="label", nested=True, classes=("cat", "dog")):
        contents = [grey if isinstance(grey, bytes) else png(grey) for grey in greys]
        columns = {
            "text": ["x"] * len(greys),
            "image": [{"bytes": c, "path": None} for c in contents] if nested else contents,
        }
        table = pyarrow.table(columns | ({label: [i % 2 for i in range(len(greys))]} if label else {}))
        features = {label: {"names": list(classes), "_type": "ClassLabel"}} if classes and label else {}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        (tmp_path / "set").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "set" / name)
        return tmp_path / "set"

    return write


def by_split(images):
    return {split: images.pixels[rows][:, 0, 0, 0].tolist() for split, rows in images.splits.items()}


def test_files_are_the_splits_that_their_names_say(written, tmp_path, monkeypatch):
    written("train-00000-of-00002.parquet", range(0, 70))
    written("train-00001-of-00002.parquet", range(70, 100))
    written("validation-00000-of-00001.parquet", (101, 102))
    folder = written("test-00000-of-00001.parquet", (103, 104, 105))
    images = load(folder, cache_dir=str(tmp_path / "cache"))
    assert by_split(images)["val"] == [101, 102] and by_split(images)["test"] == [103, 104, 105]
    assert sorted(by_split(images)["train"]) == list(range(100)) and images.class_names == ("cat", "dog")
    assert images.labels[images.splits["test"]].tolist() == [0, 1, 0]
    monkeypatch.setattr(cache, "decode", None)
    assert np.array_equal(load(folder, cache_dir=str(tmp_path / "cache")).pixels, images.pixels)


@pytest.mark.parametrize(
    ("label", "classes", "names"), [("label", None, ("0", "1")), (None, None, ()), ("kind", None, ())]
)
def test_plain_bytes_and_labels_without_names_split_at_random(written, tmp_path, label, classes, names):
    folder = written("pictures.parquet", range(20), label, nested=False, classes=classes)
    images = load(folder / "*.parquet", cache_dir=str(tmp_path / "cache"), val_size=3, test_size=0.2)
    assert [len(images.splits[split]) for split in ("train", "val", "test")] == [13, 3, 4]
    assert images.class_names == names and images.pixels[:, 0, 0, 0].tolist() == list(range(20))


def test_what_is_wrong_is_named(written, tmp_path):
    folder = written("a.parquet", (1, b"no picture", b"", 4))
    options = {"cache_dir": str(tmp_path / "cache"), "val_size": 0, "test_size": 0}
    with pytest.raises(
        UsageError, match=r"data\.files=.*: a\.parquet, row 1, cannot be decoded (?s:.*)2 of 4 pictures"
    ):
        load(folder, **options)
    images = load(folder, **options, on_bad_image="skip")
    assert images.skipped == ("a.parquet, row 1,", "a.parquet, row 2,") and sorted(by_split(images)["train"]) == [1, 4]
    with pytest.raises(UsageError, match=r"no column picture\n.*expected one of: image"):
        load(folder, **options, image_name="picture")
    with pytest.raises(UsageError, match=r"no column lable\ndid you mean data\.label_name=label"):
        load(folder, **options, label_name="lable")
    with pytest.raises(UsageError, match=r"there is no such file\nExpected parquet files, a folder of them"):
        load(folder / "b*.parquet", **options)
    whole = (folder / "a.parquet").read_bytes()
    (folder / "a.parquet").write_bytes(whole[:60] + bytes(60) + whole[120:])  # within the pictures
    with pytest.raises(UsageError, match=r"a\.parquet: cannot be read|cannot be decoded"):
        load(folder, **options)
    (folder / "a.parquet").write_bytes(b"PAR1 damaged")
    with pytest.raises(UsageError, match=r"cannot be read \(.*\)\.\nExpected intact parquet files"):
        load(folder, **options)


def test_from_the_command_line(command, written):
    written("train.parquet", range(60))
    written("test.parquet", range(10))
    options = ("data=parquet", "data.image_size=16", *FAST, "callbacks.images=null")
    done = command(*options, "data.files=set", "model.conditional=true")
    assert done.code == 0, done.stderr
    refused(command(*options, "data.files=nowhere"), "data.files=nowhere", "parquet files")
