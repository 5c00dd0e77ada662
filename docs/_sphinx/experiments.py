"""The directive `experiment`: a command with `experiment=NAME`, and what the experiment's file says about it.

The paper and the options are read from conf/experiment/NAME.yaml, so that the page cannot differ from it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

EXPERIMENTS = Path(__file__).parents[2] / "conf" / "experiment"
PAPER = re.compile(r"(arXiv:(\d{4}\.\d{4,5})|doi:(\S+\w)|openreview\.net/forum\?id=(\w+))")


def comment_and_options(text: str) -> tuple[str, str]:
    """The comment of an experiment file as one paragraph, and its lines of YAML."""
    lines = text.splitlines()[1:]  # after "# @package _global_"
    start = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(line.removeprefix("#").strip() for line in lines[:start]), "\n".join(lines[start:])


def linked(comment: str) -> str:
    """The comment with a Markdown link for each paper."""

    def link(match: re.Match[str]) -> str:
        words, arxiv, doi, review = match.groups()
        address = (
            f"arxiv.org/abs/{arxiv}" if arxiv else f"doi.org/{doi}" if doi else f"openreview.net/forum?id={review}"
        )
        return f"[{words}](https://{address})"

    return PAPER.sub(link, comment)


class Experiment(SphinxDirective):
    """```{experiment} with the command of an experiment."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        command = "\n".join(self.content)
        (name,) = re.findall(r"\bexperiment=(\w+)", command)
        file = EXPERIMENTS / f"{name}.yaml"
        self.env.note_dependency(str(file))
        comment, options = comment_and_options(file.read_text())
        lines = [linked(comment), "", "```bash", command, "```", "", "```yaml", f"# conf/experiment/{name}.yaml"]
        lines += [*options.splitlines(), "```", ""]
        if (Path(self.env.srcdir) / f"images/methods/{name}.png").is_file():
            alt = f"MNIST by {name}: test images, their reconstructions, samples of the prior"
            lines += [f"![{alt}](images/methods/{name}.png)", ""]
        found = nodes.container(classes=["method"])
        self.state.nested_parse(StringList(lines, source=str(file)), self.content_offset, found)
        return [found]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("experiment", Experiment)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
