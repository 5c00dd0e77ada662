"""What the latents of images tell: use of the dimensions, labels, factors; and what reconstructions keep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vae_lab.data.images import Split
from vae_lab.metrics import disentanglement
from vae_lab.metrics.elbo_sums import ACTIVE_VARIANCE
from vae_lab.metrics.subject import Row, Subject, left_out, mean_row
from vae_lab.models.base import point_estimate
from vae_lab.models.vae import VAE

NUM_NEIGHBOURS = 10


class Codes(NamedTuple):
    """Codes of images, (N, D), at the point estimate of z, and samples of q(z|x); labels (N,), if there are any."""

    z: Tensor
    sampled: Tensor
    labels: Tensor | None


@torch.inference_mode()
def codes(subject: Subject, split: Split, num_images: int | None) -> Codes | None:
    """Codes of a split's images; None for a model with several stochastic layers."""
    model: Any = subject.model
    if not isinstance(model, VAE):
        return None
    found = []
    for x, y in subject.blocks(num_images, f"codes of {split}", split):
        posterior = model.encode(x, subject.labels(y))
        zs = (z.flatten(1).cpu() for z in (point_estimate(posterior), posterior.sample()))
        found.append((*zs, None if y is None else y.cpu()))
    points, samples, ys = zip(*found, strict=True)
    return Codes(torch.cat(points), torch.cat(samples), None if ys[0] is None else torch.cat(ys))


@torch.inference_mode()
def reconstruction_rows(subject: Subject, num_images: int | None = None) -> Iterator[Row]:
    """`mse`, `psnr` (dB) and `ssim` of reconstructions at the point estimate of z, means over images.

    SSIM: Wang et al. 2004, doi:10.1109/TIP.2003.819861, as torchmetrics has it: the Gaussian window of 11 pixels (of as
    many as the image has, if fewer), with reflected borders.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    smallest = min(subject.model.image.shape[1:])
    window = min(11, smallest - 1 + smallest % 2)
    squares, similarities = [], []
    for x, y in subject.blocks(num_images, "reconstructions"):
        mean = subject.model.reconstruct(x, subject.labels(y)).mean
        squares.append((x - mean).square().flatten(1).mean(1).double().cpu())
        ssim = structural_similarity_index_measure(mean, x, sigma=1.5 * window / 11, data_range=1.0, reduction="none")
        assert isinstance(ssim, Tensor)
        similarities.append(ssim.cpu())
    mse = torch.cat(squares)
    subject.per_image["mse"] = mse
    yield mean_row("mse", mse)
    yield mean_row("psnr", -10 * mse.clamp(min=1e-12).log10(), unit="dB")
    yield mean_row("ssim", torch.cat(similarities), window=f"Gaussian, {window} pixels")


def representation_rows(subject: Subject, num_train: int = 5000, num_test: int | None = None) -> Iterator[Row]:
    """`active_units` of the point estimates, `knn_accuracy` and `linear_probe_accuracy` of the labels.

    active_units: dimensions whose point estimate has a variance above 0.01 over the split's images. The classifiers are
    fitted to training images. Burda et al. 2016, arXiv:1509.00519, section 5.2.
    """
    test = codes(subject, subject.split, num_test)
    labelled = ("knn_accuracy", "linear_probe_accuracy")
    if test is None:
        yield from left_out("a model with several stochastic layers has no single code", "active_units", *labelled)
        return
    if subject.model.latents[0].kind == "codes":
        yield from left_out("codes are no units with a mean", "active_units")
    else:
        active = test.z.double().var(0) > ACTIVE_VARIANCE
        yield Row("active_units", float(active.sum()), protocol={"images": len(test.z), "of": test.z.shape[1]})
    if test.labels is None:
        yield from left_out("the data have no labels", *labelled)
        return
    train = codes(subject, "train", num_train)
    assert train is not None and train.labels is not None
    if len(train.labels.unique()) < 2:
        yield from left_out("the training images are of one class", *labelled)
        return
    yield from _classifiers(train, test)


def _classifiers(train: Codes, test: Codes) -> Iterator[Row]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    assert train.labels is not None and test.labels is not None
    neighbours = min(NUM_NEIGHBOURS, len(train.z))
    for name, classifier, how in (
        ("knn_accuracy", KNeighborsClassifier(neighbours), {"neighbours": neighbours}),
        ("linear_probe_accuracy", LogisticRegression(max_iter=1000), {"classifier": "logistic regression"}),
    ):
        fitted = make_pipeline(StandardScaler(), classifier).fit(train.z.numpy(), train.labels.numpy())
        right = torch.from_numpy(fitted.predict(test.z.numpy()) == test.labels.numpy())
        yield mean_row(name, right, **how, **{"training images": len(train.z), "codes": "standardised"})


SCORES = (
    "mig", "sap", "dci_disentanglement", "dci_completeness", "dci_informativeness", "modularity", "factor_vae_score",
    "beta_vae_score", "mig_sampled",
)  # fmt: skip


def disentanglement_rows(
    subject: Subject, factors: np.ndarray | None, categorical: Sequence[bool], num_images: int = 10_000
) -> Iterator[Row]:
    """MIG, SAP, DCI, modularity, FactorVAE and beta-VAE score of the point estimates of images with known factors.

    factors: integers (N, F), of the images of the split in order; None: not known. Those of one value are left out.
    mig_sampled: of samples of q(z|x), as Chen et al. 2018 define it. A dimension whose q(z|x) is nearly p(z) then tells
    nothing, while its mean, which still moves a little, tells of factors and closes the gap of `mig`.
    """
    found = codes(subject, subject.split, num_images) if factors is not None else None
    if found is None or factors is None:
        reason = "the data have no known factors" if factors is None else "the model has no single code"
        yield from left_out(reason, *SCORES)
        return
    z, v = found.z.double().numpy(), factors[: len(found.z)]
    varying = np.ptp(v, axis=0) > 0
    if varying.sum() < 2:
        yield from left_out("fewer than two factors vary", *SCORES)
        return
    v, categorical = v[:, varying], np.asarray(categorical)[varying].tolist()
    dci = disentanglement.dci(z, v)
    protocol: dict[str, Any] = {"images": len(z), "factors": v.shape[1], "codes": "point estimates"}
    values = (
        disentanglement.mutual_information_gap(z, v),
        disentanglement.separated_attribute_predictability(z, v, categorical),
        dci.disentanglement,
        dci.completeness,
        dci.informativeness,
        disentanglement.modularity(z, v),
        disentanglement.factor_vae_score(z, v),
        disentanglement.beta_vae_score(z, v),
    )
    for name, value in zip(SCORES[:-1], values, strict=True):
        yield Row(name, value, protocol=protocol)
    value = disentanglement.mutual_information_gap(found.sampled.double().numpy(), v)
    yield Row("mig_sampled", value, protocol=protocol | {"codes": "samples of q(z|x)"})
