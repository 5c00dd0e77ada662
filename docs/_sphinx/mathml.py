"""Formulas as MathML, which browsers draw themselves: no script, no font and no request."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

log = logging.getLogger(__name__)
# log p(x), 2 log x: TeX has a thin space on both sides of a function, but for brackets, and browsers have none.
THIN = '<mspace width="0.17em"></mspace>'
AFTER = re.compile(r"<mo>&ApplyFunction;</mo>(\s*<(?!mo\b))")
BEFORE = re.compile(r"(</(?:mi|mn|mfrac|msub)>)(\s*<mi>(?:log|ln|det|exp)</mi>)")


def mathml(node: nodes.Element, as_block: bool) -> str:
    try:
        formula = latex2mathml.tex2mathml(node.astext(), as_block=as_block)
    except MathError as error:
        log.warning("%s: %s", node.astext(), error, location=node)
        return ""
    return BEFORE.sub(rf"\1{THIN}\2", AFTER.sub(rf"{THIN}\1", formula))


def visit_inline(translator: Any, node: nodes.math) -> None:
    """Write the formula of a sentence."""
    translator.body.append(mathml(node, as_block=False))
    raise nodes.SkipNode


def visit_block(translator: Any, node: nodes.math_block) -> None:
    """Write a formula on a line of its own, which scrolls where it is too wide."""
    translator.body.append(f'<div class="formula">{mathml(node, as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
