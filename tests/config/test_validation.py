"""Targets and their arguments: every mistake is found before anything is built, and its key is named."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

import pytest
from omegaconf import OmegaConf

from vae_lab.config.schema import Config, TrainerConfig
from vae_lab.config.validation import check_targets
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
        partial=node("Encoder", _partial_=True),
    )


def an_encoder(**values: Any) -> dict[str, Any]:
    return {"encoder": node("Encoder", in_features=1) | values}


@pytest.mark.parametrize(
    ("config", "start", "words"),
    [
        ({"model": a_model(**an_encoder(hiden=[1]))}, "model.encoder.hiden:",
         ["did you mean model.encoder.hidden?", "expected one of: in_features, hidden, activation"]),
        ({"steps": [node("anything", size=1), node("Encoder", in_featurse=1)]}, "steps[1].in_featurse", []),
        ({"model": a_model(parts={"a": node("Likelihood", scale=1, knd="fixed")})}, "model.parts.a.knd", []),
        ({"optimizer": node("optimizer", params=1, momentun=0.9)}, "optimizer.momentun",
         ["did you mean optimizer.momentum?"]),
        ({"optimizer": node("optimizer", params=1, momentum="high")}, "optimizer.momentum", ["expected a number"]),
        ({"encoder": node("Encoder")}, "encoder:", ["needs 'in_features'", "set encoder.in_features=..."]),
        ({"model": a_model(latent_dim="two")}, "model.latent_dim: found 'two' (str), expected an integer", []),
        ({"model": a_model(latent_dim=2.5)}, "model.latent_dim: found 2.5 (float), expected an integer", []),
        ({"model": a_model(latent_dim=True)}, "model.latent_dim: found True (bool), expected an integer", []),
        ({"model": a_model(latent_dim=None)}, "model.latent_dim: found None (NoneType), expected an integer", []),
        ({"model": a_model(conditional=1)}, "model.conditional: found 1 (int), expected true or false", []),
        ({"model": a_model(encoder="mlp")}, "model.encoder: found 'mlp' (str), expected Callable", []),
        ({"optimizer": node("optimizer", params=1, betas=[0.9])}, "optimizer.betas: found [0.9]", []),
        (an_encoder(hidden=[4, "x"]), "encoder.hidden: found [4, 'x']", []),
        ({"likelihood": node("Likelihood", scale=1, kind="learnd")}, "likelihood.kind: found 'learnd'",
         ["expected one of 'fixed', 'learned', or null", "did you mean likelihood.kind=learned?"]),
        ({"model": {"encoder": node("Encodr")}}, "model.encoder._target_:", [f"did you mean {HERE}.Encoder?"]),
        ({"a": {"_target_": "vae_lab.validaton.check"}}, "a._target_:", ["No module named 'vae_lab.validaton'"]),
        ({"a": {"_target_": "vae_lap.models.VAE"}}, "a._target_:", ["does not exist, No module named 'vae_lap'"]),
        ({"callbacks": {"images": {"every": 3}}}, "callbacks.images: options of a part",
         ["remove them: ~callbacks.images"]),
        ({"a": {"_target_": f"{HERE}.HERE"}}, "a._target_:", ["expected a class or a function"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_mistake_is_shown_with_its_key_and_what_is_expected(config: dict, start: str, words: list[str]):
    text = message(**config)
    assert text.startswith(start)
    assert [word for word in words if word not in text] == []


def test_an_import_error_inside_a_module_is_told(tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("import a_package_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    assert "No module named 'a_package_that_is_not_there'" in message(a={"_target_": "broken_module.Thing"})


def test_a_key_added_to_a_typed_node_is_refused_though_its_target_takes_any():
    config = OmegaConf.structured(Config(trainer=TrainerConfig(_target_=f"{HERE}.anything")))
    OmegaConf.update(config, "trainer.max_epoch", 3, force_add=True)
    with pytest.raises(UsageError, match=r"trainer\.max_epoch(.|\n)*did you mean trainer\.max_epochs\?"):
        check_targets(config)
