"""Images larger than memory: what shards hold, in which order they are read, and what is refused."""

import json
import re

import pytest
import torch
from helpers.commands import QUIET
from helpers.data import write_pictures
from hypothesis import given
from hypothesis import strategies as st

from vae_lab.data.batches import ImageSplit, StepsPerCall, TrainingBatches
from vae_lab.data.sets import folder, streaming
from vae_lab.data.shards import main
from vae_lab.utils.errors import UsageError
from vae_lab.utils.rng import block_permutation

pytest.importorskip("litdata")


@pytest.fixture
def shards(tmp_path, monkeypatch):
    """40 pictures of two classes in blocks of 3."""
    for name, seed in (("cats", 0), ("dogs", 1)):
        write_pictures(tmp_path / "pictures" / name, 20, seed=seed)
    (tmp_path / "pictures" / "cats" / "broken.png").write_bytes(b"no picture")
    monkeypatch.setattr("vae_lab.data.shards.BLOCK_BYTES", 3 * 3 * 16 * 16)
    words = ["image_size=16", "on_bad_image=skip", "val_size=0.2"]
    assert main([str(tmp_path / "pictures"), str(tmp_path / "shards"), *words]) == 0
    return tmp_path / "shards"


def by_image(data, split):
    """Image -> label of a split."""
    images, labels = zip(*data.first_images(split), strict=True)
    return {x.numpy().tobytes(): int(y) for x, y in zip(torch.cat(images), torch.cat(labels), strict=True)}


def test_shards_hold_the_splits_the_images_and_the_labels_of_their_folder(shards, tmp_path):
    options = {"image_size": 16, "val_size": 0.2, "on_bad_image": "skip", "cache_dir": str(tmp_path / "cache")}
    ours, theirs = streaming(str(shards)), folder(str(shards.with_name("pictures")), **options)
    for data in (ours, theirs):
        data.setup()
    assert ours.image == theirs.image and ours.class_names == ("cats", "dogs")
    assert ours.images.skipped == theirs.images.skipped == ("cats/broken.png",)
    for split in ("train", "val", "test"):
        assert ours.size(split) == theirs.size(split) > 0
        assert by_image(ours, split) == by_image(theirs, split)


@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 5), st.integers(0, 9))
def test_an_order_by_blocks_is_a_permutation_whose_windows_hold_whole_blocks(count, size, window, epoch):
    order = block_permutation(count, size, window, 0, epoch)
    assert torch.equal(block_permutation(count, size, window, 0, epoch), order)
    assert torch.equal(order.sort().values, torch.arange(count))
    if count % size == 0:
        assert all(len((part // size).unique()) * size == len(part) for part in order.split(size * window))


def test_an_epoch_continues_where_the_clock_says(shards):
    data = streaming(str(shards), window=2)
    data.setup()

    def shown(at):
        split = ImageSplit(data.images.pixels, data.images.splits["train"], data.images.labels)
        calls = TrainingBatches(split, 4, 6, 0, StepsPerCall(2), lambda: at)
        return [batch.images for call in calls for batch in call]

    assert all(torch.equal(a, b) for a, b in zip(shown(2)[2:], shown(4), strict=True))
    assert not torch.equal(shown(0)[0], shown(6)[0])  # the next epoch


@pytest.mark.slow
def test_a_run_on_shards_resumes_within_an_epoch_bit_for_bit(command, shards):
    words = [*QUIET, "model=mlp", "data=streaming", f"data.folder={shards}", "data.batch_size=5", "second_stage=null",
             "trainer.limit_train_batches=null", "optimizer/schedule=constant", "optimizer.ema_decay=null"]  # fmt: skip
    for name, steps in (("whole", 7), ("parts", 4)):
        done = command(*words, f"trainer.max_steps={steps}", f"hydra.run.dir={name}")
        assert done.code == 0, done.stderr
    done = command("resume=parts", "trainer.max_steps=7")
    assert done.code == 0, done.stderr
    whole, parts = (
        torch.load(command.cwd / name / "checkpoints/last.ckpt")["state_dict"] for name in ("whole", "parts")
    )
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_what_cannot_be_streamed_is_refused(shards, tmp_path, capsys):
    for options, message in (({"binarize": "fixed"}, "binarize=fixed"), ({"device_resident": True}, "device_resident"),
                             ({"window": 0}, "data.window=0")):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            streaming(str(shards), **options)
    with pytest.raises(UsageError, match=r"no shards in .*\n.*vae_lab.data.shards"):
        streaming(str(tmp_path / "pictures")).setup()
    pictures = str(tmp_path / "pictures")
    for words, message in (([pictures, str(shards)], "exists already"), ([str(tmp_path / "no"), "out"], "no picture"),
                           ([pictures, "out", "image_sise=3"], "did you mean data.image_size"),
                           ([pictures, str(tmp_path / "out")], "broken.png .*\n.*on_bad_image=skip")):  # fmt: skip
        assert main(words) == 2
        assert re.search(message, capsys.readouterr().err), message
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["pictures", "shards"]
    assert json.loads((shards / "shards.json").read_text())["sizes"][0] > 20
