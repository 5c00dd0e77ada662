"""The order of images: every image once, from any step on, whatever the length of a call."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vae_lab.data.batches import EvaluationBatches, ImageSplit, StepsPerCall, TrainingBatches, steps_per_epoch
from vae_lab.utils.distributed import Share
from vae_lab.utils.rng import epoch_permutation

MOST_IMAGES = 60


def split_of(count: int, labels: bool = True) -> ImageSplit:
    """`count` of 200 images, each one pixel that is the image's own number; a label is 1000 more."""
    pixels = torch.arange(200, dtype=torch.uint8).view(200, 1, 1, 1)
    rows = torch.randperm(200, generator=torch.Generator().manual_seed(count))[:count]
    return ImageSplit(pixels, rows, torch.arange(1000, 1200) if labels else None)


def numbers(batch) -> list[int]:
    return batch.images.flatten().tolist()


def calls_of(split: ImageSplit, step_size: int = 4, at: int = 0, k: int = 1, limit=None, **options) -> TrainingBatches:
    steps = steps_per_epoch(len(split), step_size, limit)
    options = {"seed": 0, "steps_per_call": StepsPerCall(k), "clock": lambda: at} | options
    return TrainingBatches(split, step_size, steps, **options)


def flat(calls) -> list[list[int]]:
    """The images of each step."""
    return [numbers(batch) for call in calls for batch in call]


def joined(steps) -> list[int]:
    return list(itertools.chain.from_iterable(steps))


@given(st.integers(0, 300), st.integers(0, 2**62), st.integers(0, 10**9))
def test_an_order_is_a_permutation_and_a_pure_function_of_seed_and_epoch(count, seed, epoch):
    before = torch.get_rng_state()
    first = epoch_permutation(count, seed, epoch)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)  # no other generator matters
    assert torch.equal(epoch_permutation(count, seed, epoch), first)
    assert torch.equal(first.sort().values, torch.arange(count))


def test_epochs_and_seeds_have_orders_of_their_own_which_stay_the_same():
    """Pinned: with another order, a resumed run would no longer be the run that was stopped."""
    assert len({tuple(epoch_permutation(40, seed, epoch).tolist()) for epoch in range(5) for seed in range(5)}) == 25
    assert epoch_permutation(10, 0, 0).tolist() == [7, 0, 2, 1, 4, 8, 6, 3, 5, 9]
    assert epoch_permutation(10, 3, 2).tolist() == [8, 7, 3, 4, 1, 9, 5, 6, 2, 0]


def test_overfitting_repeats_the_batches_of_the_first_epoch():
    split = split_of(40)
    first, second = (flat(calls_of(split, limit=2, at=at, repeat=True)) for at in (0, 2))
    assert first == second and len(first) == 2
    assert flat(calls_of(split, limit=2, at=2)) != first


@given(
    count=st.integers(1, MOST_IMAGES),
    step_size=st.integers(1, 70),
    start=st.integers(0, 500),
    k=st.integers(1, 70),
    boundaries=st.lists(st.integers(1, 20), max_size=3),
    limit=st.none() | st.integers(1, 9) | st.floats(0.01, 1),
)
def test_from_any_step_the_rest_of_the_epoch_follows_whatever_the_pace(count, step_size, start, k, boundaries, limit):
    split = split_of(count)
    calls = calls_of(split, step_size, at=start, k=k, limit=limit, boundaries=boundaries)
    epoch, at = divmod(start, calls.steps_per_epoch)
    order = split.indices[epoch_permutation(count, 0, epoch)].tolist()
    rest = [order[i * step_size : (i + 1) * step_size] for i in range(at, calls.steps_per_epoch)]
    assert flat(calls) == rest
    assert numbers(calls.step(start)) == rest[0]


