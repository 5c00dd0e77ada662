"""The typed root: Lightning's names and defaults, wrong types refused, conf/ found."""

import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.steps import composed
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, ValidationError

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
    ("key", "value"),
    [
        ("seed", "abc"),
        ("trainer.max_epochs", "many"),
        ("trainer.max_epochs", 1.5),
        ("trainer.limit_val_batches", "half"),
        ("trainer.detect_anomaly", "maybe"),
        ("trainer.steps_per_execution", 1.5),
        ("trainer.strategy", None),
    ],
)
def test_a_wrong_type_is_refused(key: str, value: object):
    root = OmegaConf.structured(Config)
    with pytest.raises(ValidationError):
        OmegaConf.update(root, key, value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trainer.limit_val_batches", 0.5),
        ("trainer.limit_val_batches", 3),
        ("trainer.steps_per_execution", 8),
        ("trainer.max_time", "00:00:10:00"),
        ("trainer.max_time", {"minutes": 10}),
        ("trainer.devices", [0, 1]),
        ("trainer.deterministic", "warn"),
        ("trainer.precision", 16),
        ("model", {"anything": [1, "two"]}),
        ("resume", "outputs/run"),
    ],
)
def test_every_legal_kind_of_value_is_taken(key: str, value: object):
    root = OmegaConf.structured(Config)
    OmegaConf.update(root, key, value)
    assert OmegaConf.select(root, key) == value


def test_an_unknown_key_is_refused_at_the_root_and_in_the_trainer():
    for wrong in ({"sead": 1}, {"trainer": {"max_epoch": 3}}):
        with pytest.raises(ConfigKeyError):
            OmegaConf.merge(OmegaConf.structured(Config), wrong)


@pytest.mark.parametrize(("file", "schema"), [("train.yaml", Config), ("trainer/default.yaml", TrainerConfig)])
def test_every_key_is_in_sight_with_its_default_and_a_comment(file: str, schema: type):
    """Of the root, those that are groups stand in the defaults list."""
    written = OmegaConf.load(Path(config.conf_dir(), file))
    choices = {
        str(name).split("/")[0] for entry in written.pop("defaults", []) if OmegaConf.is_dict(entry) for name in entry
    }
    defaults = {field.name: field.default for field in dataclasses.fields(schema)}
    assert {key: value for key, value in defaults.items() if key in written} == written
    assert set(defaults) - set(written) <= choices


def test_a_data_file_is_about_data_and_what_fits_it_only():
    for file in Path(config.conf_dir(), "data").glob("*.yaml"):
        written = OmegaConf.to_container(OmegaConf.load(file))
        overrides = [name for entry in written.pop("defaults") if isinstance(entry, dict) for name in entry]
        allowed = {"/model/likelihood", "/optimizer/schedule", "/second_stage"}
        assert {name.removeprefix("override ") for name in overrides} <= allowed
        assert list(written) == ["data"]


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
        (["objective/capacity_schedule=cyclical"], "objective.capacity_schedule.period", 10000),
        (["optimizer/schedule=linear_warmup"], "optimizer.schedule.steps", 500),
        (["optimizer/schedule=cosine"], "optimizer.schedule.final", 0.0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_groups_compose_to(overrides: list[str], key: str, value: object):
    assert OmegaConf.select(composed(*overrides), key) == value


def test_register_puts_the_schema_in_the_store():
    config.register()
    node = ConfigStore.instance().load("schema.yaml").node
    assert OmegaConf.get_type(node) is Config
    assert node.optimized_metric == "val/elbo"


def test_conf_dir_is_beside_the_package_or_inside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert Path(config.conf_dir()) == Path(config.__file__).parents[2] / "conf"
    wheel = tmp_path / "vae_lab"
    (wheel / "conf").mkdir(parents=True)
    monkeypatch.setattr(config, "__file__", str(wheel / "config" / "schema.py"))
    assert config.conf_dir() == str(wheel / "conf")


def test_the_front_of_house_imports_neither_torch_nor_lightning():
    code = (
        "import sys, vae_lab.config.schema, vae_lab.config.validation, vae_lab.runs.cli, vae_lab.utils.signals;"
        "print({'torch', 'lightning', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
