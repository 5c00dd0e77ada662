"""Train and evaluate reference experiments, and write what they reach beside the published value in docs/results.md.

    python scripts/reproduce.py                     # all but those for a GPU: some four hours on two cores
    python scripts/reproduce.py vae iwae            # two rows; the others stay as they are in the table
    python scripts/reproduce.py --quick --out OUT   # a check of a few minutes that everything works

A run that is already in --runs is not trained again, an interrupted one is resumed, and what is evaluated is not
evaluated again. The data are read from VAE_LAB_DATA (default: data).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- written by scripts/reproduce.py -->", "<!-- until here -->"
HEADER = ("| experiment | what | published | here | training | on |", "|---|---|---|---|---|---|")
T_95 = 2.776  # the 0.975 quantile of Student's t with four degrees of freedom: five seeds
SEEDS = 5

NOTHING_ELSE = [
    f"evaluation.{part}" for part in ("quality=null", "representation=null", "baseline=false", "cost=false")
]
BOUND = [*NOTHING_ELSE, "evaluation.likelihood.num_images=null"]
TWO_LAYERS = ["model.encoder.hidden=[200,200]", "model.decoder.hidden=[200,200]", "model.latent_dim=50"]
WIDER = ["model.encoder.hidden=[400,400]", "model.decoder.hidden=[400,400]", "model.latent_dim=40"]
SMALL = ("width=16", "max_width=64", "patch_size=4")
SHAPES = ["model=conv", *(f"model.{it}coder.{key}" for it in ("en", "de") for key in SMALL), "model.latent_dim=10"]
SHAPES += ["data=shapes", "data.image_size=32", "data.batch_size=512", "optimizer.lr=0.003", "trainer.max_epochs=20"]
ANNEALED = ["optimizer/schedule=cosine", "optimizer.ema_decay=0.999"]
PLAIN = ["callbacks.images=null", "callbacks.baseline=null"]
DYNAMIC = "MNIST, dynamic binarisation"


class Reference(NamedTuple):
    """A published number, and how it is measured here."""

    what: str
    published: str  # with its source
    train: list[str]
    evaluate: list[str]
    metric: tuple[str, str]  # part and row of evaluation.json
    sign: int = 1  # -1: published as a negative log-likelihood
    unit: str = "nats"
    num_seeds: int = 1
    gpu: bool = False


def likelihood(
    model: str, published: str, train: list[str], k: int = 5000, gpu: bool = False, sizes: str = "all 10,000 images"
) -> Reference:
    """The negative importance-weighted bound on MNIST's test images."""
    what = f"{DYNAMIC}; {model}; -log p(x) by K={k} on {sizes}"
    evaluate = [*BOUND, f"evaluation.likelihood.num_samples={k}"]
    return Reference(what, published, [*train, *ANNEALED], evaluate, ("likelihood", f"iw_elbo_{k}"), -1, gpu=gpu)


def mig(experiment: str, published: str, *words: str) -> Reference:
    """The mutual information gap of samples of q(z|x) on shapes, over seeds."""
    train = [f"experiment={experiment}", *SHAPES, *words]
    evaluate = [part for part in NOTHING_ELSE if "representation" not in part] + ["evaluation.likelihood=null"]
    what = (
        f"shapes, 32x32; {experiment}, 10 latents, small conv; MIG of samples, mean of {SEEDS} seeds and 95% interval"
    )
    return Reference(what, published, train, evaluate, ("disentanglement", "mig_sampled"), unit="", num_seeds=SEEDS)


REFERENCES = {
    "vae": likelihood(
        "784-200-200-z50", "86.4, arXiv:1509.00519", ["experiment=vae", *TWO_LAYERS, "trainer.max_epochs=300"]
    ),
    "iwae": likelihood(
        "784-200-200-z50, IWAE with 50 samples", "84.6, arXiv:1509.00519",
        ["experiment=iwae", "objective.num_samples=50", *TWO_LAYERS, "trainer.max_epochs=15"],
    ),
    "flow_prior": likelihood(
        "784-400-400-z40, prior a flow", "none", ["experiment=flow_prior", *WIDER, "trainer.max_epochs=40"]
    ),
    "vampprior": likelihood(
        "784-400-400-z40, VampPrior", "none", ["experiment=vampprior", *WIDER, "trainer.max_epochs=40"], k=200,
    ),
    "ladder": likelihood(
        "ladder of 6 layers", "81.7, ladder of 5 layers, arXiv:1602.02282",
        ["experiment=ladder", "trainer.max_epochs=16"], k=100,
    ),
    "ladder_large": likelihood(
        "large ladder", "78.0, NVAE, arXiv:2007.03898",
        ["experiment=ladder", "model=ladder_large", "trainer=gpu", "trainer.max_epochs=200"], k=1000, gpu=True,
    ),
    "shapes_vae": mig("vae", ".10 on dSprites, arXiv:1802.05983"),
    "shapes_beta_tcvae": mig(
        "beta_tcvae", ".45 on dSprites", "objective.regularizers.total_correlation.weight=60"
    ),
}  # fmt: skip


