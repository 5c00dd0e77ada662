"""What a run directory, or an export, holds in files: the report reads its numbers here, and computes none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from vae_lab.callbacks.metrics_csv import read_rows
from vae_lab.config.schema import conf_dir
from vae_lab.runs.checkpoint_io import BEST
from vae_lab.runs.exported import CONFIG, is_export, read_export
from vae_lab.runs.resume import LAST_CHECKPOINT, run_dir_of
from vae_lab.runs.stored_config import load_config
from vae_lab.runs.sweep import SWEEP_FILE
from vae_lab.utils.errors import UsageError, require_extra
from vae_lab.utils.files import as_number, read_json

HYDRA, BEST_CHECKPOINT = Path(".hydra"), Path("checkpoints", BEST)


@dataclass(frozen=True)
class RunFiles:
    """letter: the name of the run among those of the page. checkpoint: best, last, or that of the path."""

    folder: Path
    letter: str
    checkpoint: str
    config: DictConfig

    @property
    def is_export(self) -> bool:
        return is_export(self.folder)

    @property
    def name(self) -> str:
        """The last folders of the path: the experiment and the time, the sweep and the number of the job."""
        return "/".join(self.folder.resolve().parts[-2:])

    @cached_property
    def summary(self) -> dict[str, Any]:
        return read_json(self.folder / (CONFIG if self.is_export else "summary.json"))

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        """Empty if the run was not evaluated."""
        return read_json(self.folder / "evaluation.json")

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Of metrics.csv, values as text; empty without one."""
        path = self.folder / "metrics.csv"
        return read_rows(path) if path.is_file() else []

    @property
    def status(self) -> str:
        return "export" if self.is_export else str(self.summary.get("status", "unfinished"))

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Of the test, and of validation at the best checkpoint; of the last validation if there is no summary."""
        found = self.summary.get("metrics") or {}
        if not found and self.rows:
            found = {name: as_number(text) for name, text in self.rows[-1].items() if name}
        best = self.summary.get("best_metrics") or {}
        return {name: value for name, value in {**found, **best}.items() if value is not None}

    @cached_property
    def choices(self) -> dict[str, Any]:
        """The options of the config's groups; empty for an export."""
        choices = OmegaConf.select(self._hydra("hydra.yaml"), "hydra.runtime.choices", default={})
        return {str(group): option for group, option in choices.items()}

    @property
    def overrides(self) -> list[str]:
        """Of the command line that started the run."""
        return [str(word) for word in self._hydra("overrides.yaml")]

    def _hydra(self, name: str) -> DictConfig | ListConfig:
        file = self.folder / HYDRA / name
        return OmegaConf.load(file) if file.is_file() else OmegaConf.create()

    def option(self, key: str) -> str:
        """A group's option or a key's value, also where no override names it."""
        value = self.choices.get(key, OmegaConf.select(self.config, key, throw_on_resolution_failure=False))
        return "none" if value is None else str(value)

    @property
    def method(self) -> str:
        """The comment that heads the file of the experiment, if it is one of vae_lab's."""
        file = Path(conf_dir(), "experiment", f"{self.choices.get('experiment')}.yaml")
        lines = file.read_text().splitlines()[1:] if file.is_file() else []
        count = next((number for number, line in enumerate(lines) if not line.startswith("# ")), len(lines))
        return " ".join(line.removeprefix("# ") for line in lines[:count])


def read_runs(paths: Sequence[str], checkpoint: str, trusted: bool) -> list[RunFiles]:
    """The runs of the command line. UsageError: a path that is no run, a config that could run code."""
    found = []
    for index, path in enumerate(paths):
        folder = run_dir_of(path)
        if (folder / SWEEP_FILE).is_file():
            raise UsageError(f"{folder}: a sweep\npython -m vae_lab.report sweep=DIR makes its page")
        if is_export(folder):
            require_extra("export", "safetensors")
            config = read_export(folder, trusted).config
        else:
            config = load_config(folder, trusted, lenient=True)
        chosen = checkpoint if folder == Path(path) else Path(path).stem
        if chosen == "best" and not (folder / BEST_CHECKPOINT).is_file() and (folder / LAST_CHECKPOINT).is_file():
            chosen = "last"  # training was interrupted before the first validation, or has none
        found.append(RunFiles(folder, chr(ord("A") + index), chosen, config))
    return found
