"""Size and speed of a model, and how well a score tells two sets apart."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vae_lab.metrics.subject import Row, Subject, left_out


@torch.inference_mode()
def cost_rows(subject: Subject, seconds: float = 1.0) -> Iterator[Row]:
    """`parameters`; `multiply_adds` of one image through encoder and decoder; images per second of a pass through
    both, `reconstructions_per_second`, and of `samples_per_second`: measured, so they differ from run to run."""
    model, device = subject.model, subject.device
    yield Row("parameters", float(sum(p.numel() for p in model.parameters())))
    x, y = next(subject.blocks(None, "cost"))
    labels = subject.labels(y)
    with FlopCounterMode(display=False) as counter:
        model(x[:1], 1, None if labels is None else labels[:1])
    yield Row("multiply_adds", counter.get_total_flops() / 2, protocol={"for": "one image, encoded and decoded"})
    protocol = {"batch": len(x), "device": str(device), "threads": torch.get_num_threads(), "measured": True}
    yield Row(
        "reconstructions_per_second",
        len(x) * rate(lambda: model.reconstruct(x, labels).mean, seconds, device),
        protocol=protocol,
    )
    try:
        per_second = rate(lambda: model.sample(len(x), labels).mean, seconds, device)
    except NotImplementedError as error:
        yield from left_out(str(error), "samples_per_second")
        return
    yield Row("samples_per_second", len(x) * per_second, protocol=protocol)


def rate(run: Callable[[], Tensor], seconds: float, device: torch.device) -> float:
    """Calls per second, after one that is not counted."""

    def once() -> None:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    once()
    start, calls = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds or not calls:
        once()
        calls += 1
    return calls / elapsed if elapsed else 0.0


def auroc(own: Tensor, other: Tensor) -> float:
    """Probability that an image of `own` has a higher score than one of `other`: 0.5 if the score tells nothing."""
    from sklearn.metrics import roc_auc_score

    labels = torch.cat((torch.ones(len(own)), torch.zeros(len(other))))
    return float(roc_auc_score(labels.numpy(), torch.cat((own, other)).double().numpy()))
