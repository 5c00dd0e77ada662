"""Scores of disentanglement: functions of codes and known factors, for any model.

codes: float (N, D), usually posterior means. factors: integers (N, F), the index of each factor's value. Every score is
1 for codes that are the factors; what codes independent of the factors score is said at each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Integers = NDArray[np.integer]
NUM_BINS = 20


class DCI(NamedTuple):
    """Eastwood & Williams 2018, openreview.net/forum?id=By-7dz-AZ; each in [0, 1]."""

    disentanglement: float  # a code dimension predicts one factor
    completeness: float  # a factor is predicted by one code dimension
    informativeness: float  # accuracy of the prediction of the factors on images left out


def _checked(codes: Floats, factors: Integers) -> tuple[Floats, Integers]:
    codes, factors = np.asarray(codes, dtype=np.float64), np.asarray(factors)
    if codes.ndim != 2 or factors.ndim != 2 or len(codes) != len(factors):
        raise ValueError(f"expected codes (N, D) and factors (N, F), found {codes.shape} and {factors.shape}")
    if not np.isfinite(codes).all():
        raise ValueError("the codes have values that are not finite")
    if constant := [f for f in range(factors.shape[1]) if len(np.unique(factors[:, f])) < 2]:
        raise ValueError(f"factor {constant[0]} has one value in all images, so that no code can tell it")
    return codes, factors


def mutual_information(codes: Floats, factors: Integers, num_bins: int = NUM_BINS) -> tuple[Floats, Floats]:
    """Mutual information in nats of binned codes and factors, (D, F), and the factors' entropies, (F,).

    Each code dimension is cut into `num_bins` bins of equal width.
    """
    codes, factors = _checked(codes, factors)
    low, width = codes.min(0), np.ptp(codes, axis=0)
    binned = np.minimum((codes - low) / np.where(width > 0, width, 1) * num_bins, num_bins - 1).astype(np.int64)
    found = np.zeros((codes.shape[1], factors.shape[1]))
    entropies = np.zeros(factors.shape[1])
    for f, values in enumerate(factors.T):
        _, index = np.unique(values, return_inverse=True)
        num_values = index.max() + 1
        entropies[f] = _entropy(np.bincount(index))
        for d, bins in enumerate(binned.T):
            joint = np.bincount(bins * num_values + index, minlength=num_bins * num_values)
            found[d, f] = _entropy(np.bincount(bins)) + entropies[f] - _entropy(joint)
    return np.maximum(found, 0), entropies


def _entropy(counts: Integers) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def _gap(values: Floats) -> Floats:
    """Largest minus second largest of each column."""
    if len(values) == 1:
        return np.asarray(values[0])
    ordered = np.sort(values, axis=0)
    return np.asarray(ordered[-1] - ordered[-2])


def mutual_information_gap(codes: Floats, factors: Integers, num_bins: int = NUM_BINS) -> float:
    """MIG: the gap between the two code dimensions that know most of a factor, over its entropy, mean of factors.

    Independent codes score near 0. Chen et al. 2018, arXiv:1802.04942.
    """
    information, entropies = mutual_information(codes, factors, num_bins)
    return float((_gap(information) / entropies).mean())


def modularity(codes: Floats, factors: Integers, num_bins: int = NUM_BINS) -> float:
    """Whether each code dimension has information about one factor alone, mean over dimensions that have any.

    Independent codes have none and score 0. Ridgeway & Mozer 2018, arXiv:1802.05312.
    """
    information, entropies = mutual_information(codes, factors, num_bins)
    if len(entropies) == 1:
        raise ValueError("modularity compares factors, and there is one")
    # What N independent images show by chance: (bins - 1)(values - 1) / 2N nats (Miller 1955), here with a margin.
    num_values = np.array([len(np.unique(values)) for values in np.asarray(factors).T])
    chance = (num_bins - 1) * (num_values - 1) / (2 * len(codes))
    squares = np.where(information > 2 * chance, information, 0) ** 2
    most = squares.max(1)
    others = squares.sum(1) - most
    known = most > 0
    scores = 1 - others[known] / (most[known] * (len(entropies) - 1))
    return float(scores.mean()) if known.any() else 0.0


def separated_attribute_predictability(
    codes: Floats, factors: Integers, categorical: Sequence[bool] | None = None
) -> float:
    """SAP: the gap between the two code dimensions that predict a factor best, mean over factors.

    Score of one dimension: the squared correlation; for a categorical factor the balanced accuracy above chance of
    thresholds on it. categorical: for each factor; default: none is. Independent codes score near 0.
    Kumar et al. 2018, arXiv:1711.00848, section 3.
    """
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.tree import DecisionTreeClassifier

    codes, factors = _checked(codes, factors)
    scores = np.zeros((codes.shape[1], factors.shape[1]))
    spread = codes.std(0)
    for f, values in enumerate(factors.T):
        if categorical is not None and categorical[f]:
            for d in range(codes.shape[1]):
                tree = DecisionTreeClassifier(max_leaf_nodes=len(np.unique(values)), class_weight="balanced")
                predicted = tree.fit(codes[:, d : d + 1], values).predict(codes[:, d : d + 1])
                scores[d, f] = balanced_accuracy_score(values, predicted, adjusted=True)
        else:
            covariance = ((codes - codes.mean(0)) * (values - values.mean())[:, None]).mean(0)
            scores[:, f] = (covariance / (np.where(spread > 0, spread, 1) * values.std())) ** 2
    return float(_gap(scores).mean())


def dci(codes: Floats, factors: Integers, num_trees: int = 50, seed: int = 0) -> DCI:
    """DCI by the feature importances of a random forest for each factor; the last fifth of the images is left out.

    Independent codes score near 0 in the first two, and chance in informativeness.
    """
    from sklearn.ensemble import RandomForestClassifier

    codes, factors = _checked(codes, factors)
    order = np.random.default_rng(seed).permutation(len(codes))
    train, test = np.split(order, [len(order) * 4 // 5])
    importances, accuracies = np.zeros((codes.shape[1], factors.shape[1])), []
    for f, values in enumerate(factors.T):
        forest = RandomForestClassifier(num_trees, max_features=None, min_samples_leaf=2, random_state=seed)
        forest.fit(codes[train], values[train])
        importances[:, f] = forest.feature_importances_
        accuracies.append(forest.score(codes[test], values[test]))
    by_code = _one_minus_entropy(importances)
    by_factor = _one_minus_entropy(importances.T)
    weights = importances.sum(1) / max(importances.sum(), 1e-12)
    return DCI(float(by_code @ weights), float(by_factor.mean()), float(np.mean(accuracies)))


def _one_minus_entropy(importances: Floats) -> Floats:
    """1 minus the entropy of each row, to the base of its length; 0 for a row of zeros."""
    if importances.shape[1] == 1:
        return (importances[:, 0] > 0).astype(float)
    totals = importances.sum(1, keepdims=True)
    p = importances / np.maximum(totals, 1e-12)
    logs = np.log(np.where(p > 0, p, 1)) / np.log(importances.shape[1])
    return np.where(totals[:, 0] > 0, 1 + (p * logs).sum(1), 0.0)


class _FixedFactor:
    """Random images that have the value of one factor in common."""

    def __init__(self, factors: Integers, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.num_factors = factors.shape[1]
        self.rows = [[np.flatnonzero(column == value) for value in np.unique(column)] for column in factors.T]

    def draw(self, factor: int, count: int) -> Integers:
        values = self.rows[factor]
        return self.random.choice(values[self.random.integers(len(values))], count)


def factor_vae_score(
    codes: Floats, factors: Integers, num_votes: int = 800, num_images: int = 64, seed: int = 0
) -> float:
    """Accuracy of the guess which factor is fixed, by the code dimension that varies least: majority votes.

    A vote: `num_images` images with one factor in common, variances over those of all images; dimensions that never
    vary are left out. Half of the votes build the classifier. Independent codes score about 1 / F.
    Kim & Mnih 2018, arXiv:1802.05983, section 4.
    """
    codes, factors = _checked(codes, factors)
    draws, spread = _FixedFactor(factors, seed), codes.std(0)
    used = spread >= max(0.05 * spread.max(), 1e-12)
    if not used.any():
        return 1.0 / int(factors.shape[1])
    codes = codes[:, used] / spread[used]
    fixed = draws.random.integers(draws.num_factors, size=num_votes)
    least = np.array([codes[draws.draw(factor, num_images)].var(0).argmin() for factor in fixed])
    half, counts = num_votes // 2, np.zeros((codes.shape[1], draws.num_factors))
    np.add.at(counts, (least[:half], fixed[:half]), 1)
    return float((counts.argmax(1)[least[half:]] == fixed[half:]).mean())


def beta_vae_score(
    codes: Floats, factors: Integers, num_points: int = 1000, num_pairs: int = 64, seed: int = 0
) -> float:
    """Accuracy of a linear classifier that guesses which factor pairs of images have in common.

    A point: the mean absolute difference of the codes (over their standard deviations) of `num_pairs` pairs. Half of
    the points train the classifier. Independent codes score about 1 / F. Higgins et al. 2017,
    openreview.net/forum?id=Sy2fzU9gl, section 3.
    """
    from sklearn.linear_model import LogisticRegression

    codes, factors = _checked(codes, factors)
    spread, draws = codes.std(0), _FixedFactor(factors, seed)
    codes = codes / np.where(spread > 0, spread, 1)
    fixed = draws.random.integers(draws.num_factors, size=num_points)
    points = np.array([_mean_difference(codes, draws, factor, num_pairs) for factor in fixed])
    half = num_points // 2
    classifier = LogisticRegression(C=100.0, max_iter=2000).fit(points[:half], fixed[:half])
    return float(classifier.score(points[half:], fixed[half:]))


def _mean_difference(codes: Floats, draws: _FixedFactor, factor: int, num_pairs: int) -> Floats:
    """Pairs with the value of a factor in common; each pair has its own value."""
    values = draws.rows[factor]
    chosen = draws.random.integers(len(values), size=num_pairs)
    pairs = np.array([draws.random.choice(values[value], 2) for value in chosen])
    return np.asarray(np.abs(codes[pairs[:, 0]] - codes[pairs[:, 1]]).mean(0))
