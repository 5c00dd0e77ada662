"""The tables of a page: final numbers, differences of the overrides, evaluation, environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from vae_lab.callbacks.baseline import comparison_lines
from vae_lab.metrics.results import PARTS, number_text, protocol_words
from vae_lab.report.run_files import RunFiles

NATS, STDERR = "nats per image", "_stderr"
MEANINGS = {
    "elbo": f"lower bound on log p(x), {NATS}: beta 1, one sample of z",
    "log_px": f"log p(x|z), {NATS}: minus the distortion",
    "kl": f"KL of q(z|x) from p(z), {NATS}: the rate",
    "loss": "the objective that training minimises",
    "bits_per_dim": "minus the ELBO in bits per pixel and channel",
    "mse": "squared error of reconstructions, per pixel and channel",
    "chroma": "share of the colour variance that is not reconstructed",
    "reconstruction_nll": f"minus the log-density of the errors, {NATS}, up to a constant",
    "active_units": "latent dimensions whose posterior mean has a variance above 0.01",
}


class Cell(NamedTuple):
    text: str
    exact: str = ""  # the number with all its digits
    stderr: str = ""
    protocol: str = ""


class Line(NamedTuple):
    """A row of a table: a cell for each run. protocol: if it is the same for all."""

    name: str
    cells: list[Cell]
    protocol: str = ""


def final_numbers(runs: Sequence[RunFiles]) -> list[Line]:
    """The metrics of the test and of validation, with what they are."""
    names = dict.fromkeys(name for run in runs for name in run.metrics)
    splits = [name for split in ("test/", "val/") for name in names if name.startswith(split)]
    shown = [name for name in (*splits, "active_units") if name in names and not name.endswith(STDERR)]
    return [
        Line(name, [_metric(run.metrics, name) for run in runs], MEANINGS.get(name.rpartition("/")[2], ""))
        for name in shown
    ]


def _metric(metrics: Mapping[str, float], name: str) -> Cell:
    if name not in metrics:
        return Cell("-")
    return Cell(number_text(metrics[name]), repr(metrics[name]), _plus_minus(metrics.get(name + STDERR)))


def _plus_minus(stderr: float | None) -> str:
    return f"\N{PLUS-MINUS SIGN} {number_text(stderr)}" if stderr else ""


def protocol_of(run: RunFiles) -> str:
    """How the final numbers of a run were measured."""
    select = OmegaConf.select
    limits = {split: select(run.config, f"trainer.limit_{split}_batches") for split in ("val", "test")}
    of = [f"{split} on {limit} batches only" for split, limit in limits.items() if limit not in (None, 1.0)]
    whole = "whole splits" if not of else ", ".join(of)
    weights = "test after training, on the best weights if they were kept; validation at the best checkpoint"
    return f"{weights}; {whole}; binarisation {select(run.config, 'data.binarize', default='none')}"


def baseline_lines(run: RunFiles) -> list[str]:
    """The model and probabilistic PCA, a line each."""
    return comparison_lines(run.metrics, run.summary["baseline"]) if run.summary.get("baseline") else []


def differences(runs: Sequence[RunFiles]) -> list[Line]:
    """What the overrides of the runs set differently."""
    keys = dict.fromkeys(word.lstrip("+~").partition("=")[0] for run in runs for word in run.overrides)
    lines = [Line(key, [Cell(run.option(key)) for run in runs]) for key in keys]
    return [line for line in lines if len({cell.text for cell in line.cells}) > 1]


def evaluation_tables(runs: Sequence[RunFiles]) -> dict[str, list[Line]]:
    """The parts of evaluation.json: each number with its standard error and protocol, or why it is left out."""
    tables = {}
    for part in PARTS:
        of_runs = [run.evaluation.get(part, {}) for run in runs]
        names = dict.fromkeys(name for rows in of_runs for name in rows)
        if names:
            tables[part] = [_evaluated(name, [rows.get(name) for rows in of_runs]) for name in names]
    return tables


def _evaluated(name: str, entries: Sequence[Mapping[str, Any] | None]) -> Line:
    cells = []
    for entry in entries:
        if entry is None or entry["value"] is None:
            cells.append(Cell("-", protocol=entry["reason"] if entry else ""))
            continue
        words = protocol_words(entry["protocol"].items())
        cells.append(Cell(number_text(entry["value"]), repr(entry["value"]), _plus_minus(entry["stderr"]), words))
    protocols = {cell.protocol for cell, entry in zip(cells, entries, strict=True) if entry is not None}
    if len(protocols) > 1:
        return Line(name, cells)
    return Line(name, [cell._replace(protocol="") for cell in cells], next(iter(protocols), ""))


def evaluation_protocol(run: RunFiles) -> str:
    """What holds for all numbers of an evaluation; empty if there is none."""
    if not (common := run.evaluation.get("protocol")):
        return ""
    named = {key: value for key, value in common.items() if key != "versions"}
    return protocol_words(named.items())


def environment(runs: Sequence[RunFiles]) -> list[Line]:
    """Where and how the runs were trained."""
    found = [_environment(run) for run in runs]
    names = dict.fromkeys(name for it in found for name in it)
    return [Line(name, [Cell(it.get(name, "-")) for it in found]) for name in names]


def _environment(run: RunFiles) -> dict[str, str]:
    summary, git = run.summary, run.summary.get("git") or {}
    shown = {"folder": str(run.folder), "status": run.status}
    if "error" in summary:
        shown["error"] = str(summary["error"])
    for key in ("num_parameters", "device", "precision", "seed", "epochs", "steps", "seconds", "images_per_second"):
        if summary.get(key) is not None:
            value = summary[key]
            shown[key.replace("_", " ")] = number_text(value) if isinstance(value, float) else _whole(value)
    shown |= {name: str(version) for name, version in (summary.get("versions") or {}).items()}
    if git:
        shown["git"] = f"{git['commit']}{', with changes that were not committed' if git['dirty'] else ''}"
    if "config_hash" in summary:
        shown["hash of the config"] = str(summary["config_hash"])
    return shown


def _whole(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
