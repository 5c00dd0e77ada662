"""How fast and how large vae_lab is, always beside something else and in turn with it, since a machine's speed drifts.

python scripts/benchmark.py                  # everything, about half an hour
python scripts/benchmark.py training memory  # two tables
python scripts/benchmark.py --quick          # a check that everything works; what is too slow for it is left out
python scripts/benchmark.py --json results.json

Each side runs in a process of its own, as a user's script would, and is idle while the other one runs. A row gives the
medians over repeats after a warm-up, the median of the ratios repeat by repeat, and whether it is what was wanted.
MNIST and the pictures of Pokemon are read from VAE_LAB_DATA (default: data), as vae_lab reads them.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Without this folder, whose profile.py would stand before the standard library's.
sys.path[:] = [str(HERE.parent), *(path for path in sys.path if Path(path).resolve() != HERE)]

from scripts.benchmarks.cli import main  # noqa: E402 (found only now)

if __name__ == "__main__":
    sys.exit(main(__doc__))
