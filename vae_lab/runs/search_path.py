"""Config files of the user: those below ./conf of the folder in which a command starts, and below --config-dir.

They are found behind those of vae_lab, whose names they cannot have.
"""

import re
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig

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
    flags = [part for flag in flags for part in flag.split("=", 1)]
    given = [value for flag, value in pairwise(flags) if flag in ("--config-dir", "-cd")]
    for word in overrides:
        group, _, options = word.lstrip("+").partition("=")
        for option in re.findall(r"[\w.-]+", options):
            for mine in hidden_files(group, option, (FOLDER, *given), directory):
                raise UsageError(
                    f"{word}: vae_lab has an option of this name, which {mine} would not replace\nrename that file"
                )


def warn_of_hidden_files(runtime: DictConfig) -> None:
    """Name the user's files that are not read, since a default or an experiment means vae_lab's of the same name.

    runtime: hydra.runtime of a composed config.
    """
    folders = [it.path for it in runtime.config_sources if it.provider in ("current folder", "command-line")]
    for group, options in runtime.choices.items():
        for option in [options] if isinstance(options, str) else options or ():
            for mine in hidden_files(group, option, folders, conf_dir()):
                sys.stderr.write(f"{mine}: not read, vae_lab has an option of this name: rename that file\n")


def hidden_files(group: str, option: str, folders: Sequence[str], directory: str) -> list[Path]:
    """The files of an option in the user's folders that differ from that of the same name in `directory`."""
    name = Path(group.partition("@")[0], f"{option}.yaml")
    ours, mine = Path(directory, name), [Path(folder, name) for folder in folders]
    return [it for it in mine if it.is_file() and ours.is_file() and it.read_bytes() != ours.read_bytes()]
