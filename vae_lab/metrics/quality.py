"""Quality of samples by the features of real and generated images: float (N, D) and (M, D), of one network.

Frechet and kernel distance are torchmetrics'; the names of what is measured always carry the name of the features.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vae_lab.metrics.features import Features
from vae_lab.metrics.subject import BLOCK, Row, Subject, left_out
from vae_lab.utils.rng import FIT, seed_noise

CHUNK = 1024  # rows of a matrix of distances


class Coverage(NamedTuple):
    """Each in [0, 1], but density, which has the expectation 1 where both sets are of one distribution."""

    precision: float  # share of the samples within the support of the real images
    recall: float  # share of the real images within the support of the samples
    density: float  # how many neighbourhoods of real images a sample lies in, over k
    coverage: float  # share of the real images that have a sample in their neighbourhood


def radii(features: Tensor, k: int) -> Tensor:
    """Distance of each row to its k-th nearest other row, (N,). ValueError: fewer than k + 1 rows."""
    if len(features) <= k:
        raise ValueError(f"{k} nearest neighbours need at least {k + 1} images, found {len(features)}")
    return torch.cat([torch.cdist(rows, features).kthvalue(k + 1, 1).values for rows in features.split(CHUNK)])


def coverage(real: Tensor, generated: Tensor, k: int = 5) -> Coverage:
    """Precision and recall of Kynkaanniemi et al. 2019, arXiv:1904.06991, density and coverage of Naeem et al. 2020,
    arXiv:2002.09797, by balls that reach to the k-th nearest neighbour."""
    real_radii, generated_radii = radii(real, k), radii(generated, k)
    balls = torch.cat([(torch.cdist(rows, real) <= real_radii).sum(1) for rows in generated.split(CHUNK)])
    covered, recalled = [], []
    for rows, reach in zip(real.split(CHUNK), real_radii.split(CHUNK), strict=True):
        distances = torch.cdist(rows, generated)
        covered.append(distances.min(1).values <= reach)
        recalled.append((distances <= generated_radii).any(1))
    shares = ((balls > 0), torch.cat(recalled), balls / k, torch.cat(covered))
    precision, recall, density, covers = (float(share.double().mean()) for share in shares)
    return Coverage(precision, recall, density, covers)


class _Features(nn.Module):
    """Features as the images of torchmetrics' distances."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """FID formula on these features: Heusel et al. 2017, arXiv:1706.08500. Biased upwards for few images."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    distance = FrechetInceptionDistance(feature=_Features(real.shape[1]), sync_on_compute=False)
    distance.set_dtype(torch.float64)
    distance.update(real.double(), real=True)
    distance.update(generated.double(), real=False)
    return float(distance.compute())


def kernel_distance(real: Tensor, generated: Tensor, subset_size: int = 1000, seed: int = 0) -> tuple[float, float]:
    """KID formula on these features: mean and standard deviation over 100 subsets. Binkowski et al. 2018,
    arXiv:1801.01401; unbiased, so that it may be below 0. The subsets are at most half as large as the sets."""
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(subset_size, len(real) // 2, len(generated) // 2)
    warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save all extracted features")
    network = _Features(real.shape[1])
    distance = KernelInceptionDistance(feature=network, subset_size=size, sync_on_compute=False)
    distance.update(real, real=True)
    distance.update(generated, real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, deviation = distance.compute()
    return float(mean), float(deviation)


def nearest(queries: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the nearest of `images` to each query, and the distance, both (Q,). Rows are flattened."""
    rows, others = queries.flatten(1), images.flatten(1)
    found = [torch.cdist(part, others).min(1) for part in rows.split(CHUNK)]
    return torch.cat([each.indices for each in found]), torch.cat([each.values for each in found])


MIN_IMAGES = 50  # below, the neighbours of an image are anywhere
NUM_SHOWN = 16  # samples beside their nearest training images
NAMES = ("fid", "kid", "precision", "recall", "density", "coverage", "memorisation")


@torch.inference_mode()
def samples(subject: Subject, num_images: int, temperature: float = 1.0) -> Iterator[Tensor]:
    """Images of prior samples, BLOCK at a time, with labels in turn. NotImplementedError: no samples.

    Means of p(x|z); for binary images samples of it, since the images beside them are binary.
    """
    num_classes = subject.model.image.num_classes
    for start in subject.track(range(0, num_images, BLOCK), "samples", math.ceil(num_images / BLOCK)):
        seed_noise(subject.device, subject.seed, FIT, *b"samples", start)
        count = min(BLOCK, num_images - start)
        labels = None
        if subject.model.conditional:
            labels = torch.arange(start, start + count, device=subject.device) % num_classes
        px = subject.model.sample(count, labels, temperature)
        yield px.sample() if subject.model.image.levels == 2 else px.mean


def quality_rows(subject: Subject, features: Features, num_images: int = 5000, k: int = 5) -> Iterator[Row]:
    """FID, KID, precision, recall, density, coverage of samples beside as many images of the split.

    Also sets the subject's `nearest`: the first samples, and the training images nearest to them in the features.
    memorisation: distance in the features from a sample to its nearest training image, over that of an image of the
    split, medians: near 0 if samples are copies of training images, about 1 if they are as far away as unseen images.
    """
    count = min(num_images, subject.data.size(subject.split))
    try:
        generated = features.of(samples(subject, count))
    except NotImplementedError as error:
        yield from left_out(str(error), *NAMES)
        return
    if count < MIN_IMAGES:
        yield from left_out(f"distances of sets need at least {MIN_IMAGES} images, found {count}", *NAMES)
        return
    real = features.of(x for x, _ in subject.blocks(count, "features of images"))
    train = features.of(x for x, _ in subject.blocks(num_images, "features of training images", "train"))
    kind = "of p(x|z)" if subject.model.image.levels == 2 else "means of p(x|z)"
    protocol: dict[str, Any] = {"features": features.name, "images": count, "samples": kind}
    yield Row("fid", frechet_distance(real, generated), protocol=protocol)
    kid, deviation = kernel_distance(real, generated, seed=subject.seed)
    size = min(1000, count // 2)
    yield Row("kid", kid, protocol=protocol | {"subset_size": size, "standard deviation over subsets": deviation})
    for name, value in coverage(real, generated, k)._asdict().items():
        yield Row(name, value, protocol=protocol | {"neighbours": k})
    indices, distances = nearest(generated, train)
    shown = next(samples(subject, count))[:NUM_SHOWN]  # drawn once more, so that not all have to be kept
    subject.nearest = shown, training_images(subject, indices[: len(shown)].tolist())
    if subject.split == "train":
        yield from left_out("the split is the training set itself", "memorisation")
        return
    ratio = distances.median() / nearest(real, train)[1].median()
    yield Row("memorisation", float(ratio), protocol=protocol | {"training images": len(train)})


def training_images(subject: Subject, indices: Sequence[int]) -> Tensor:
    """Images at these places in the training split, (n, C, H, W), without holding the others."""
    wanted, found, start = set(indices), dict[int, Tensor](), 0
    for x, _ in subject.data.first_images("train", max(indices) + 1):
        found |= {start + row: x[row] for row in range(len(x)) if start + row in wanted}
        start += len(x)
    return torch.stack([found[index] for index in indices])
