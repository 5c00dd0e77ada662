"""The text of --help: config groups, their options, and all keys as composed by the other overrides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Template

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict

HELP = ("--help", "-h")


def is_help_request(argv: Sequence[str]) -> bool:
    """Whether the only flags are help flags; Hydra handles help combined with flags of its own."""
    return any(word in HELP for word in argv) and all(word in HELP for word in argv if word.startswith("-"))


def help_text(directory: str, config_name: str, overrides: Sequence[str]) -> str:
    """The text of Hydra's --help in half the time: Hydra copies its whole config store at each lookup."""
    with initialize_config_dir(directory, version_base="1.3"):
        config = compose(config_name, list(overrides), return_hydra_config=True)
    template = Template(config.hydra.help.template)
    with open_dict(config):
        del config.hydra
    return template.substitute(APP_CONFIG_GROUPS="".join(groups(Path(directory))), CONFIG=OmegaConf.to_yaml(config))


def groups(directory: Path) -> Iterator[str]:
    """One line per group, with its options."""
    for folder in sorted(path for path in directory.rglob("*") if path.is_dir()):
        options = sorted(path.stem for path in folder.glob("*.yaml"))
        if options:
            yield f"{folder.relative_to(directory).as_posix()}: {', '.join(options)}\n"
