"""Join pictures of a run side by side, as the README shows them.

python scripts/readme_pictures.py OUT.png outputs/RUN samples reconstructions latent_scatter
"""

import sys
from pathlib import Path

from PIL import Image

GAP = 24


def last(run: Path, what: str) -> Image.Image:
    """The last picture of a kind."""
    return Image.open(max((run / "images").glob(f"{what}_*.png"), key=lambda path: path.stat().st_mtime)).convert("RGB")


def side_by_side(pictures: list[Image.Image], height: int) -> Image.Image:
    """All at one height, on white."""
    scaled = [p.resize((round(p.width * height / p.height), height), Image.Resampling.LANCZOS) for p in pictures]
    sheet = Image.new("RGB", (sum(p.width + GAP for p in scaled) - GAP, height), "white")
    x = 0
    for picture in scaled:
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
    side_by_side(pictures, min(picture.height for picture in pictures)).save(out, optimize=True)


if __name__ == "__main__":
    main()
