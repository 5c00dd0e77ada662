"""The handwritten digits bundled with scikit-learn: no download, read in milliseconds."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vae_lab.data.images import DecodedImages
from vae_lab.data.splits import split_by_count
from vae_lab.utils.errors import UsageError

_SIDE = 8
_MAX_LEVEL = 16  # 17 grey levels, 0..16
_ORDER_SEED = 0


@dataclass(frozen=True)
class Digits:
    """1,797 grey handwritten digits, labels 0-9; `val_size` and `test_size` count images.

    The 8x8 originals are upsampled to `image_size` with a margin as in MNIST (28: 24 and 2 on each side);
    `image_size=8` keeps them unchanged.
    """

    val_size: int = 180
    test_size: int = 180
    image_size: int = 28

    def __post_init__(self) -> None:
        if self.image_size < _SIDE:
            raise UsageError(f"data.image_size={self.image_size}: the digits are 8x8; expected 8 or more.")

    def load(self) -> DecodedImages:
        """Uint8 pixels (1797, 1, H, W). Raises UsageError if scikit-learn or its file is missing."""
        levels, labels = _read(_find())
        # The file is ordered by writer: a fixed shuffle puts all writers in every split. RandomState, because
        # numpy guarantees that its stream never changes.
        order = torch.from_numpy(np.random.RandomState(_ORDER_SEED).permutation(len(labels)))
        splits = split_by_count(len(labels), self.val_size, self.test_size)
        return DecodedImages(
            pixels=_upsample(levels, self.image_size),
            splits={split: order[indices] for split, indices in splits.items()},
            labels=labels,
            class_names=tuple("0123456789"),
        )


def _find() -> Path:
    # Located without importing sklearn.datasets, which takes two seconds, most of the time to the first step.
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise UsageError("data=digits: scikit-learn, the source of the images, is missing.\npip install scikit-learn")
    path = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    if not path.is_file():
        raise UsageError(
            f"data=digits: {path} is missing from the scikit-learn installation.\n"
            "pip install --force-reinstall scikit-learn"
        )
    return path


def _read(path: Path) -> tuple[Tensor, Tensor]:
    """Grey levels 0..16 (N, 1, 8, 8) and labels (N,)."""
    table = torch.from_numpy(np.loadtxt(path, delimiter=",", dtype=np.uint8))
    return table[:, :-1].reshape(-1, 1, _SIDE, _SIDE), table[:, -1].long()


def _upsample(levels: Tensor, image_size: int) -> Tensor:
    """Levels (N, 1, 8, 8) to uint8 (N, 1, image_size, image_size)."""
    grey = levels.float() * (255 / _MAX_LEVEL)
    if image_size != _SIDE:
        # The originals touch the border; the margin lets a stroke end inside the image, as in MNIST.
        margin = image_size // 14
        inner = image_size - 2 * margin
        grey = functional.interpolate(grey, size=(inner, inner), mode="bicubic", align_corners=False)
        grey = functional.pad(grey, [margin] * 4)
    return grey.round().clamp(0, 255).byte()
