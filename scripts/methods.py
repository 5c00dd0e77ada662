"""Train a dozen methods for equally long and draw their reconstructions and samples side by side.

python scripts/methods.py                              # all of them on MNIST, 10 epochs each: an hour on two cores
python scripts/methods.py vae vampprior flow_prior --epochs 50 --num-samples 500
python scripts/methods.py --runs outputs/methods       # what is trained there already is only drawn

Prints a table: test ELBO and its two parts, the importance-weighted bound on log p(x) of test images, seconds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
# In place of scripts/, whose profile.py would hide Python's own.
sys.path[:] = [str(HERE.parent), *(path for path in sys.path if Path(path).resolve() != HERE)]

METHODS = (
    "ae", "vae", "beta_vae", "iwae", "vae_iaf", "vampprior", "flow_prior", "beta_tcvae", "wae_mmd", "aae", "s_vae",
    "gumbel_vae", "cvae_conditional", "vq_vae", "ladder", "vae_gan",
)  # fmt: skip
NUM_RECONSTRUCTED, NUM_SAMPLED = 10, 12


class Row(NamedTuple):
    """What came of a method."""

    name: str
    metrics: dict[str, float]
    seconds: float
    iw_elbo: float | None  # None where the latents have no density


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
    return data.example_images("test", data.size("test"))


def bound(lab: Any, x: Any, y: Any, num_samples: int) -> float | None:
    """The mean importance-weighted bound, in nats per image."""
    import torch

    from vae_lab.models.base import parts_without_density

    if parts_without_density(lab.model):
        return None
    torch.manual_seed(0)
    labels = y if lab.model.conditional else None
    return float(lab.log_likelihood(x, num_samples, labels=labels).mean())


def measured(name: str, run: Path, num_images: int, num_samples: int) -> Row:
    """The numbers of a run."""
    import vae_lab

    summary = json.loads((run / "summary.json").read_text())
    lab, (x, y) = vae_lab.load(run), test_images(run)
    iw_elbo = bound(lab, x[:num_images], None if y is None else y[:num_images], num_samples)
    return Row(name, summary["metrics"], summary["seconds"], iw_elbo)


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


def epochs_of(run: Path) -> int:
    """How long it was trained."""
    epochs: int = json.loads((run / "summary.json").read_text())["epochs"]
    return epochs


def drawing(runs: dict[str, Path], title: str) -> Any:
    """A row for each method: reconstructions at the left, samples at the right."""
    import torch

    from vae_lab.figures.canvas import fit_axes, styled
    from vae_lab.figures.mosaic import arrange, draw

    @styled
    def drawn() -> Any:
        columns = NUM_RECONSTRUCTED + NUM_SAMPLED
        parts = {name: shown(run) for name, run in runs.items()}
        originals = next(iter(parts.values()))[0]
        images, cells = [originals], list(range(NUM_RECONSTRUCTED))
        for row, (_, reconstructed, samples) in enumerate(parts.values(), 1):
            images += [reconstructed] if samples is None else [reconstructed, samples]
            width = NUM_RECONSTRUCTED if samples is None else columns
            cells += range(row * columns, row * columns + width)
        mosaic = arrange(torch.cat(images), columns, cells, gaps_below=[0], gaps_right=[NUM_RECONSTRUCTED - 1], gap=16)
        names = ["test images", *(f"{name}, {epochs_of(run)} epochs" for name, run in runs.items())]
        xlabel = "reconstructions at the left, samples of the prior at the right"
        return fit_axes(draw(mosaic, title, xlabel=xlabel, row_labels=names))

    return drawn()


def table(rows: list[Row], num_images: int, num_samples: int) -> Any:
    """The rows, as rich shows them."""
    from rich.table import Table

    columns = ("experiment", "test/elbo", "log_px", "kl", f"iw_elbo_{num_samples} ({num_images:,} images)", "seconds")
    made = Table(*columns)
    for row in rows:
        values = [row.metrics[f"test/{name}"] for name in ("elbo", "log_px", "kl")]
        bounds = "no density" if row.iw_elbo is None else f"{row.iw_elbo:.2f}"
        made.add_row(row.name, *(f"{value:.2f}" for value in values), bounds, f"{row.seconds:.0f}")
    return made


def main() -> None:
    """Train, measure, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=list(METHODS), help="names of experiment files")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--runs", type=Path, default=Path("outputs/methods"))
    parser.add_argument("--out", type=Path, default=Path("methods.png"))
    parser.add_argument("--num-images", type=int, default=1000, help="of the test set, for the importance bound")
    parser.add_argument("--num-samples", type=int, default=100, help="K of the importance bound")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="for every run")
    given = parser.parse_args()
    runs = {name: trained(name, given.runs, given.epochs, given.set) for name in given.methods}
    from rich.console import Console

    from vae_lab.figures.canvas import render
    from vae_lab.figures.encoding import encode_png

    rows = [measured(name, run, given.num_images, given.num_samples) for name, run in runs.items()]
    Console(width=120).print(table(rows, given.num_images, given.num_samples))
    figure = drawing(runs, "Test images, and what each method makes of them")
    given.out.write_bytes(encode_png(render(figure), 0))


if __name__ == "__main__":
    main()
