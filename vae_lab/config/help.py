"""--help: the groups, their options, and every key, as the rest of the command line composes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Template

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict

HELP = ("--help", "-h")


def is_help_request(argv: Sequence[str]) -> bool:
    """Whether help is asked for, with overrides beside it at most; Hydra answers those with flags of its own."""
    return any(word in HELP for word in argv) and all(word in HELP for word in argv if word.startswith("-"))


def help_text(directory: str, config_name: str, overrides: Sequence[str]) -> str:
    """What Hydra's --help prints, in half of the time: Hydra copies its whole store for each question it asks of it."""
    with initialize_config_dir(directory, version_base="1.3"):
        config = compose(config_name, list(overrides), return_hydra_config=True)
    template = Template(config.hydra.help.template)
    with open_dict(config):
        del config.hydra
    return template.substitute(APP_CONFIG_GROUPS="".join(groups(Path(directory))), CONFIG=OmegaConf.to_yaml(config))


def groups(directory: Path) -> Iterator[str]:
    """A line for each group: its options."""
    for folder in sorted(path for path in directory.rglob("*") if path.is_dir()):
        options = sorted(path.stem for path in folder.glob("*.yaml"))
        if options:
            yield f"{folder.relative_to(directory).as_posix()}: {', '.join(options)}\n"