@given(
    step_size=st.integers(1, 6),
    start=st.integers(0, 200),
    k=st.integers(1, 20),
    boundaries=st.lists(st.integers(1, 15), max_size=3),
    last_step=st.none() | st.integers(0, 220),
)
def test_calls_are_as_long_as_may_be_and_end_at_boundaries_the_epoch_and_the_last_step(
    step_size, start, k, boundaries, last_step
):
    calls = calls_of(split_of(50), step_size, at=start, k=k, boundaries=boundaries, last_step=last_step)
    epoch_end = (start // calls.steps_per_epoch + 1) * calls.steps_per_epoch
    final = epoch_end if last_step is None else min(epoch_end, last_step)
    step = start
    for call in calls:
        end = step + len(call)
        assert 1 <= len(call) <= k
        assert not any(i % every == 0 for i in range(step + 1, end) for every in boundaries)
        # No shorter than it has to be, either.
        assert len(call) == k or end == final or any(end % every == 0 for every in boundaries)
        step = end
    assert step == max(start, final)


@given(total=st.integers(1, 40), world_size=st.integers(1, 5))
def test_the_shares_of_a_batch_are_its_images_once_and_their_weighted_mean_its_mean(total, world_size):
    shares = [Share(rank, world_size) for rank in range(world_size)]
    parts = [(share.weight(total), torch.arange(float(total))[share.rows(total)]) for share in shares]
    assert sorted(torch.cat([part for weight, part in parts if weight]).tolist()) == list(range(total))
    assert sum(weight * part.mean() for weight, part in parts) / world_size == pytest.approx((total - 1) / 2)


def test_labels_stay_with_their_images_and_may_be_missing():
    for call in calls_of(split_of(30), k=3):
        for batch in call:
            assert batch.labels.tolist() == [1000 + number for number in numbers(batch)]
    assert next(iter(calls_of(split_of(30, labels=False))))[0].labels is None


def test_iterating_again_asks_the_clock_again():
    clock = iter([0, 6, 8])
    calls = calls_of(split_of(32), clock=lambda: next(clock))
    first, rest, second_epoch = flat(calls), flat(calls), flat(calls)
    assert rest == first[6:]
    assert second_epoch != first and sorted(joined(second_epoch)) == sorted(joined(first))


@given(count=st.integers(1, MOST_IMAGES), batch_size=st.integers(1, 70))
def test_evaluation_shows_each_image_once_in_order(count, batch_size):
    split = split_of(count)
    batches = EvaluationBatches(split, batch_size)
    found = [numbers(batch) for batch in batches]
    assert len(found) == len(batches)
    assert all(len(batch) == batch_size for batch in found[:-1])
    assert joined(found) == split.indices.tolist()


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ((100, 10, None), 10),
        ((101, 10, None), 11),
        ((100, 30, None), 4),
        ((100, 10, 3), 3),
        ((100, 10, 300), 10),
        ((100, 10, 0.35), 3),
        ((100, 10, 0.01), 1),
        ((100, 20, 0.5), 2),
    ],
)
def test_the_length_of_an_epoch(arguments, steps):
    assert steps_per_epoch(*arguments) == steps


class Clock:
    """A time that only tests move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("vae_lab.data.batches.time.perf_counter", lambda: self.now)

    def lengths(self, steps_per_call: StepsPerCall, seconds_per_step: float, calls: int) -> list[int]:
        found = []
        for _ in range(calls):
            found.append(steps_per_call.next())
            self.now += found[-1] * seconds_per_step
        return found


@pytest.mark.parametrize(
    ("pace", "seconds_per_step", "lengths"),
    [
        (StepsPerCall("auto"), 0.0001, [1, 2, 4, 8, 16, 32, 64, 64]),
        (StepsPerCall("auto"), 0.0099, [1, 2, 4, 8, 10, 10, 10, 10]),
        (StepsPerCall("auto"), 0.03, [1, 2, 3, 3]),
        (StepsPerCall("auto"), 0.5, [1, 1, 1]),
        (StepsPerCall("auto", most=5), 0.0, [1, 2, 4, 5, 5]),
        (StepsPerCall(7), 1.0, [7, 7, 7]),
    ],
)
def test_the_automatic_pace_takes_a_tenth_of_a_second_a_call_and_a_given_one_is_kept(
    monkeypatch, pace, seconds_per_step, lengths
):
    assert Clock(monkeypatch).lengths(pace, seconds_per_step, len(lengths)) == lengths


def test_the_automatic_pace_slows_down_at_once_and_rises_again(monkeypatch):
    clock, steps_per_call = Clock(monkeypatch), StepsPerCall("auto")
    assert clock.lengths(steps_per_call, 0.0001, 8)[-1] == 64
    assert clock.lengths(steps_per_call, 0.048, 3) == [64, 2, 2]
    assert clock.lengths(steps_per_call, 0.0001, 4) == [2, 4, 8, 16]


def test_calls_follow_the_automatic_pace_and_time_between_epochs_is_not_counted(monkeypatch):
    """Validation and pictures stand between two epochs: they are no steps."""
    clock, at = Clock(monkeypatch), [0]
    calls, found = calls_of(split_of(60), step_size=1, k="auto", clock=lambda: at[0]), []
    for epoch in range(2):
        at[0] = epoch * 60
        for call in calls:
            found.append(len(call))
            clock.now += 0.0099 * len(call)
        clock.now += 60  # validation
    assert found[:9] == [1, 2, 4, 8, 10, 10, 10, 10, 5]
    assert found[9] > 2, found
