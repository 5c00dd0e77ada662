"""A table of the model's layers and parameter counts, printed before training."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import ModelSummary
from rich.console import Console
from rich.table import Table


class ModelSummaryTable(ModelSummary):
    """Prints names, types and parameter counts of the layers with parameters, down to `max_depth`, on stderr."""

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]], total_parameters: int, trainable_parameters: int, *_: Any, **__: Any
    ) -> None:
        columns = dict(summary_data)
        table = Table("layer", "type", box=None, pad_edge=False)
        table.add_column("parameters", justify="right")
        for name, kind, count in zip(columns["Name"], columns["Type"], columns["Params"], strict=True):
            if count.strip() != "0":
                table.add_row(name, kind, count)
        frozen = total_parameters - trainable_parameters
        console = Console(stderr=True, highlight=False)
        console.print(table)
        console.print(f"{total_parameters:,} parameters" + (f", {frozen:,} of them frozen" if frozen else ""))
