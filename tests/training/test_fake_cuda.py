"""Every experiment as a GPU would see it: no tensor stays behind on the CPU, nothing is read back within a step.

Fake tensors have a device and a shape but no memory, so this needs no GPU; their kernels refuse two devices and
`.item()`. Autograd wants a real device, so the backward pass is left out.
"""

from contextlib import suppress
from pathlib import Path

import pytest
import torch
from helpers.steps import composed
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vae_lab.config.schema import conf_dir
from vae_lab.core import ImageSpec
from vae_lab.metrics.importance import importance_bound
from vae_lab.models.base import parts_without_density
from vae_lab.training.build import build_module, build_node

CUDA = torch.device("cuda", 0)
EXPERIMENTS = sorted(path.stem for path in Path(conf_dir(), "experiment").glob("*.yaml"))


def move(module: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """The module with fake parameters and buffers on a GPU; `Module.to` would need one."""

    def fake(tensor):
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=CUDA)

    with mode:
        for part in module.modules():
            for name, weight in part._parameters.items():
                if weight is not None:
                    part._parameters[name] = nn.Parameter(fake(weight), weight.requires_grad)
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = fake(buffer)
    return module


def built(name: str, mode: FakeTensorMode):
    config = composed(f"experiment={name}")
    data = build_node(config.data)
    colour = data.source.options.channels == 3 if hasattr(data.source, "options") else False
    size = 128 if colour else 28
    levels = 256 if data.preprocess.binarize == "none" else 2
    image = ImageSpec(3 if colour else 1, size, size, levels, 0 if colour else 10)
    module = build_module(config, data, image, 1000, build_node(config.optimizer))
    return move(module, mode), data.preprocess


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_it_stays_on_the_gpu(name, monkeypatch):
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)  # autocast without a GPU
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    mode = FakeTensorMode()
    module, preprocess = built(name, mode)
    model, objective = module.model, module.objective
    with mode:
        images = torch.zeros(4, *model.image.shape, dtype=torch.uint8, device=CUDA)
        y = torch.zeros(4, dtype=torch.long, device=CUDA) if model.conditional else None
        x = preprocess.train(images)
        for step, bf16 in enumerate((False, True)):
            with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
                trace = model(preprocess.corrupt(x), objective.num_samples, y)
                inputs = model.regularizer_inputs(trace, x, y)
                losses, _ = objective(inputs, objective.terms(trace, x), objective.weights_at(step, 10))
                objective.discriminator_loss(inputs)
            assert losses.device == CUDA and losses.dtype == torch.float32
        module.eval()
        with torch.no_grad():
            with suppress(NotImplementedError):  # a flat prior
                assert model.sample(4, y).mean.device == CUDA
            assert model.reconstruct(x, y).mean.device == CUDA
            if not parts_without_density(model):
                assert importance_bound(model, x, 4, y=y).device == CUDA
