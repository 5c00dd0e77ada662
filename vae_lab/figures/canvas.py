"""One style for all figures, and their PNG and GIF files.

Class names are text, never formulas, whatever signs are in them: mathtext is off and subscripts are Unicode.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]  # (H, W, 3)

DPI = 128  # a power of two: pixels / DPI * DPI is exact
MARGIN = 12  # white pixels around the content
MAX_FRAMES = 100
GIF_SECONDS = 10.0
SLOWEST, FASTEST, LAST = 500, 60, 1500  # milliseconds per frame

INK, MUTED, FAINT = "#22252b", "#6b7280", "#d5d9e0"
BLUE, ORANGE, GREEN = "#3b75af", "#e1812c", "#4f9d69"
SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")

# The first has no Chinese, Japanese and Korean signs; of the others, those that are installed complete it.
FONTS = ("DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK KR", "Droid Sans Fallback",
         "WenQuanYi Zen Hei", "Hiragino Sans", "Apple SD Gothic Neo", "Yu Gothic", "Microsoft YaHei", "Malgun Gothic",
         "Arial Unicode MS")  # fmt: skip
INSTALLED = sorted({*FONTS} & {*font_manager.get_font_names()}, key=FONTS.index)

STYLE: dict[Any, Any] = {
    "font.family": INSTALLED,
    "font.size": 8,
    "text.parse_math": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlepad": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.labelpad": 6,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "savefig.dpi": "figure",
}
styled = mpl.rc_context(STYLE)  # a decorator of functions that draw, whatever the user's matplotlibrc says


def blank_figure() -> Figure:
    """Empty figure; its size is only the unit of `add_axes`, since `figure_png` crops to the content."""
    return Figure(dpi=DPI, figsize=(8, 8), facecolor="white")


def add_axes(figure: Figure, left: int, bottom: int, width: int, height: int) -> Axes:
    """Add axes over a rectangle of whole pixels, relative to an origin of the caller's choice."""
    size = figure.bbox.width
    return figure.add_axes((left / size, bottom / size, width / size, height / size))


def latent_name(dim: int) -> str:
    """Name of a latent dimension, with its number as a subscript."""
    return f"z{str(dim).translate(SUBSCRIPTS)}"


def printable(name: str) -> str:
    """The name, with ? for what no font here can draw: foreign signs, bytes of a folder's name that are no text."""
    return "".join(sign if _has_glyph(sign) else "?" for sign in name)


@cache
def _has_glyph(sign: str) -> bool:
    fonts = (font_manager.get_font(font_manager.findfont(name)) for name in INSTALLED)
    return any(font.get_char_index(ord(sign)) for font in fonts)


@styled
def content_box(figure: Figure) -> Bbox:
    """What `figure_png` shows, in inches at whole pixels: elsewhere, image pixels would be resampled."""
    return Bbox(np.round(figure.get_tightbbox().padded(MARGIN / DPI).get_points() * DPI) / DPI)


@styled
def figure_png(figure: Figure) -> bytes:
    """PNG of the figure, cropped to its content."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches=content_box(figure), pil_kwargs={"compress_level": 4})
    return buffer.getvalue()


def encode_png(pixels: Pixels) -> bytes:
    """PNG of uint8 (H, W, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


def data_uri(content: bytes, kind: str = "png") -> str:
    """The address of a picture that lies in a page itself. kind: png, gif, jpeg or webp."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def encode_gif(frames: Sequence[Path]) -> bytes:
    """GIF of at most 100 evenly spaced frames, the last one shown longer."""
    chosen = np.linspace(0, len(frames) - 1, min(len(frames), MAX_FRAMES)).round().astype(int)
    images, buffer = _padded([frames[index] for index in chosen]), io.BytesIO()
    each = int(min(max(1000 * GIF_SECONDS / len(chosen), FASTEST), SLOWEST))
    durations = [each] * (len(chosen) - 1) + [LAST]
    next(images).save(buffer, "GIF", save_all=True, append_images=images, duration=durations, loop=0)
    return buffer.getvalue()


def _padded(paths: Sequence[Path]) -> Iterator[Image.Image]:
    """Images padded with white to one size: a resumed run may draw a different one."""
    sizes = []
    for path in paths:
        with Image.open(path) as image:
            sizes.append(image.size)
    for path in paths:
        with Image.open(path) as image:
            canvas = Image.new("RGB", (max(width for width, _ in sizes), max(height for _, height in sizes)), "white")
            canvas.paste(image, (0, 0))
            yield canvas
