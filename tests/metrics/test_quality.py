"""Sample quality on features whose distance is known."""

import pytest
import torch
from torch.testing import assert_close

from vae_lab.metrics.quality import coverage, frechet_distance, kernel_distance, nearest, radii


def normal(count: int, shift: float = 0.0, seed: int = 0, dims: int = 4) -> torch.Tensor:
    return torch.randn(count, dims, generator=torch.Generator().manual_seed(seed)) + shift


def test_frechet_distance_of_sets_with_equal_covariance_is_the_squared_distance_of_their_means():
    x = normal(500)
    assert frechet_distance(x, x + torch.tensor([3.0, 0, 4.0, 0])) == pytest.approx(25, abs=1e-6)
    assert frechet_distance(x, 2 * x - x.mean(0)) == pytest.approx(float(x.double().var(0).sum()), rel=1e-3)


def test_kernel_distance_is_near_zero_for_one_distribution_and_grows():
    same, _ = kernel_distance(normal(400), normal(400, seed=1))
    far, deviation = kernel_distance(normal(400), normal(400, 2.0, seed=1), subset_size=100)
    assert abs(same) < 0.05 < far
    assert deviation > 0


def test_kernel_distance_is_a_function_of_its_seed_and_leaves_the_generator_alone():
    before = torch.get_rng_state()
    first, second = (kernel_distance(normal(90), normal(70, seed=1), 50, seed=3) for _ in range(2))
    assert first == second
    assert_close(torch.get_rng_state(), before)


def test_precision_and_recall_of_one_distribution_and_of_a_part_of_it():
    same = coverage(normal(800), normal(800, seed=1))
    assert same.precision > 0.9 and same.recall > 0.9 and same.coverage > 0.9
    assert same.density == pytest.approx(1, abs=0.15)
    narrow = coverage(normal(800), 0.1 * normal(800, seed=1))
    assert narrow.precision == 1 and narrow.recall < 0.1 and narrow.coverage < 0.1
    far = coverage(normal(800), normal(800, 20.0, seed=1))
    assert far == (0, 0, 0, 0)


def test_radii_and_nearest_by_hand():
    points = torch.tensor([[0.0], [1.0], [3.0], [10.0]])
    assert_close(radii(points, 1), torch.tensor([1.0, 1.0, 2.0, 7.0]))
    index, distance = nearest(torch.tensor([[2.5], [8.0]]), points)
    assert_close(index, torch.tensor([2, 3]))
    assert_close(distance, torch.tensor([0.5, 2.0]))
    with pytest.raises(ValueError, match="at least 5 images, found 4"):
        radii(points, 4)
