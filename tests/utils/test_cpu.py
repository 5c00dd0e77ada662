"""How the process uses the machine: threads, memory, the faster of two libraries for a linear layer."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from vae_lab.networks import linear
from vae_lab.networks.linear import Linear
from vae_lab.training.trainer import build_trainer
from vae_lab.utils import cpu

ON_A_CPU = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


@pytest.mark.parametrize(
    ("cores", "processes", "asked", "threads"),
    [(8, 1, None, 8), (8, 2, None, 4), (2, 4, None, 1), (8, 1, "3", 3), (8, 2, "6", 4), (8, 1, "4,2", 4),
     (8, 1, "0", 8), (8, 1, "many", 8)],
)  # fmt: skip
def test_threads_are_the_cores_shared_by_processes_and_at_most_what_was_asked(
    monkeypatch, cores, processes, asked, threads
):
    monkeypatch.setattr(cpu, "num_cores", lambda: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert cpu.num_threads(processes) == threads


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="affinity is Linux's")
def test_cores_follow_the_affinity_of_the_process():
    code = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]);"
        "from vae_lab.utils.cpu import num_cores; print(num_cores())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.strip() == b"1"


@pytest.mark.parametrize(("asked", "expected"), [(2, 2), (1, 1), (None, 3)])
def test_a_run_takes_the_threads_it_is_given(monkeypatch, asked, expected):
    monkeypatch.setattr(cpu, "num_threads", lambda processes: 3)
    monkeypatch.setattr(cpu, "keep_freed_memory", lambda: True)
    before = torch.get_num_threads()
    try:
        build_trainer(accelerator="cpu", num_threads=asked)
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_kept_for_the_next_step():
    """Page faults of allocating and freeing 64 MB again and again: always by default, none once the heap has grown."""
    code = (
        "import resource, sys, torch\n"
        "from vae_lab.utils.cpu import keep_freed_memory\n"
        "assert sys.argv[1] == 'no' or keep_freed_memory()\n"
        "torch.set_num_threads(1)\n"
        "for _ in range(20): torch.empty(2**24).fill_(1)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(20): torch.empty(2**24).fill_(1)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    faults = [
        int(subprocess.run([sys.executable, "-c", code, kept], capture_output=True, check=True).stdout)
        for kept in ("no", "yes")
    ]
    assert faults[0] >= 20 and faults[1] < 20, faults


# --- linear -----------------------------------------------------------------------------------------------


def gradients(layer, x, weights):
    """Output and gradients of a weighted sum of the outputs."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    output = layer(x)
    (output * weights).sum().backward()
    return output.detach(), x.grad, layer.weight.grad.clone(), layer.bias.grad.clone()


@ON_A_CPU
@pytest.mark.parametrize("shape", [(128, 784, 400), (500, 400, 784), (64, 4096, 64)])
def test_a_linear_layer_by_onednn_is_torchs_to_rounding(monkeypatch, shape):
    monkeypatch.setattr(linear, "is_amd", lambda: True)
    torch.manual_seed(0)
    batch, inside, outside = shape
    ours = Linear(inside, outside)
    theirs = nn.Linear(inside, outside)
    theirs.load_state_dict(ours.state_dict())
    x, weights = torch.randn(batch, inside), torch.randn(batch, outside)
    assert ours._by_onednn(x)
    for mine, other in zip(gradients(ours, x, weights), gradients(theirs, x, weights), strict=True):
        assert_close(mine, other, rtol=1e-4, atol=1e-3)


@ON_A_CPU
def test_a_second_derivative_is_an_error_and_not_a_wrong_number(monkeypatch):
    monkeypatch.setattr(linear, "is_amd", lambda: True)
    layer, x = Linear(784, 400), torch.rand(128, 784, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_what_torch_func_transforms_is_torchs_own(monkeypatch):
    monkeypatch.setattr(linear, "is_amd", lambda: True)
    monkeypatch.setattr(linear, "MIN_MULTIPLICATIONS", 0)
    layer, x = linear.Linear(3, 2), torch.randn(4, 3)
    jacobian = torch.func.jacrev(layer)(x)
    assert_close(jacobian[1, :, 1], layer.weight.detach())
    with torch.autograd.forward_ad.dual_level():
        tangent = torch.autograd.forward_ad.unpack_dual(layer(torch.autograd.forward_ad.make_dual(x, x))).tangent
    assert_close(tangent, x @ layer.weight.T)


@ON_A_CPU
def test_frozen_weights_get_no_gradient(monkeypatch):
    monkeypatch.setattr(linear, "is_amd", lambda: True)
    layer, x = Linear(784, 400).requires_grad_(False), torch.rand(128, 784, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is None and layer.bias.grad is None
    assert_close(x.grad, layer.weight.sum(0).expand(128, -1), rtol=1e-4, atol=1e-4)


@ON_A_CPU
def test_where_onednn_does_not_fit_the_layer_is_torchs_own(monkeypatch):
    layer, large = Linear(784, 400), torch.rand(128, 784)
    monkeypatch.setattr(linear, "is_amd", lambda: False)
    assert not layer._by_onednn(large)
    monkeypatch.setattr(linear, "is_amd", lambda: True)
    assert layer._by_onednn(large)
    assert not layer._by_onednn(large[:2])  # too small to be worth it
    assert not layer._by_onednn(large[None])
    assert not layer.double()._by_onednn(large.double())
    layer = layer.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert not layer._by_onednn(large)
        assert layer(large).dtype == torch.bfloat16
    with torch.backends.mkldnn.flags(enabled=False):
        assert not layer._by_onednn(large)
    assert_close(torch.jit.trace(layer, large, check_trace=False)(large), layer(large), rtol=1e-4, atol=1e-4)
    assert torch.equal(layer(large[:2]), nn.functional.linear(large[:2], layer.weight, layer.bias))
