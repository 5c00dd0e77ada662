"""Join pictures of a run side by side, as the README shows them.

python scripts/readme_pictures.py OUT.png outputs/RUN samples reconstructions
"""

import sys
from pathlib import Path

from PIL import Image

GAP = 24


def last(run: Path, what: str) -> Image.Image:
    """The last picture of a kind."""
    return Image.open(max((run / "images").glob(f"{what}_*.png"), key=lambda path: path.stat().st_mtime)).convert("RGB")


def side_by_side(pictures: list[Image.Image]) -> Image.Image:
    """All at their own size, on white: scaled, their letters would differ."""
    width = sum(picture.width + GAP for picture in pictures) - GAP
    sheet = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    x = 0
    for picture in pictures:
        sheet.paste(picture, (x, 0))
        x += picture.width + GAP
    return sheet


def main() -> None:
    """Write the sheet."""
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    out, run, names = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    out.parent.mkdir(parents=True, exist_ok=True)
    pictures = [last(run, name) for name in names]
    side_by_side(pictures).quantize(256).save(out, optimize=True)


if __name__ == "__main__":
    main()
