"""vae_lab.export: what is written loads again, computes the same elsewhere, and runs no code."""

import json
import shutil

import pytest
import torch
from helpers.refusals import refused
from helpers.steps import model_of
from omegaconf import OmegaConf

from vae_lab import export, load
from vae_lab.core import ImageSpec
from vae_lab.inference import Lab
from vae_lab.utils.errors import UsageError

EXPORT = {"module": "vae_lab.export"}
SPEC = ImageSpec(1, 16, 16, num_classes=3)
ONE_LIKELIHOOD = ("evaluation.quality=null", "evaluation.representation=null", "evaluation.baseline=false",
                  "evaluation.cost=false", "evaluation.likelihood.num_samples=5")  # fmt: skip


@pytest.fixture
def run(fast_run, tmp_path):
    return shutil.copytree(fast_run.run, tmp_path / "run")


def test_an_export_loads_is_evaluated_and_computes_the_same_in_onnx(run, command, tmp_path):
    out = tmp_path / "model"
    done = command(str(run), "format=onnx", f"out={out}", **EXPORT)
    assert done.code == 0, done.stderr
    names = {"config.json", "weights.safetensors", "encoder.onnx", "decoder.onnx", "samples.png", "README.md"}
    assert names <= {path.name for path in out.iterdir()} and "decoder.onnx" in done.stdout
    card = (out / "README.md").read_text()
    assert "test/elbo" in card and "encoder.onnx" in card and "![Samples of the prior](samples.png)" in card
    assert str(tmp_path) not in card + (out / "config.json").read_text()
    content = json.loads((out / "config.json").read_text())
    assert content["weights"]["decoder.0.weight"][0] == "float32" and content["step"] == 6
    ours, theirs, x = load(run), load(out), torch.rand(3, 1, 28, 28)
    assert torch.equal(ours.reconstruct(x), theirs.reconstruct(x)) and repr(ours) == repr(theirs)
    for folder in (run, out):
        assert command(str(folder), *ONE_LIKELIHOOD, module="vae_lab.evaluate").code == 0
    numbers = [json.loads((folder / "evaluation.json").read_text())["likelihood"] for folder in (run, out)]
    assert numbers[0] == numbers[1]


def test_the_prior_that_is_sampled_from_is_the_one_that_is_exported(run, command):
    assert command(str(run), "second_stage=gaussian", module="vae_lab.fit_prior").code == 0
    assert command(str(run), **EXPORT).code == 0
    fitted, exported = load(run), load(run / "export")
    assert exported.fitted_prior == fitted.fitted_prior == "gaussian"
    samples = []
    for lab in (fitted, exported):
        torch.manual_seed(0)
        samples.append(lab.sample(4))
    assert torch.equal(*samples)
    with pytest.raises(UsageError, match="was exported with the fitted prior 'gaussian'"):
        load(run / "export", prior="trained")
    assert command(str(run), "prior=trained", "out=other", **EXPORT).code == 0
    assert load(run.parent / "other", prior="trained").fitted_prior is None


@pytest.mark.parametrize(
    "overrides",
    [
        ("model=conv", "model.conditional=true"),
        ("model=mlp", "model/posterior=full_covariance", "model/likelihood=continuous_bernoulli"),
        ("model=spatial", "model/posterior=nearest_code", "model/prior=uniform_codes"),
        ("model=resnet", "model/likelihood=logistic_mixture"),
    ],
)
def test_programs_agree_with_the_model(overrides, tmp_path):
    torch.manual_seed(0)
    lab = Lab(model_of(*overrides, image=SPEC), OmegaConf.create(), 0)
    assert export.programs(lab, tmp_path, "torch") == ["encoder.pt2", "decoder.pt2"]  # compares outputs
    encoder, inputs = export.parts(lab)["encoder"]
    read = export.runner(tmp_path / "encoder.pt2", "torch")
    torch.nn.init.constant_(next(encoder.parameters()), 1.0)
    with pytest.raises(UsageError, match="EncoderPart differs from the model by"):
        export.require_agreement(encoder, read, inputs)


def test_a_hierarchy_has_no_programs(tmp_path):
    lab = Lab(model_of("model=ladder", image=SPEC), OmegaConf.create(), 0)
    with pytest.raises(UsageError, match="several stochastic layers"):
        export.programs(lab, tmp_path, "onnx")


def test_wrong_requests(run, command, monkeypatch):
    refused(command(str(run), "format=pickle", **EXPORT), "format=pickle", "safetensors, onnx, torch")
    refused(command(str(run.parent), **EXPORT), "Not a run directory")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"safetensors is not installed\npip install 'vae_lab\[export\]'"):
        export.require_extra("export", "safetensors")


def test_a_damaged_or_hostile_export_is_refused(run, command):
    assert command(str(run), **EXPORT).code == 0
    out = run / "export"
    config, weights = (out / "config.json").read_text(), (out / "weights.safetensors").read_bytes()
    for text, data, words in (
        (config, weights[:-100], "cannot be read"),
        (config[:-100], weights, "cannot be read"),
        (config.replace('"format": 1', '"format": 2'), weights, "newer version"),
        (config.replace("vae_lab.models.VAE", "os.system"), weights, "os.system"),
        (config.replace('"latent_dim": 8', '"latent_dim": 9'), weights, "do not match"),
    ):
        (out / "config.json").write_text(text)
        (out / "weights.safetensors").write_bytes(data)
        with pytest.raises(UsageError, match=words):
            load(out)
