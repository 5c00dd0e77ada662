"""The words of a command line, from those that a user types to those that Hydra's parsers take."""

import re
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString

from vae_lab.runs.search_path import require_own_names
from vae_lab.runs.stored_config import CHANGED, MOVABLE

PATHS = (
    *(*MOVABLE, "data.labels", "resume", "init_from", "run", "sweep", "out", "sweep.resume", "search.dir"),
    *("hydra.run.dir", "hydra.sweep.dir"),
)
LOCAL_LAUNCHER, BATCH_SIZE = "hydra/launcher=submitit_local", "hydra.sweeper.max_batch_size"
FLAGS_WITH_VALUE = (
    *("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"),
    *("--info", "-i", "--experimental-rerun"),
)


def run_as_first_argument() -> None:
    """Accept the run directory as the first argument: RUN for run=RUN."""
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-") and ("=" not in sys.argv[1] or Path(sys.argv[1]).exists()):
        sys.argv[1] = f"run={sys.argv[1]}"
        if others := [word for word in sys.argv[2:] if Path(word, ".hydra").is_dir()]:
            sys.stderr.write(f"error: {others[0]}: expected one run\n  give the others to commands of their own\n")
            sys.exit(2)


def runs_as_arguments() -> None:
    """Accept run directories as arguments, A B C for runs=[A,B,C]."""
    overrides, flags = split_flags(sys.argv[1:])
    if runs := [word for word in overrides if "=" not in word or Path(word).exists()]:
        quoted = ",".join(QuotedString(word, Quote.single).with_quotes() for word in runs)
        sys.argv[1:] = [f"runs=[{quoted}]", *(word for word in overrides if word not in runs), *flags]


def split_flags(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overrides of a command line, and its flags, with their values behind them."""
    overrides, flags = list[str](), list[str]()
    rest = iter(words)
    for word in rest:
        if word.startswith("-"):
            flags += [word, *islice(rest, 1)] if word in FLAGS_WITH_VALUE else [word]
        else:
            overrides.append(word)
    return overrides, flags


def hydra_words(words: Sequence[str], directory: str) -> list[str]:
    """The command line as Hydra's parsers take it: flags behind the overrides, paths in quotes."""
    overrides, flags = split_flags(words)
    require_own_names(overrides, flags, directory)
    is_sweep = bool({"-m", "--multirun"} & {*flags})
    resumes = any(re.match(r"resume=(?!auto$)", it) for it in overrides)
    if LOCAL_LAUNCHER in overrides and not any(word.startswith(BATCH_SIZE) for word in overrides):
        overrides.insert(0, f"{BATCH_SIZE}=${{jobs_at_once:}}")  # it would start all jobs at the same time
    return [*(_hydra_word(word, directory, is_sweep, resumes) for word in overrides), *flags]


def _hydra_word(word: str, directory: str, is_sweep: bool, resumes: bool) -> str:
    """A quoted path; GROUP=[] for GROUP=null, which Hydra refuses on the command line but not in a file.

    With `resume`, the config composed first need not have the folder that moved.
    """
    key, equals, value = word.partition("=")
    if value == "null" and key and Path(directory, key).is_dir():
        return f"{key}=[]"
    if key == "hydra/launcher" and Path(directory, f"{key}/vae_lab_{value}.yaml").is_file():
        return f"{key}=vae_lab_{value}"  # the plugin's launcher with settings of ours
    if resumes and key in (*MOVABLE, CHANGED):
        key = f"++{key}"
    if equals and key.lstrip("+") in PATHS and not re.fullmatch(r"[\w./:-]*|'.*'|\".*\"|.*\$\{.*", value, re.ASCII):
        path = str(Path(value).expanduser()) if value.startswith("~") else value
        value = value if is_sweep and "," in value else QuotedString(path, Quote.single).with_quotes()
    return f"{key}{equals}{value}"
