"""Schedules are pure functions of the step with the ends they promise."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vae_lab.objectives import Constant, Cosine, Cyclical, LinearWarmup
from vae_lab.utils.errors import UsageError


def test_linear_warmup_rises_to_one_and_stays():
    schedule = LinearWarmup(steps=4, start=0.2)
    assert [schedule(s, 100) for s in (0, 2, 4, 50)] == pytest.approx([0.2, 0.6, 1.0, 1.0])


def test_cosine_rises_then_falls_to_its_final_value():
    schedule = Cosine(warmup_steps=10, final=0.1)
    assert [schedule(step, 110) for step in (0, 9, 10)] == pytest.approx([1 / 11, 10 / 11, 1.0])
    assert schedule(60, 110) == pytest.approx(0.55)
    assert schedule(110, 110) == schedule(500, 110) == pytest.approx(0.1)


def test_cyclical_repeats_its_ramp():
    schedule = Cyclical(period=10, ramp=0.5)
    assert [schedule(s, 0) for s in (0, 2, 5, 9, 10, 12)] == pytest.approx([0, 0.4, 1, 1, 0, 0.4])


@given(step=st.integers(0, 10**7), total=st.integers(1, 10**7))
def test_every_schedule_stays_between_zero_and_one(step, total):
    for schedule in (Constant(), LinearWarmup(7), Cosine(5, 0.0), Cyclical(9, 0.3)):
        assert 0 <= schedule(step, total) <= 1


@pytest.mark.parametrize("make", [lambda: LinearWarmup(0), lambda: Cyclical(0), lambda: Cyclical(5, 0.0)])
def test_impossible_lengths_are_refused(make):
    with pytest.raises(ValueError, match="found 0"):
        make()


def test_a_cosine_without_an_end_is_refused():
    with pytest.raises(UsageError, match="set trainer"):
        Cosine()(0, None)
