"""vae_lab.export push=owner/name, with a stand-in for the Hugging Face Hub: which files arrive, what is refused."""

import shutil

import pytest
from helpers.hub import local_hub
from helpers.refusals import refused

import vae_lab

pytest.importorskip("huggingface_hub")


@pytest.fixture
def export(fast_run, command, tmp_path):
    """`export("push=...", url)` runs vae_lab.export for a run, with a hub at this address."""
    run = shutil.copytree(fast_run.run, tmp_path / "run", ignore=shutil.ignore_patterns("tensorboard"))
    options = {"HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}

    def run_export(push, url, token="secret"):
        return command(str(run), push, "out=model", module="vae_lab.export", HF_ENDPOINT=url, HF_TOKEN=token, **options)

    return run_export


def test_the_files_of_an_export_arrive_and_no_others(export, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "diary.txt").write_text("private")
    with local_hub() as hub:
        done = export("push=me/digits", hub.url)
        assert done.code == 0, done.stderr
        assert hub.repositories == ["me/digits"] and f"{hub.url}/me/digits" in done.stdout
        names = {"config.json", "weights.safetensors", "reconstructions.png", "samples.png", "README.md"}
        assert hub.files == {name: (tmp_path / "model" / name).read_bytes() for name in names}
        assert len(hub.objects) == 1  # the weights, apart from the commit
    for name, data in hub.files.items():
        (downloaded := tmp_path / "downloaded").mkdir(exist_ok=True)
        (downloaded / name).write_bytes(data)
    assert repr(vae_lab.load(downloaded)) == repr(vae_lab.load(tmp_path / "run"))


def test_a_refusal_is_told_and_leaves_the_export(export, tmp_path):
    with local_hub() as hub:
        refused(export("push=digits", hub.url), "push=digits", "owner/name")
        assert not (tmp_path / "model").exists()
        url = hub.url
        cases = [("me/digits", "", "Invalid username or password"),
                 ("others/digits", "secret", "You don't have the rights")]  # fmt: skip
        for name, token, words in cases:
            refused(export(f"push={name}", url, token), f"push={name}", url, words, "hf auth login, or HF_TOKEN")
        assert hub.repositories == [] and hub.files == {}
    refused(export("push=me/digits", url), "push=me/digits", url, "onnection refused", "the export is in model")
    assert (tmp_path / "model" / "weights.safetensors").is_file()
