"""Plain docstrings as reStructuredText: `code` in backticks, `name:` of a parameter, indented examples, arXiv links.

What means something in reStructuredText and nothing in a plain text, such as the bars of q(z|x), is escaped.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from sphinx.application import Sphinx

CODE = re.compile(r"(`[^`]+`)")
MARKUP = re.compile(r"([\\*|_])")
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
LABEL = re.compile(r"(?:(?<=\. )|(?<=\) )|^)((?:\w+, )*\w+):(?= )")
Skip = bool | None


def text_of(sentence: str, names: frozenset[str]) -> str:
    """A line of plain text; `name:` is bold where all its words are parameters or exceptions."""

    def label(match: re.Match[str]) -> str:
        words = match[1].split(", ")
        known = all(word in names or word.endswith("Error") for word in words)
        return f"\0{match[1]}\0:" if known else match[0]

    parts = CODE.split(LABEL.sub(label, sentence))
    text = "".join(f"`{part}`" if part.startswith("`") else MARKUP.sub(r"\\\1", part) for part in parts)
    return ARXIV.sub(r"`arXiv:\1 <https://arxiv.org/abs/\1>`__", re.sub(r"\0([^\0]+)\0", r"**\1**", text))


def restructured(lines: list[str], names: frozenset[str]) -> list[str]:
    """The lines of a docstring as reStructuredText."""
    found: list[str] = []
    paragraph: list[str] = []
    for line in [*lines, ""]:
        indented = line.startswith("    ")
        if paragraph and (indented or not line.strip()):  # joined, for a label may stand where a line begins
            found += [text_of(" ".join(paragraph), names), ""]
            paragraph = []
        if indented:
            if not found or not found[-1].startswith("    "):
                found += ["::", ""]
            found.append(line)
        elif line.strip():
            paragraph.append(line.strip())
        elif found and found[-1].startswith("    "):
            found.append("")
    return found


def parameters_of(what: Any) -> frozenset[str]:
    """The names in the signature of a function or class; empty where it has none."""
    try:
        names = set(inspect.signature(what).parameters)
    except (TypeError, ValueError):
        names = set()
    return frozenset(names | set(getattr(what, "__annotations__", ())))


def process(_app: Sphinx, _what: str, _name: str, obj: Any, _options: Any, lines: list[str]) -> None:
    lines[:] = restructured(lines, parameters_of(obj))


def skip(_app: Sphinx, _what: str, name: str, obj: Any, _skip: bool, _options: Any) -> Skip:
    """Leave out the fields of named tuples, whose docstrings say nothing."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", process)
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
