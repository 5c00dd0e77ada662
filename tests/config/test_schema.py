"""The typed root: Lightning's names and defaults, wrong types refused, conf/ found."""

import dataclasses
import inspect
from pathlib import Path

import pytest
from helpers.steps import composed
from omegaconf import OmegaConf
from omegaconf.errors import ValidationError

from vae_lab.config import schema as config
from vae_lab.config.schema import Config, TrainerConfig

OURS = {"_target_", "steps_per_execution", "num_threads", "keep_freed_memory", "channels_last", "compile",
        "cuda_graphs", "on_nonfinite", "matmul_precision"}  # fmt: skip
OUR_DEFAULTS = {"num_sanity_val_steps": 0, "precision": "32-true"}  # Lightning says None for "32-true"


def test_trainer_options_have_lightnings_names_and_defaults():
    lightning = pytest.importorskip("lightning.pytorch")
    theirs = inspect.signature(lightning.Trainer.__init__).parameters
    for field in dataclasses.fields(TrainerConfig):
        if field.name not in OURS:
            expected = OUR_DEFAULTS.get(field.name, theirs[field.name].default)
            assert field.default == expected, field.name


@pytest.mark.parametrize(
    ("key", "value", "legal"),
    [
        ("seed", "abc", False),
        ("trainer.max_epochs", "many", False),
        ("trainer.max_epochs", 1.5, False),
        ("trainer.limit_val_batches", "half", False),
        ("trainer.limit_val_batches", 0.5, True),
        ("trainer.limit_val_batches", 3, True),
        ("trainer.steps_per_execution", 1.5, False),
        ("trainer.steps_per_execution", 8, True),
        ("trainer.max_time", {"minutes": 10}, True),
        ("trainer.devices", [0, 1], True),
        ("trainer.deterministic", "warn", True),
        ("model", {"anything": [1, "two"]}, True),
    ],
)
def test_types_of_the_root_and_of_the_trainer(key: str, value: object, legal: bool):
    root = OmegaConf.structured(Config)
    if legal:
        OmegaConf.update(root, key, value)
        assert OmegaConf.select(root, key) == value
        return
    with pytest.raises(ValidationError):
        OmegaConf.update(root, key, value)


@pytest.mark.parametrize(("file", "schema"), [("train.yaml", Config), ("trainer/default.yaml", TrainerConfig)])
def test_every_key_is_in_sight_with_its_default_and_a_comment(file: str, schema: type):
    """Of the root, those that are groups stand in the defaults list."""
    written = OmegaConf.load(Path(config.conf_dir(), file))
    choices = {
        str(name).split("/")[0] for entry in written.pop("defaults", []) if OmegaConf.is_dict(entry) for name in entry
    }
    defaults = OmegaConf.to_container(OmegaConf.structured(schema))
    assert {key: value for key, value in defaults.items() if key in written} == written
    assert set(defaults) - set(written) <= choices


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["data=mnist"], "trainer.max_epochs", 20),
        (["experiment=vae", "data=digits"], "trainer.max_epochs", 120),
        (["model=conv", "data=pokemon"], "callbacks.images.num_pairs", 4),
        (["model=conv", "model.latent_dim=3"], "model.latent_dim", 3),
        (["experiment=geco", "objective/constraint=[]"], "objective.constraint", None),
        (["experiment=dae", "data/corruption=[]"], "data.corruption", None),
        (["experiment=two_stage", "second_stage=[]"], "second_stage", None),
        (["experiment=wae_mmd", "objective/regularizers=[]"], "objective.regularizers", {}),
        (["logger=[]"], "logger", None),
        (["objective/beta_schedule=linear_warmup"], "objective.beta_schedule.steps", 5000),
        (["optimizer/schedule=cosine"], "optimizer.schedule.final", 0.0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_groups_compose_to(overrides: list[str], key: str, value: object):
    assert OmegaConf.select(composed(*overrides), key) == value
