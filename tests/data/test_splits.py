"""Splits: in order by counts, or by a hash of each name that no other name can disturb."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vae_lab.data.images import SPLITS, split_by_count, split_by_hash
from vae_lab.utils.errors import UsageError

names = st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=40, unique=True)
sizes = st.tuples(st.floats(0, 0.49), st.floats(0, 0.49))


def members(names, splits):
    return {split: {names[i] for i in splits[split]} for split in SPLITS}


@given(st.integers(1, 200), st.integers(0, 100), st.integers(0, 100))
def test_counts_are_met_exactly_and_every_image_has_one_split(num_images, val_size, test_size):
    if val_size + test_size >= num_images:
        with pytest.raises(UsageError, match="no image to train on"):
            split_by_count(num_images, val_size, test_size)
        return
    splits = split_by_count(num_images, val_size, test_size)
    assert torch.equal(torch.cat([splits[split] for split in SPLITS]), torch.arange(num_images))
    assert len(splits["val"]) == val_size and len(splits["test"]) == test_size


@pytest.mark.parametrize("key", ["val_size", "test_size"])
def test_a_negative_count_is_named(key):
    with pytest.raises(UsageError, match=rf"data\.{key}=-1: expected a number of images"):
        split_by_count(10, **{"val_size": 1, "test_size": 1, key: -1})


@given(names, st.lists(st.text(min_size=13, max_size=20), max_size=20, unique=True), sizes)
def test_adding_pictures_moves_no_other(names, added, sizes):
    try:
        before = members(names, split_by_hash(names, *sizes))
    except UsageError:
        return  # chance left nothing to train on
    everything = sorted(names + added)
    after = members(everything, split_by_hash(everything, *sizes))
    assert all(before[split] == after[split] & set(names) for split in SPLITS)
    assert sum(map(len, after.values())) == len(everything)


def test_fractions_are_met_on_average():
    splits = split_by_hash([f"{i}.png" for i in range(20_000)], 0.1, 0.2)
    assert len(splits["val"]) == pytest.approx(2_000, abs=150)
    assert len(splits["test"]) == pytest.approx(4_000, abs=200)


def test_the_hash_is_the_same_for_ever():
    """Pinned: another hash would silently move pictures from test to train in every later version."""
    splits = split_by_hash([f"{i}.png" for i in range(30)], 0.2, 0.2)
    assert splits["val"].tolist() == [2, 10, 11, 13, 16, 19, 20, 21, 24, 26]
    assert splits["test"].tolist() == [0, 6, 7, 8, 14, 18]


@pytest.mark.parametrize("wrong", [-0.1, 1, 180, float("nan")])
@pytest.mark.parametrize("key", ["val_size", "test_size"])
def test_a_fraction_that_is_none_is_named(key, wrong):
    with pytest.raises(UsageError, match=rf"data\.{key}={wrong}: expected a fraction"):
        split_by_hash(["a"], **{"val_size": 0.1, "test_size": 0.1, key: wrong})


@pytest.mark.parametrize("sizes", [(0.5, 0.5), (0.49, 0.5)])
def test_fractions_that_leave_nothing_to_train_on_are_refused(sizes):
    with pytest.raises(UsageError, match=r"there are 1 images.*\n.*data\.val_size=0 data\.test_size=0"):
        split_by_hash(["a.png"], *sizes)
