"""The frame of a page: templates, pictures and scripts inside the one file, so that it makes no request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from vae_lab.figures.canvas import data_uri
from vae_lab.utils.errors import UsageError
from vae_lab.utils.files import write_atomically

MAX_LENGTH = 15_000_000  # characters, with what is embedded


def render(template: str, **content: Any) -> str:
    """The page of a template of vae_lab/report/templates, with what stands in it."""
    environment = Environment(
        loader=PackageLoader("vae_lab.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["embedded"] = embedded
    environment.filters["data"] = data
    return environment.get_template(template).render(plotly=Markup(get_plotlyjs()), **content)


def write_file(path: Path, content: bytes) -> None:
    """Write a page or a table. UsageError: it cannot be written."""
    try:
        write_atomically(path, content)
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"{path}: cannot be written: {reason}\nchoose another place: out=FILE.html") from error


def embedded(image: Path | bytes, kind: str = ".png") -> str:
    """The address of a picture that lies in the page itself."""
    content, suffix = (image.read_bytes(), image.suffix) if isinstance(image, Path) else (image, kind)
    return data_uri(content, suffix[1:].replace("jpg", "jpeg"))


def data(value: Any) -> Markup:
    """JSON for a script element, whatever signs are in its texts."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))
