"""The frame of a page: templates, pictures and scripts inside the one file, so that it makes no request."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

MAX_LENGTH = 15_000_000  # characters, with what is embedded
MIME = {".png": "image/png", ".gif": "image/gif", ".jpg": "image/jpeg", ".webp": "image/webp"}


def render(template: str, **content: Any) -> str:
    """The page of a template of vae_lab/report/templates, with what stands in it."""
    environment = Environment(
        loader=PackageLoader("vae_lab.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["embedded"] = embedded
    environment.filters["data"] = data
    return environment.get_template(template).render(plotly=Markup(get_plotlyjs()), **content)


def embedded(image: Path | bytes, kind: str = ".png") -> str:
    """The address of a picture that lies in the page itself."""
    content, suffix = (image.read_bytes(), image.suffix) if isinstance(image, Path) else (image, kind)
    return f"data:{MIME[suffix]};base64,{base64.b64encode(content).decode()}"


def data(value: Any) -> Markup:
    """JSON for a script element, whatever signs are in its texts."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))
