"""Config files of the user: those below ./conf of the folder in which a command starts, and below --config-dir.

They are found behind those of vae_lab, whose names they cannot have.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from vae_lab.config.schema import conf_dir
from vae_lab.utils.errors import UsageError

FOLDER = "conf"


class CurrentFolder(SearchPathPlugin):
    """Adds ./conf to the search path of vae_lab's commands, and of no other program of Hydra's in this process."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        folder, own = Path(FOLDER), Path(conf_dir())
        is_ours = any(it.provider == "main" and Path(it.path) == own for it in search_path.get_path())
        if is_ours and folder.is_dir() and not folder.samefile(own):
            search_path.append("current folder", f"file://{folder.absolute()}")


def require_own_names(overrides: Sequence[str], flags: Sequence[str], directory: str) -> None:
    """UsageError: an override chooses a file of the user whose name is that of another file in `directory`."""
    given = [value for flag, value in pairwise(flags) if flag in ("--config-dir", "-cd")]
    for word in overrides:
        group, _, options = word.lstrip("+").partition("=")
        for folder in (FOLDER, *given):
            for option in re.findall(r"[\w.-]+", options):
                mine, ours = (Path(root, group, f"{option}.yaml") for root in (folder, directory))
                if mine.is_file() and ours.is_file() and mine.read_bytes() != ours.read_bytes():
                    raise UsageError(
                        f"{word}: vae_lab has an option of this name, which {mine} would not replace\nrename that file"
                    )
