"""python -m vae_lab.export RUN: the model of a run as a folder for others, in formats that run no code."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from vae_lab.runs.cli import run_command
from vae_lab.runs.command_line import run_as_first_argument
from vae_lab.runs.resume import run_dir_of
from vae_lab.runs.sweep import require_single_run
from vae_lab.utils.errors import UsageError, require_extra
from vae_lab.utils.files import read_json

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vae_lab.inference import Lab
    from vae_lab.models.parts import DecoderPart, EncoderPart

FORMATS = ("safetensors", "onnx", "torch")
PICTURES = ("reconstructions.png", "samples.png")
TOLERANCE = 1e-5


def main() -> None:
    run_as_first_argument()
    run_command(export, config_name="export")


def export(config: DictConfig) -> None:
    require_single_run("export takes one run at a time")
    if config.format not in FORMATS:
        raise UsageError(f"format={config.format}: expected {', '.join(FORMATS)}")
    require_extra("export", "safetensors", *(("onnx", "onnxscript", "onnxruntime") if config.format == "onnx" else ()))
    if config.push is not None:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", config.push):
            raise UsageError(f"push={config.push}: expected owner/name")
        require_extra("hub", "huggingface_hub")
    from vae_lab.inference import load

    lab, run = load(config.run, config.checkpoint, config.trusted, config.prior), run_dir_of(config.run)
    folder = Path(config.out or run / "export")
    folder.mkdir(parents=True, exist_ok=True)
    files = write_files(lab, run, folder, config.format)
    print(f"{folder}: {', '.join(files)}")  # noqa: T201
    if config.push is not None:
        print(push(folder, config.push, files))  # noqa: T201


def write_files(lab: Lab, run: Path, folder: Path, format: str) -> list[str]:
    """Write the export, check that what is read equals what was written, and return the names of the files."""
    from vae_lab.metrics.card import model_card
    from vae_lab.runs.exported import CONFIG, WEIGHTS, Exported, read_export, require_same, write_export
    from vae_lab.runs.provenance import versions

    weights = dict(lab.model.state_dict())
    exported = Exported(portable(lab, run), lab.image, weights, lab.step, lab.fitted_prior)
    results = {name: read_json(run / f"{name}.json") for name in ("summary", "evaluation")}
    origin = {"versions": versions(), "metrics": results["summary"].get("metrics", {})}
    write_export(folder, exported, origin)
    require_same(read_export(folder, trusted=True), weights)
    files = [CONFIG, WEIGHTS]
    for name in PICTURES:
        if (picture := run / "images" / name).is_file():
            shutil.copyfile(picture, folder / name)
            files.append(name)
    if format != "safetensors":
        files += programs(lab, folder, format)
    title = f"{type(lab.model).__name__} of {lab.image.height}x{lab.image.width} images"
    card = model_card(title, f"`{lab!r}`", lab.image.shape, files, **results, conditional=lab.model.conditional)
    (folder / "README.md").write_text(card)
    return [*files, "README.md"]


def portable(lab: Lab, run: Path) -> DictConfig:
    """The config with the prior that the model samples from, and without the folders of this machine."""
    from copy import deepcopy

    from omegaconf import OmegaConf

    from vae_lab.runs.stored_config import MOVABLE
    from vae_lab.second_stage.storage import CONFIG, FOLDER

    config = deepcopy(lab.config)
    if lab.fitted_prior is not None:
        config.model.prior = OmegaConf.load(run / FOLDER / CONFIG).second_stage.prior
    for key in MOVABLE:
        name = key.rpartition(".")[2]
        if name in config.data and not OmegaConf.is_interpolation(config.data, name):
            config.data[name] = '${oc.env:VAE_LAB_DATA,"data"}' if name == "root" else ""
    config.resume = config.init_from = None
    return config


# --- programs that need no vae_lab ------------------------------------------------------------------------------


def programs(lab: Lab, folder: Path, format: str) -> list[str]:
    """Encoder and decoder as programs, checked against the model. UsageError: a model without a single latent."""
    import torch

    if lab.model.is_hierarchy:
        raise UsageError(
            f"format={format}: {type(lab.model).__name__} has several stochastic layers, and no single encoder and "
            "decoder\nuse format=safetensors"
        )
    batch = torch.export.Dim("batch", min=1)
    written = []
    for name, (part, inputs) in parts(lab).items():
        path = folder / f"{name}.{'onnx' if format == 'onnx' else 'pt2'}"
        shapes = tuple({0: batch} for _ in inputs(2))
        if format == "onnx":
            torch.onnx.export(part, inputs(2), path, dynamo=True, dynamic_shapes=shapes, external_data=False,
                              input_names=part.inputs, output_names=part.outputs, verbose=False)  # fmt: skip
        else:
            torch.export.save(torch.export.export(part, inputs(2), dynamic_shapes=shapes), path)
        require_agreement(part, runner(path, format), inputs)
        written.append(path.name)
    return written


def parts(lab: Lab) -> dict[str, tuple[EncoderPart | DecoderPart, Callable[[int], tuple[Tensor, ...]]]]:
    """Encoder and decoder as modules of tensors, and inputs for a batch of any size."""
    import torch

    from vae_lab.models.parts import DecoderPart, EncoderPart
    from vae_lab.second_stage.stage import require_single_layer

    model = require_single_layer(lab.model).cpu().to(memory_format=torch.contiguous_format)

    def labels(count: int) -> tuple[Tensor, ...]:
        return (torch.arange(count) % lab.image.num_classes,) if model.conditional else ()

    def images(count: int) -> tuple[Tensor, ...]:
        return (torch.rand(count, *lab.image.shape), *labels(count))

    def latents(count: int) -> tuple[Tensor, ...]:
        return (torch.randn(count, *model.latents[0].shape), *labels(count))

    return {"encoder": (EncoderPart(model).eval(), images), "decoder": (DecoderPart(model).eval(), latents)}


def runner(path: Path, format: str) -> Callable[[tuple[Tensor, ...]], list[Tensor]]:
    """What an exported program computes."""
    import torch

    if format == "torch":
        module = torch.export.load(path).module()
        return lambda inputs: list(module(*inputs))
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    return lambda inputs: [
        torch.from_numpy(value)
        for value in session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
    ]


def require_agreement(part: nn.Module, run: Callable[[tuple[Tensor, ...]], list[Tensor]], inputs: Any) -> None:
    """UsageError: a program differs from the model by more than 1e-5, for batches of 1 and 5."""
    import torch

    for count in (1, 5):
        given = inputs(count)
        with torch.no_grad():
            expected = part(*given)
        for mine, theirs in zip(expected, run(given), strict=True):
            error = float((mine - theirs).abs().max() / mine.abs().max().clamp(min=1))
            if not error <= TOLERANCE:
                raise UsageError(
                    f"the exported {type(part).__name__} differs from the model by {error:.1e}\nuse format=safetensors"
                )


def push(folder: Path, name: str, files: Sequence[str]) -> str:
    """Upload these files of a folder to the Hugging Face Hub as owner/name; returns its address.

    UsageError: it cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        url = api.create_repo(name, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=name, allow_patterns=[*files])
    except Exception as error:  # of its HTTP library, which differs by version: no OSError
        reason = (getattr(error, "server_message", None) or str(error)).strip().partition("\n")[0]
        raise UsageError(
            f"push={name}: {api.endpoint}: {reason}\nthe export is in {folder}; pushing needs a token that may write "
            "there (hf auth login, or HF_TOKEN)"
        ) from error
    return str(url)


if __name__ == "__main__":
    main()
