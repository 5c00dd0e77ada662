"""Train a dozen methods for equally long and draw their reconstructions and samples side by side.

python scripts/methods.py                              # all of them on MNIST, 10 epochs each: an hour on two cores
python scripts/methods.py vae vampprior flow_prior --epochs 50 --num-samples 500
python scripts/methods.py --runs outputs/methods       # what is trained there already is only drawn
python scripts/methods.py dae geco --strips docs/images/methods    # and a bare picture of each, for docs/methods.md

Prints a table: test ELBO and its two parts, the importance-weighted bound on log p(x) of test images, seconds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this vae_lab rather than an installed one

METHODS = (
    "ae", "vae", "beta_vae", "iwae", "vae_iaf", "vampprior", "flow_prior", "beta_tcvae", "wae_mmd", "aae", "s_vae",
    "gumbel_vae", "cvae_conditional", "vq_vae", "ladder", "vae_gan",
)  # fmt: skip
NUM_RECONSTRUCTED, NUM_SAMPLED = 10, 12


def trained(name: str, runs: Path, epochs: int, overrides: list[str]) -> Path:
    """The run of an experiment, trained unless it is there."""
    run = runs / name
    if not (run / "summary.json").is_file():
        length = [f"trainer.max_epochs={epochs}", "callbacks.images=null", f"hydra.run.dir={run}"]
        command = [sys.executable, "-m", "vae_lab.train", f"experiment={name}", *length, *overrides]
        print("$", " ".join(command), flush=True)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return run


def test_images(run: Path) -> tuple[Any, Any]:
    """The test set as the run's own evaluation prepares it, and its labels."""
    from vae_lab.runs.stored_config import load_config
    from vae_lab.training.build import build_node

    data = build_node(load_config(run).data)
    data.load()
    return data.example_images("test", data.size("test"))


def cells(name: str, run: Path, num_images: int, num_samples: int) -> list[str]:
    """A row of the table."""
    import torch

    import vae_lab
    from vae_lab.models.base import parts_without_density

    summary = json.loads((run / "summary.json").read_text())
    lab, (x, y) = vae_lab.load(run), test_images(run)
    bound = "no density"
    if not parts_without_density(lab.model):
        torch.manual_seed(0)
        labels = y[:num_images] if lab.model.conditional else None
        bound = f"{lab.log_likelihood(x[:num_images], num_samples, labels=labels).mean():.2f}"
    values = [f"{summary['metrics'][f'test/{metric}']:.2f}" for metric in ("elbo", "log_px", "kl")]
    return [name, *values, bound, f"{summary['seconds']:.0f}"]


def shown(run: Path) -> tuple[Any, Any, Any | None]:
    """Test images, their reconstructions, and samples (None where the prior has none)."""
    import torch

    import vae_lab

    lab, (x, y) = vae_lab.load(run), test_images(run)
    y = y[:NUM_RECONSTRUCTED] if lab.model.conditional else None
    torch.manual_seed(0)
    reconstructed = lab.reconstruct(x[:NUM_RECONSTRUCTED], y)
    classes = torch.arange(NUM_SAMPLED) % lab.image.num_classes if lab.model.conditional else None
    try:
        samples = lab.sample(NUM_SAMPLED, labels=classes)
    except ValueError:
        samples = None
    return x[:NUM_RECONSTRUCTED], reconstructed, samples


def drawing(runs: dict[str, Path], title: str) -> Any:
    """A row for each method: reconstructions at the left, samples at the right."""
    import torch

    from vae_lab.figures.mosaic import Mosaic

    columns = NUM_RECONSTRUCTED + NUM_SAMPLED
    parts = {name: shown(run) for name, run in runs.items()}
    lengths = {name: json.loads((run / "summary.json").read_text())["epochs"] for name, run in runs.items()}
    originals = next(iter(parts.values()))[0]
    images, cells = [originals], list(range(NUM_RECONSTRUCTED))
    for row, (_, reconstructed, samples) in enumerate(parts.values(), 1):
        images += [reconstructed] if samples is None else [reconstructed, samples]
        width = NUM_RECONSTRUCTED if samples is None else columns
        cells += range(row * columns, row * columns + width)
    return Mosaic(
        torch.cat(images),
        columns,
        title=title,
        xlabel="reconstructions at the left, samples of the prior at the right",
        row_labels=["test images", *(f"{name}, {epochs} epochs" for name, epochs in lengths.items())],
        cells=cells,
        gaps_below=[0],
        gaps_right=[NUM_RECONSTRUCTED - 1],
    )


def write_strip(run: Path, path: Path) -> None:
    """Test images, their reconstructions and samples, a row each, one image pixel to a pixel."""
    import torch
    from torchvision.transforms.functional import to_pil_image
    from torchvision.utils import make_grid

    originals, reconstructed, samples = shown(run)
    rows = [originals, reconstructed] if samples is None else [originals, reconstructed, samples[:NUM_RECONSTRUCTED]]
    path.parent.mkdir(parents=True, exist_ok=True)
    grid = make_grid(torch.cat(rows), nrow=NUM_RECONSTRUCTED, padding=1, pad_value=0.8)
    to_pil_image(grid[: originals.shape[1]]).save(path, optimize=True)


def main() -> None:
    """Train, measure, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=list(METHODS), help="names of experiment files")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--runs", type=Path, default=Path("outputs/methods"))
    parser.add_argument("--out", type=Path, default=Path("methods.png"))
    parser.add_argument("--strips", type=Path, metavar="FOLDER", help="also write a bare picture of each method")
    parser.add_argument("--num-images", type=int, default=1000, help="of the test set, for the importance bound")
    parser.add_argument("--num-samples", type=int, default=100, help="K of the importance bound")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="for every run")
    given = parser.parse_args()
    runs = {name: trained(name, given.runs, given.epochs, given.set) for name in given.methods}
    from rich.console import Console
    from rich.table import Table

    from vae_lab.figures.canvas import figure_png

    bound = f"iw_elbo_{given.num_samples} ({given.num_images:,} images)"
    table = Table("experiment", "test/elbo", "log_px", "kl", bound, "seconds")
    for name, run in runs.items():
        table.add_row(*cells(name, run, given.num_images, given.num_samples))
    Console(width=120).print(table)
    mosaic = drawing(runs, "Test images, and what each method makes of them")
    given.out.write_bytes(figure_png(mosaic.figure()))
    for name, run in runs.items() if given.strips else ():
        write_strip(run, given.strips / f"{name}.png")


if __name__ == "__main__":
    main()
