"""The documentation: its commands compose, its methods are all of them, its versions are one."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from vae_lab.config.schema import conf_dir
from vae_lab.config.validation import check_targets
from vae_lab.runs.cli import compose_config
from vae_lab.runs.command_line import hydra_words, split_flags
from vae_lab.runs.search.space import parse_space
from vae_lab.search import search_words
from vae_lab.utils.errors import UsageError

ROOT = Path(__file__).parents[1]
# Parts of the reader's own are no groups here: another test tries that page in a project beside the package.
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if page.stem != "your_own_parts"]
COMMAND = re.compile(r"(?<!\$ )python -m vae_lab\.(\w+)(?![\w.])([^\n;&|]*)")  # "$ " shows what a wrong one answers
OWN_NAME = re.compile(r"=\[?my_|--config-dir|-cd\b")  # files that the reader has written


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """The command and the words of each line that can be pasted; in a sentence, code may go on in the next line."""
    text = re.sub(r"(?<!`)`(?!`)([^`]+)`", lambda code: code[1].replace("\n", " ") + "\n", text)
    for name, words in COMMAND.findall(text):
        if not OWN_NAME.search(words):
            balanced = words if words.count("'") % 2 == 0 else words.replace("'", "")
            yield name, shlex.split(balanced, comments=True)


def first_of_each_sweep(overrides: list[str]) -> list[str]:
    """seed=1,2 as seed=1; a launcher must have a file, and its settings are left to its plugin."""
    found = []
    for override in OverridesParser.create().parse_overrides(hydra_words(overrides, conf_dir())):
        if override.key_or_group == "hydra/launcher":
            assert (ROOT / f"conf/hydra/launcher/{override.value()}.yaml").is_file(), override.input_line
        elif override.is_sweep_override():
            found.append(f"{override.get_key_element()}={next(override.sweep_string_iterator())}")
        elif not override.key_or_group.startswith("hydra"):
            found.append(override.input_line)
    return found


def overrides_of(name: str, words: list[str]) -> tuple[str, list[str]]:
    """The config that a command composes, with the first of several choices."""
    overrides, _ = split_flags(words)
    runs = ",".join(word for word in overrides if "=" not in word)
    others = [word for word in overrides if "=" in word]
    if name == "search":
        search = compose_config("search", search_words(overrides)).search
        is_default = not any(word.startswith("search=") for word in words)
        return "train", parse_space(search.space, search.overrides, is_default).example()
    given = [f"runs=[{runs}]" if name == "report" else f"run={runs}"] if runs else []
    return name, first_of_each_sweep([*given, *others])


def is_group(override: str) -> bool:
    return (Path(conf_dir()) / override.lstrip("+~").partition("=")[0]).is_dir()


def merged(pages: list[Path]) -> list[tuple[str, dict[str, str], dict[str, str]]]:
    """Commands that agree in the groups they have in common, as one: its name, its groups and its other overrides.

    Composing takes 0.2 s. Experiments alone are left out: tests/test_experiments.py composes them.
    """
    found: list[tuple[str, dict[str, str], dict[str, str]]] = []
    for page in pages:
        for command in commands(page.read_text()):
            name, overrides = overrides_of(*command)
            by_key = {override.partition("=")[0]: override for override in overrides}
            groups = {key: override for key, override in by_key.items() if is_group(override)}
            keys = {key: override for key, override in by_key.items() if key not in groups}
            if not by_key or [*by_key] == ["experiment"]:
                continue
            for other, chosen, options in found:
                same = {key for key in groups if chosen.get(key, groups[key]) == groups[key]} == {*groups}
                if other == name and same and ("experiment" in groups) == ("experiment" in chosen):
                    chosen.update(groups)
                    options.update(keys)
                    break
            else:
                found.append((name, groups, keys))
    return found


def test_every_command_that_can_be_pasted_composes():
    wrong = []
    for name, groups, keys in merged(PAGES):
        words = [*groups.values(), *keys.values()]
        try:
            check_targets(compose_config(name, words))
        except UsageError as error:
            wrong.append(f"python -m vae_lab.{name} {' '.join(words)}\n{error}")
    assert not wrong, "\n\n".join(wrong)


def test_a_command_is_read_as_a_shell_reads_it():
    text = "`python -m vae_lab.train\nmodel=mlp` and\n    python -m vae_lab.train -m seed=1,2  # two\n"
    text += "$ python -m vae_lab.train x=1\n"
    assert list(commands(text)) == [("train", ["model=mlp"]), ("train", ["-m", "seed=1,2"])]
    assert first_of_each_sweep(["seed=1,2", "model=mlp,conv", "data.shape=[3,2]", "hydra/launcher=joblib"]) == [
        "seed=1", "model=mlp", "data.shape=[3,2]",
    ]  # fmt: skip


def test_every_experiment_has_its_place_among_the_methods():
    files = {path.stem for path in (ROOT / "conf/experiment").glob("*.yaml")}
    shown = re.findall(
        r"```\{experiment\}\npython -m vae_lab.train experiment=(\w+)", (ROOT / "docs/methods.md").read_text()
    )
    assert sorted(shown) == sorted(files)
    pictures = {path.stem for path in (ROOT / "docs/images/methods").glob("*.png")}
    assert pictures == {name for name in files if not name.startswith(("replica_", "pokemon"))}


def test_the_version_is_the_same_everywhere():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\n## {version} (" in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
