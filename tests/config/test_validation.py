"""Targets and their arguments: every mistake is found before anything is built, and its key is named."""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from vae_lab.config.schema import Config, TrainerConfig
from vae_lab.config.validation import _edits, check_targets, nearest_name
from vae_lab.utils.errors import UsageError

if TYPE_CHECKING:
    from fractions import Fraction

HERE = __name__


class Encoder:
    def __init__(self, in_features: int, hidden: Sequence[int] = (400,), activation: str = "relu"):
        raise AssertionError("a check builds nothing")


class Deeper(Encoder):
    pass


class Options(TypedDict, total=False):
    momentum: float
    nesterov: bool


@dataclass
class Likelihood:
    scale: float
    kind: Literal["fixed", "learned"] | None = "fixed"


def optimizer(params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), **more: Unpack[Options]):
    """A function with an open end of known names."""


def anything(size: int, **kwargs: Any):
    """Takes every name."""


def model(
    encoder: Callable[..., Encoder],
    likelihood: Likelihood,
    latent_dim: int,
    exact: "Fraction | None" = None,
    bits: int = None,  # noqa: RUF013 - as older libraries write it
    parts: Mapping[str, Likelihood] | None = None,
    conditional: bool = False,
):
    """A parent of other nodes; `exact` cannot be resolved while it runs."""


def node(name: str, **values: Any) -> dict[str, Any]:
    return {"_target_": f"{HERE}.{name}", **values}


def a_model(**values: Any) -> dict[str, Any]:
    encoder = node("Encoder", _partial_=True, hidden=[400, 200])
    return node("model", encoder=encoder, likelihood=node("Likelihood", scale=1), latent_dim=2) | values


def check(**config: Any) -> None:
    check_targets(OmegaConf.create(config))


def message(**config: Any) -> str:
    with pytest.raises(UsageError) as caught:
        check(**config)
    return str(caught.value)


def test_what_can_be_built_passes():
    check(
        model=a_model(exact="1/3", bits=None, parts={"a": node("Likelihood", scale=0.5, kind=None)}),
        optimizer=node("optimizer", _partial_=True, lr=1, betas=[0.9, 1], momentum=0.9),
        logger=[node("anything", size=3, whatever="x")],
        positional=node("Encoder", _args_=[784]),
        builtin={"_target_": "builtins.dict", "a": 1},
        kept=node("Deeper", in_features=1, _recursive_=False, _convert_="all"),
    )


def test_an_unknown_key_is_named_whole_with_the_nearest_right_one_and_all_of_them():
    text = message(model=a_model(encoder=node("Encoder", _partial_=True, hiden=[1])))
    assert text.startswith("model.encoder.hiden:")
    assert "did you mean model.encoder.hidden?" in text
    assert "in_features, hidden, activation" in text


def test_keys_inside_lists_and_mappings_are_found():
    assert message(steps=[node("anything", size=1), node("Encoder", in_featurse=1)]).startswith("steps[1].in_featurse")
    text = message(model=a_model(parts={"a": node("Likelihood", scale=1, knd="fixed")}))
    assert text.startswith("model.parts.a.knd")


def test_the_keys_of_an_unpacked_typed_dict_are_known_and_typed():
    assert "optimizer.momentum" in message(optimizer=node("optimizer", params=1, momentun=0.9))
    assert "expected float" in message(optimizer=node("optimizer", params=1, momentum="high"))


def test_a_missing_argument_is_an_error_unless_the_parent_completes_it():
    assert "needs 'in_features'" in message(encoder=node("Encoder"))
    check(encoder=node("Encoder", _partial_=True))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"latent_dim": "two"}, "model.latent_dim: found 'two' (str), expected int"),
        ({"latent_dim": 2.5}, "model.latent_dim: found 2.5 (float), expected int"),
        ({"latent_dim": True}, "model.latent_dim: found True (bool), expected int"),
        ({"latent_dim": None}, "model.latent_dim: found None (NoneType), expected int"),
        ({"conditional": 1}, "model.conditional: found 1 (int), expected bool"),
        ({"encoder": "mlp"}, "model.encoder: found 'mlp' (str), expected Callable"),
    ],
)
def test_a_wrong_type_is_shown_beside_the_right_one(values: dict[str, Any], expected: str):
    assert message(model=a_model(**values)).startswith(expected)


