"""docs/first_steps.md runs as the notebook that it is, and shows what its sentences say."""

import re
from pathlib import Path

import pytest

pytest.importorskip("nbclient")  # the extra `docs`
pytest.importorskip("myst_nb")
pytest.importorskip("ipykernel")

PAGE = Path(__file__).parents[1] / "docs" / "first_steps.md"


def numbers(text: str) -> list[float]:
    return [float(word) for word in re.findall(r"-?\d+\.\d+", text)]


@pytest.mark.slow
def test_the_first_steps_run(tmp_path):
    from myst_nb.core.read import read_myst_markdown_notebook
    from nbclient import NotebookClient

    notebook = read_myst_markdown_notebook(PAGE.read_text(), path=PAGE)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    cells = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert sum("image/png" in output.get("data", {}) for outputs in cells for output in outputs) == 7
    texts = ["".join(output.text for output in outputs if output.get("name") == "stdout") for outputs in cells]
    printed = {text.split()[0]: text for text in texts if text}
    bounds = numbers(printed["K"])
    assert bounds == sorted(bounds), "the bound rises with K"
    digits, *others = numbers(printed["digits"])
    assert all(digits > other for other in others)
    rows = [numbers(line) for line in printed["beta"].splitlines()[1:]]
    rates, distortions, elbos = ([row[column] for row in rows] for column in (-3, -2, -1))
    assert rates == sorted(rates, reverse=True) and distortions == sorted(distortions) and elbos[1] == max(elbos)
    trained, fitted = numbers(printed["N(0,"])
    assert fitted > trained
