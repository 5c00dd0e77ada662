"""The model card of an export: what the model is, its numbers with their protocol, and how it is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vae_lab.metrics.results import number_text, protocol_words

CARD = """---
library_name: vae_lab
tags: [variational-autoencoder, pytorch, image-generation]
---

# {title}

{words}

{pictures}

## Numbers

{numbers}

## Use

```python
import vae_lab

lab = vae_lab.load("FOLDER")  # this folder; runs no code from it
lab.sample(16)
lab.reconstruct(images)  # float (B, {shape}) in [0, 1]
```

`python -m vae_lab.evaluate FOLDER data.root=DATA` measures it. {programs}

Trained with vae_lab {version}; `config.json` has the whole config, and the names, types and shapes of the weights in
`weights.safetensors`.
"""
PROGRAMS = (
    "`{encoder}` takes images (B, {shape}){labels} and gives the parameters of q(z|x), `{decoder}` takes "
    "latents and gives images; both take any batch size and need no vae_lab."
)


def model_card(
    title: str, words: str, image_shape: Sequence[int], files: Sequence[str], summary: dict[str, Any],
    evaluation: dict[str, Any], conditional: bool,
) -> str:  # fmt: skip
    """Markdown. files: of the export; summary, evaluation: contents of summary.json and evaluation.json, or empty."""
    shape = ", ".join(map(str, image_shape))
    named = {name: next((file for file in files if file.startswith(name)), "") for name in ("encoder", "decoder")}
    labels = " and labels (B,)" if conditional else ""
    alternatives = {"reconstructions.png": "Images and their reconstructions", "samples.png": "Samples of the prior"}
    return CARD.format(
        title=title,
        words=words,
        pictures="\n\n".join(f"![{text}]({name})" for name, text in alternatives.items() if name in files),
        numbers=_evaluated(evaluation) if evaluation else _tested(summary),
        shape=shape,
        programs=PROGRAMS.format(shape=shape, labels=labels, **named) if named["encoder"] else "",
        version=summary.get("versions", {}).get("vae_lab", "of an unknown version"),
    )


def _evaluated(evaluation: dict[str, Any]) -> str:
    """A table of evaluation.json: each value with its standard error and protocol."""
    common = evaluation["protocol"]
    lines = ["| | value | ± | protocol |", "|---|---|---|---|"]
    for part, rows in evaluation.items():
        for name, row in rows.items() if part != "protocol" else ():
            if row["value"] is not None:
                stderr = number_text(row["stderr"]) if row["stderr"] else ""
                words = protocol_words(row["protocol"].items()).replace("|", "\\|")
                lines.append(f"| {name} | {number_text(row['value'])} | {stderr} | {words} |")
    words = f"{common['images']:,} images of the {common['split']} split, binarisation {common['binarize']}"
    return "\n".join(lines) + f"\n\nOf {words}, in {common['precision']}; ± is one standard error."


def _tested(summary: dict[str, Any]) -> str:
    """The test metrics of summary.json."""
    metrics = {name: value for name, value in summary.get("metrics", {}).items() if name.startswith("test/")}
    if not metrics:
        return "Not evaluated."
    lines = ["| | value |", "|---|---|", *(f"| {name} | {number_text(value)} |" for name, value in metrics.items())]
    return "\n".join(lines) + "\n\nOf the test split, in nats per image where they are likelihoods."
