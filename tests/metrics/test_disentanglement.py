"""Scores of disentanglement on codes whose score is known."""

import functools

import numpy as np
import pytest

from vae_lab.metrics import disentanglement as scores

SIZES = (3, 6, 8, 5)
GRID = np.stack(np.meshgrid(*map(np.arange, SIZES), indexing="ij"), -1).reshape(-1, len(SIZES))
FACTORS = np.tile(GRID, (4, 1))
PERFECT = FACTORS.astype(float) * [1.0, -2.0, 0.5, 3.0]
NOISE = np.random.default_rng(0).normal(size=PERFECT.shape)
DCI = {"perfect": PERFECT[:, [2, 0, 3, 1]], "noise": NOISE, "dead": 0 * PERFECT}


@functools.cache
def dci(codes):
    """Its three scores share a fit of trees."""
    return scores.dci(DCI[codes], FACTORS)


def score(name, codes):
    part = {"disentanglement", "completeness", "informativeness"} & {name}
    return getattr(dci(codes), name) if part else ALL[name](DCI[codes], FACTORS)


ALL = {
    "mig": scores.mutual_information_gap,
    "modularity": scores.modularity,
    "sap": scores.separated_attribute_predictability,
    "disentanglement": lambda z, v: scores.dci(z, v).disentanglement,
    "completeness": lambda z, v: scores.dci(z, v).completeness,
    "informativeness": lambda z, v: scores.dci(z, v).informativeness,
    "factor_vae": scores.factor_vae_score,
    "beta_vae": scores.beta_vae_score,
}
CHANCE = {"factor_vae": 1 / 4, "beta_vae": 1 / 4, "informativeness": np.mean([1 / size for size in SIZES])}


@pytest.mark.parametrize("name", ALL)
def test_codes_that_are_the_factors_score_one_in_any_order_and_scale(name):
    assert score(name, "perfect") == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("name", ALL)
def test_independent_codes_score_chance(name):
    assert score(name, "noise") == pytest.approx(CHANCE.get(name, 0), abs=0.08)


@pytest.mark.parametrize("name", ["mig", "sap", "disentanglement", "completeness"])
def test_rotated_codes_score_less(name):
    centred = (PERFECT - PERFECT.mean(0)) / PERFECT.std(0)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0]
    assert ALL[name](centred @ rotation, FACTORS) < 0.75


def test_two_dimensions_of_one_factor_close_the_gap_but_stay_modular():
    twice = np.concatenate([PERFECT, PERFECT], 1)
    assert scores.mutual_information_gap(twice, FACTORS) == pytest.approx(0)
    assert scores.separated_attribute_predictability(twice, FACTORS) == pytest.approx(0)
    assert scores.modularity(twice, FACTORS) == pytest.approx(1)


def test_mutual_information_of_a_noisy_bit():
    """A code that is the bit with probability 0.9: log 2 - H(0.9) nats."""
    bit = np.repeat([0, 1], 500)
    code = np.where(np.tile(np.arange(10) == 0, 100), 1 - bit, bit)
    information, entropies = scores.mutual_information(code[:, None].astype(float), bit[:, None])
    assert entropies[0] == pytest.approx(np.log(2))
    assert information[0, 0] == pytest.approx(np.log(2) + 0.9 * np.log(0.9) + 0.1 * np.log(0.1))


def test_sap_of_a_categorical_factor_does_not_depend_on_the_order_of_its_values():
    code = np.array([2.0, 0.0, 1.0])[FACTORS[:, :1]]
    both = np.concatenate([code, NOISE[:, :1]], 1)
    by_threshold = scores.separated_attribute_predictability(both, FACTORS[:, :1], [True])
    assert by_threshold == pytest.approx(1, abs=0.15)
    assert scores.separated_attribute_predictability(both, FACTORS[:, :1]) < 0.5


@pytest.mark.parametrize(
    ("codes", "factors", "words"),
    [
        (PERFECT[:5], FACTORS, "expected codes"),
        (PERFECT, FACTORS * [1, 1, 0, 1], "factor 2 has one value"),
        (PERFECT * np.nan, FACTORS, "not finite"),
    ],
)
def test_wrong_arrays(codes, factors, words):
    with pytest.raises(ValueError, match=words):
        scores.mutual_information_gap(codes, factors)


@pytest.mark.parametrize("name", ALL)
def test_codes_that_are_all_dead_score_no_more_than_chance(name):
    assert score(name, "dead") <= CHANCE.get(name, 0) + 0.1
