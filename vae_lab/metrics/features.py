"""Features of images for the distances between sets: a small network trained here, or Inception where it is on disk.

Every result names its features: distances in different features cannot be compared.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from vae_lab.data.images import Split
from vae_lab.metrics.subject import Subject
from vae_lab.objectives.regularizers.images import NUM_FLIPS, ImageDiscriminator, apply_flips
from vae_lab.utils.errors import UsageError
from vae_lab.utils.files import write_atomically
from vae_lab.utils.rng import FIT, seed_noise

FeatureName = Literal["auto", "classifier", "flips", "random", "inception"]
STEPS, BATCH, WIDTH, MAX_WIDTH = 400, 128, 32, 128
MAX_VALUES = 2**27  # of the training images in memory
INCEPTION = "inception_v3_google-0cc3c7bd.pth"


class Features(NamedTuple):
    """Images (B, C, H, W) in [0, 1] to features (B, D), and what they are, for the protocol."""

    name: str
    extract: Callable[[Tensor], Tensor]

    def of(self, images: Iterator[Tensor]) -> Tensor:
        """Features of all images, (N, D), on the CPU."""
        return torch.cat([self.extract(x).float().cpu() for x in images])


def build_features(name: FeatureName, subject: Subject, cache: Path) -> Features:
    """The network of that name; `auto` is `classifier` with labels and `flips` without.

    classifier: trained on the labels of the training images. flips: on their orientation, as in `Perceptual`. random:
    not trained. UsageError: a classifier without labels, or no weights of Inception on disk.
    """
    labelled = len(subject.data.class_names) > 1
    if name == "auto":
        name = "classifier" if labelled else "flips"
    if name == "inception":
        return _inception()
    if name == "classifier" and not labelled:
        raise UsageError(
            "features=classifier: the data have no labels of several classes\nuse flips, random or inception"
        )
    num_outputs = len(subject.data.class_names) if name == "classifier" else NUM_FLIPS
    network = ImageDiscriminator(subject.model.image.shape, num_outputs, WIDTH, MAX_WIDTH)
    network.load_state_dict(_weights(network, name, subject, cache))
    network.to(subject.device).eval()
    steps = 0 if name == "random" else STEPS
    return Features(f"{name}, {steps} steps of {BATCH}", lambda x: torch.inference_mode()(_pooled)(network, x))


def _pooled(network: ImageDiscriminator, x: Tensor) -> Tensor:
    """Means over positions of the last two maps, (B, D)."""
    return torch.cat([each.mean((2, 3)) for each in network(x).features[-2:]], 1)


def _weights(network: nn.Module, name: str, subject: Subject, cache: Path) -> dict[str, Tensor]:
    """Weights from the cache, else trained and stored there; its key is of the training images and the settings."""
    images = subject.data.first_images("train", BATCH)
    settings = (name, STEPS, BATCH, WIDTH, MAX_WIDTH, subject.data.size("train"), subject.data.class_names)
    digest = hashlib.sha256(repr(settings).encode())
    for x, y in images:
        digest.update(x.numpy().tobytes() + (b"" if y is None else y.numpy().tobytes()))
    path = cache / f"features-{digest.hexdigest()[:32]}.pt"
    if path.is_file():
        found: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        return found
    seed_noise(torch.device("cpu"), 0, FIT)
    for part in network.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            part.reset_parameters()
    if name != "random":
        _train(network, name == "classifier", subject)
    weights = {key: value.cpu() for key, value in network.state_dict().items()}
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    write_atomically(path, buffer.getvalue())
    return weights


def _train(network: nn.Module, labelled: bool, subject: Subject) -> None:
    network.to(subject.device).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for x, y in subject.track(_training_batches(subject), "training of the feature network", STEPS):
        inputs = x.to(subject.device)
        if labelled and y is not None:
            targets = y.to(subject.device)
        else:
            targets = torch.randint(NUM_FLIPS, inputs.shape[:1]).to(subject.device)
            inputs = apply_flips(inputs, targets)
        optimizer.zero_grad()
        cross_entropy(network(inputs).logits, targets).backward()
        optimizer.step()


def _training_batches(subject: Subject, split: Split = "train") -> Iterator[tuple[Tensor, Tensor | None]]:
    """STEPS batches of random images, of as many as are used in all and fit into 1 GiB."""
    count = min(STEPS * BATCH, max(BATCH, MAX_VALUES // subject.model.image.num_dims))
    parts = list(subject.data.first_images(split, count))
    images = torch.cat([x for x, _ in parts])
    labels = None if parts[0][1] is None else torch.cat([y for _, y in parts if y is not None])
    for _ in range(STEPS):
        rows = torch.randint(len(images), (min(BATCH, len(images)),))
        yield images[rows], None if labels is None else labels[rows]


def _inception() -> Features:
    """torchvision's Inception v3 and its 2,048 features: not the network of published FIDs, and named so."""
    from torchvision.models import Inception3

    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION
    if not path.is_file():
        raise UsageError(f"features=inception: no weights at {path}\nput torchvision's {INCEPTION} there, or use auto")
    network = Inception3(init_weights=False, transform_input=False)  # True is for images normalised as ImageNet's
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network.fc = nn.Identity()
    network.eval()

    @torch.inference_mode()
    def extract(x: Tensor) -> Tensor:
        colour = x.cpu().expand(-1, 3, -1, -1)
        features: Tensor = network(2 * interpolate(colour, (299, 299), mode="bilinear", antialias=True) - 1)
        return features

    return Features("inception v3 of torchvision", extract)
