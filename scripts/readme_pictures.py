"""Join pictures of a run side by side, at their own size on white, as the README shows them.

python scripts/readme_pictures.py OUT.png outputs/RUN samples reconstructions
"""

import sys
from pathlib import Path

from PIL import Image

GAP = 24


def last(run: Path, what: str) -> Image.Image:
    """The last picture of a kind."""
    return Image.open(max((run / "images").glob(f"{what}_*.png"), key=lambda path: path.stat().st_mtime)).convert("RGB")


def main() -> None:
    """Write the sheet."""
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    pictures = [last(Path(sys.argv[2]), name) for name in sys.argv[3:]]
    width = sum(picture.width + GAP for picture in pictures) - GAP
    sheet, x = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white"), 0
    for picture in pictures:
        sheet.paste(picture, (x, 0))
        x += picture.width + GAP
    sheet.quantize(256).save(sys.argv[1], optimize=True)


if __name__ == "__main__":
    main()