def test_lists_stand_for_sequences_and_tuples_of_the_right_items_only():
    assert "optimizer.betas" in message(optimizer=node("optimizer", params=1, betas=[0.9]))
    assert "encoder.hidden" in message(encoder=node("Encoder", in_features=1, hidden=[4, "x"]))


def test_a_wrong_choice_names_the_choices_and_the_nearest():
    text = message(likelihood=node("Likelihood", scale=1, kind="learnd"))
    assert "expected one of 'fixed', 'learned'" in text
    assert "did you mean likelihood.kind=learned?" in text


def test_a_target_that_does_not_exist_names_the_nearest():
    text = message(model={"encoder": node("Encodr")})
    assert text.startswith("model.encoder._target_:")
    assert f"did you mean {HERE}.Encoder?" in text
    assert "did you mean vae_lab.config.validation?" in message(a={"_target_": "vae_lab.config.validate.check_targets"})
    assert "no module named 'vae_lap'" in message(a={"_target_": "vae_lap.models.VAE"})
    assert "expected a class or a function" in message(a={"_target_": f"{HERE}.HERE"})


def test_an_import_error_inside_a_module_is_not_taken_for_a_wrong_name(tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("import a_package_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        check(a={"_target_": "broken_module.Thing"})


def test_a_key_added_to_a_typed_node_is_refused_though_its_target_takes_any():
    config = OmegaConf.structured(Config(trainer=TrainerConfig(_target_=f"{HERE}.anything")))
    OmegaConf.update(config, "trainer.max_epoch", 3, force_add=True)
    with pytest.raises(UsageError, match=r"trainer\.max_epoch(.|\n)*did you mean trainer\.max_epochs\?"):
        check_targets(config)


def test_a_wrapped_function_is_checked_by_its_own_types():
    wrapped = functools.wraps(anything)(lambda *args, **kwargs: None)
    sys.modules[HERE].wrapped = wrapped
    assert "a.size" in message(a=node("wrapped", size="x"))


KEYS = sorted(TrainerConfig.__dataclass_fields__)
LETTERS = st.sampled_from("abcdefghijklmnopqrstuvwxyz_")


@st.composite
def misspelt(draw: st.DrawFn) -> tuple[str, str]:
    """A key and the same key after one edit: a letter more, less, another, or two swapped."""
    key = draw(st.sampled_from(KEYS))
    at = draw(st.integers(0, len(key) - 2))
    letter = draw(LETTERS)
    edits = [
        key[:at] + letter + key[at:],
        key[:at] + key[at + 1 :],
        key[:at] + letter + key[at + 1 :],
        key[:at] + key[at + 1] + key[at] + key[at + 2 :],
    ]
    return key, draw(st.sampled_from(edits))


@given(misspelt())
def test_one_edit_is_repaired_to_the_right_key_or_one_as_near(pair: tuple[str, str]):
    key, word = pair
    found = nearest_name(word, KEYS)
    assert found is not None
    assert found == key or _edits(word, found) <= _edits(word, key) <= 1


@given(st.text("ab", max_size=5), st.text("ab", max_size=5))
def test_the_number_of_edits_is_a_distance(a: str, b: str):
    assert _edits(a, b) == _edits(b, a)
    assert (_edits(a, b) == 0) == (a == b)
    assert abs(len(a) - len(b)) <= _edits(a, b) <= max(len(a), len(b))


def test_nothing_is_suggested_for_a_stranger():
    assert nearest_name("zebra", KEYS) is None
    assert nearest_name("hidden", ["hidden_sizes", "out"]) == "hidden_sizes"
    assert nearest_name("anything", []) is None