def command(module: str, words: list[str]) -> None:
    """Run a command of vae_lab, and show it."""
    line = ["python", "-m", f"vae_lab.{module}", *words]
    print("$", shlex.join(line), flush=True)
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    subprocess.run([sys.executable, *line[1:]], check=True, env={**os.environ, "PYTHONPATH": paths})


def trained(run: Path, overrides: list[str]) -> dict[str, Any]:
    """The summary of a run, trained or resumed unless it is complete."""
    summary = run / "summary.json"
    if not summary.is_file() or json.loads(summary.read_text())["status"] != "completed":
        started = (run / "checkpoints" / "last.ckpt").is_file()
        command("train", [f"resume={run}"] if started else [*overrides, *PLAIN, f"hydra.run.dir={run}"])
    content: dict[str, Any] = json.loads(summary.read_text())
    return content


def measured(run: Path, reference: Reference, overrides: list[str]) -> dict[str, Any]:
    """The row of an evaluation, evaluated unless it is there."""
    path, (part, row) = run / "evaluation.json", reference.metric
    if not path.is_file() or row not in json.loads(path.read_text()).get(part, {}):
        command("evaluate", [str(run), *reference.evaluate, *overrides])
    content: dict[str, Any] = json.loads(path.read_text())[part][row]
    return content


def reproduce(name: str, runs: Path, quick: bool) -> str:
    """Train, evaluate; the row of the table."""
    reference = REFERENCES[name]
    train = [*reference.train, *(["debug=fast"] if quick else [])]
    evaluate = ["evaluation.likelihood.num_images=20"] if quick and reference.evaluate[0] == BOUND[0] else []
    seeds = range(1 if quick else reference.num_seeds)
    folders = [runs / (name if len(seeds) == 1 else f"{name}_seed={seed}") for seed in seeds]
    summaries = [trained(run, [*train, f"seed={seed}"]) for seed, run in zip(seeds, folders, strict=True)]
    rows = [measured(run, reference, evaluate) for run in folders]
    values = [reference.sign * row["value"] for row in rows]
    spread = T_95 * statistics.stdev(values) / math.sqrt(SEEDS) if len(values) == SEEDS else rows[0]["stderr"]
    digits = 2 if reference.unit else 3
    found = f"**{statistics.mean(values):.{digits}f}**" + (f" ± {spread:.{digits}f}" if spread else "")
    minutes = sum(summary["seconds"] for summary in summaries) / len(summaries) / 60
    epochs = summaries[0]["epochs"]
    each = " each" if len(summaries) > 1 else ""
    cells = (f"`{name}`", reference.what, reference.published, found, f"{minutes:.0f} min{each}, {epochs} epochs")
    return f"| {' | '.join(cells)} | {hardware(summaries[0])} |"


def hardware(summary: dict[str, Any]) -> str:
    """What a run was trained on."""
    return summary["device"] if "cuda" in summary["device"] else f"{os.cpu_count()} cores, {platform.machine()}"


def write_rows(rows: dict[str, str], path: Path) -> None:
    """Put rows into the table of a page; those of other experiments stay, and those for a GPU say how they are run."""
    text = path.read_text() if path.is_file() else f"{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    table, _, after = rest.partition(END)
    kept = {line.split("`")[1]: line for line in table.splitlines() if line.startswith("| `")} | rows
    for name, reference in REFERENCES.items():
        if reference.gpu:
            todo = f"not run yet: `python scripts/reproduce.py {name}`"
            kept.setdefault(name, f"| `{name}` | {reference.what} | {reference.published} | {todo} | | a GPU |")
    lines = [*HEADER, *(kept[name] for name in REFERENCES if name in kept)]
    path.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}")


def main() -> None:
    """Train, evaluate, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=", ".join(REFERENCES))
    parser.add_argument("--runs", type=Path, default=Path("outputs/reference"))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results.md")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in REFERENCES]:
        parser.error(f"{unknown[0]}: expected some of {', '.join(REFERENCES)}")
    for name in given.names or [name for name, reference in REFERENCES.items() if not reference.gpu]:
        write_rows({name: reproduce(name, given.runs.absolute(), given.quick)}, given.out)


if __name__ == "__main__":
    main()
