"""Pictures into shards for data=streaming: `python -m vae_lab.data.shards FOLDER OUT image_size=64`.

OUT holds litdata's chunks, whose items are blocks of decoded images, labels.npy, and shards.json, which describes them.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track
from torch import Tensor

from vae_lab.data.decode import PictureOptions, UnreadableImageError, decode
from vae_lab.data.images import SPLITS
from vae_lab.data.labels import labels_of_folders, read_labels
from vae_lab.data.sets.pictures import arrange, find_pictures
from vae_lab.utils.cpu import num_cores
from vae_lab.utils.errors import UsageError, require_extra

DESCRIPTION, LABELS = "shards.json", "labels.npy"
BLOCK_BYTES, CHUNK_BYTES = 2**20, 2**25


@dataclass
class Description:
    """The content of a folder of shards: images in random order, those of train first, then val and test."""

    shape: tuple[int, int, int]  # C, H, W
    block_size: int  # images of each item, fewer in the last
    sizes: list[int] = field(default_factory=lambda: [0, 0, 0])  # number of images of train, val, test
    class_names: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()  # pictures that could not be read
    checksum: int = 0  # CRC-32 of the pixels


def write_shards(folder: Path, out: Path, options: DictConfig) -> Description:
    """Decode the pictures of `folder` into `out`, complete or not at all. options: those of data=folder.

    UsageError: no pictures, an unreadable one unless on_bad_image is skip, `out` exists or cannot be written.
    """
    require_extra("streaming", "litdata", where="vae_lab.data.shards")
    from litdata.streaming import Cache

    if out.exists():
        raise UsageError(f"{out}: exists already\nchoose a new folder for the shards, or remove it")
    keys = ("image_size", "channels", "fit", "background", "max_pixels", "range")
    pictures = PictureOptions(**{key: options[key] for key in keys})
    found, _ = find_pictures(folder)
    if not found:
        raise UsageError(f"{folder}: no such folder, or no picture in it")
    names, inner_names, splits = arrange(found, options.val_size, options.test_size)
    table = options.labels
    labels, classes = read_labels(table, folder, names, options.label_name) if table else labels_of_folders(inner_names)
    shape = pictures.shape
    described = Description(shape, max(1, BLOCK_BYTES // math.prod(shape)), class_names=classes)
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        cache, kept = Cache(str(partial), chunk_bytes=CHUNK_BYTES), list[int]()
        rows = [(split, row) for split, name in enumerate(SPLITS) for row in shuffled(splits[name])]
        images = decoded(folder, names, rows, pictures, options.on_bad_image == "skip", described, kept)
        for number, block in enumerate(blocks(images, described.block_size)):
            cache[number] = block
            described.checksum = zlib.crc32(block.numpy().data, described.checksum)
        cache.done()
        cache.merge(1)
        if labels is not None:
            np.save(partial / LABELS, labels[kept].numpy())
        (partial / DESCRIPTION).write_text(json.dumps(asdict(described)))
        partial.rename(out)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return described


def shuffled(rows: Tensor) -> list[int]:
    """In a random order that is the same in every run: training shuffles neighbours only."""
    order: list[int] = rows[torch.from_numpy(np.random.RandomState(0).permutation(len(rows)))].tolist()
    return order


def decoded(
    folder: Path, names: Sequence[str], rows: Sequence[tuple[int, int]], pictures: PictureOptions, skips: bool,
    described: Description, kept: list[int],
) -> Iterator[Tensor]:  # fmt: skip
    """The images of `rows`, (split, row) each, decoded on all cores; counted in `described` and listed in `kept`."""

    def read(row: int) -> Tensor | str:
        try:
            return torch.from_numpy(decode(folder / names[row], pictures).pixels)
        except UnreadableImageError as error:
            return str(error)

    size = 64 * num_cores()
    with ThreadPoolExecutor(num_cores()) as pool:
        starts = range(0, len(rows), size)
        for start in track(starts, "Decoding pictures", console=Console(stderr=True), transient=True):
            part = rows[start : start + size]
            for (split, row), found in zip(part, pool.map(read, [row for _, row in part]), strict=True):
                if isinstance(found, Tensor):
                    described.sizes[split] += 1
                    kept.append(row)
                    yield found
                elif not skips:
                    raise UsageError(f"{folder / names[row]} {found}\nremove it, or add on_bad_image=skip")
                else:
                    described.skipped += (names[row],)
    if not described.sizes[0]:
        raise UsageError(f"{folder}: no picture is left to train on")


def blocks(images: Iterator[Tensor], size: int) -> Iterator[Tensor]:
    block: list[Tensor] = []
    for image in images:
        block.append(image)
        if len(block) == size:
            yield torch.stack(block)
            block = []
    if block:
        yield torch.stack(block)


def _options(words: Sequence[str]) -> DictConfig:
    """The options of data=folder with these overrides. UsageError: another key or type."""
    import hydra

    from vae_lab.config.messages import usage_message
    from vae_lab.config.schema import conf_dir
    from vae_lab.config.validation import check_targets

    try:
        with hydra.initialize_config_dir(conf_dir(), version_base="1.3"):
            chosen = [f"data.{word}" for word in words]
            config = hydra.compose("train", ["data=folder", "data.folder=none", *chosen])
    except Exception as error:
        if message := usage_message(error, conf_dir()):
            raise UsageError(message) from error
        raise
    check_targets(config, ("data",))
    options: DictConfig = config.data
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Exit code 0; 2 for a wrong request; 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m vae_lab.data.shards", description="Pictures into shards.")
    parser.add_argument("folder", type=Path, help="pictures, also in subfolders: labels, or train, val and test")
    parser.add_argument("out", type=Path, help="a new folder, for data=streaming data.folder=OUT")
    parser.add_argument("options", nargs="*", help="those of data=folder: image_size=64 channels=3 val_size=0.1 ...")
    arguments: Any = parser.parse_args(argv)
    folder, out = (path.expanduser().absolute() for path in (arguments.folder, arguments.out))
    try:
        described = write_shards(folder, out, _options(arguments.options))
    except UsageError as error:
        sys.stderr.write("error: {}\n".format(str(error).replace("\n", "\n  ")))
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped; nothing was kept\n")
        return 130
    sizes = " / ".join(f"{size:,} {split}" for size, split in zip(described.sizes, SPLITS, strict=True))
    sys.stdout.write(f"{out}: {sizes}, {len(described.skipped)} skipped\n")
    sys.stdout.write(f"Train on them: python -m vae_lab.train model=conv data=streaming data.folder={out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
