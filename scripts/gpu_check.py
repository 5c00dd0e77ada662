"""Whether vae_lab does on a GPU what it promises: one command of about eight minutes on a machine with a CUDA device.

    python scripts/gpu_check.py                        # everything; report.json and pictures go to gpu_check/
    python scripts/gpu_check.py experiments speed      # two parts
    python scripts/gpu_check.py --out FOLDER --minutes 0.5

experiments  every experiment file for 50 steps: float32, bf16, and bf16 replayed as a CUDA graph
resume       a GPU run resumed on the CPU and back
speed        mlp at batch 128 and 1024, conv at 128x128: plain, compiled, reduce-overhead, CUDA graph, and a bare loop
peak         the share of the card's arithmetic that a wide convolutional network reaches in bf16
pictures     longer runs of the large experiments, with their pictures

Every measurement is a plain `python -m vae_lab.train` in a process of its own. MNIST and the pictures of Pokemon are
read from VAE_LAB_DATA (default: data) and never downloaded. Exit code: 1 if anything went wrong, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from benchmark import NO_PICTURES, PLAIN_POKEMON, ROOT, TRAIN, ProcessError, length, run, side

STEPS = ["trainer.max_steps=50", "trainer.limit_train_batches=50", "trainer.max_epochs=-1", NO_PICTURES,
         "callbacks.baseline=null", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1",
         "data.eval_batch_size=64"]  # fmt: skip
FLOAT32 = ["trainer=gpu", "trainer.precision=32-true", "trainer.matmul_precision=highest"]
WAYS = {"float32": FLOAT32, "bf16": ["trainer=gpu"], "bf16, CUDA graph": ["trainer=gpu", "trainer.cuda_graphs=true"]}
SWITCHES = {"plain": [], "compile": ["trainer.compile=true"], "reduce-overhead": ["trainer.compile=reduce-overhead"],
            "CUDA graph": ["trainer.cuda_graphs=true"]}  # fmt: skip
LARGE = {
    "pokemon_gpu": ["experiment=pokemon_gpu"],
    "ladder_large": ["experiment=ladder", "model=ladder_large", "optimizer.ema_decay=0.999", "trainer=gpu"],
}
WIDE = ["model=resnet", *PLAIN_POKEMON, "data.batch_size=128", "model.encoder.width=256", "model.encoder.max_width=512",
        "model.decoder.width=256", "model.decoder.max_width=512"]  # fmt: skip


class Case(NamedTuple):
    """One row of the report."""

    part: str
    name: str
    result: str
    ok: bool
    figures: dict[str, float]


def trained(overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    """The summary.json of a run in this folder. ProcessError: it failed."""
    run([*TRAIN, *overrides, f"hydra.run.dir={folder}"], ROOT)
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def last_line(error: ProcessError) -> str:
    """The line of the output that says most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line or "error" in line]
    return (named or lines)[-1][:300]


# --- parts ------------------------------------------------------------------------------------------------


def experiments(folder: Path, minutes: float) -> Iterator[Case]:
    """Each experiment in three ways: a sweep in a process for each way, since a process starts slowly."""
    names = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))

    def sweep(way: str) -> Path:
        place = folder / way.replace(", ", "-").replace(" ", "-")
        where = [f"hydra.sweep.dir={place}", "hydra.sweep.subdir=${hydra:runtime.choices.experiment}"]
        command = [*TRAIN, "-m", f"experiment={','.join(names)}", *WAYS[way], *STEPS, *where]
        with suppress(ProcessError):  # each summary.json says how its run ended
            run(command, ROOT)
        return place

    with ThreadPoolExecutor(len(WAYS)) as pool:
        places = dict(zip(WAYS, pool.map(sweep, WAYS), strict=True))
    for name in names:
        found = {way: ending(place / name) for way, place in places.items()}
        figures = {way: elbo for way, (elbo, _) in found.items() if math.isfinite(elbo)}
        apart = max(figures.values(), default=0.0) - min(figures.values(), default=0.0)
        far = apart > 5 + 0.1 * abs(figures.get("float32", 0.0))
        texts = [f"{way} {why or f'{elbo:.1f}'}" for way, (elbo, why) in found.items()] + (["FAR APART"] if far else [])
        yield Case("experiments", name, "; ".join(texts), len(figures) == len(WAYS) and not far, figures)


def ending(run_dir: Path) -> tuple[float, str]:
    """The test ELBO of a run, and what went wrong."""
    path = run_dir / "summary.json"
    if not path.is_file():
        return math.nan, "NOT STARTED"
    summary = json.loads(path.read_text())
    if summary["status"] == "completed":
        return float(summary["metrics"]["test/elbo"]), ""
    return math.nan, f"{summary['status'].upper()}: {summary.get('error', '')}"[:300]


def resume(folder: Path, minutes: float) -> Iterator[Case]:
    """One epoch on the GPU, the second on the CPU, the third on the GPU, beside three on the GPU."""
    options = ["model=conv", "data=digits", "optimizer.ema_decay=0.9", NO_PICTURES]
    devices = ("gpu", "cpu", "gpu")
    try:
        whole = trained([*options, "trainer=gpu", "trainer.max_epochs=3"], folder / "whole")["metrics"]["val/elbo"]
        trained([*options, "trainer=gpu", "trainer.max_epochs=1"], folder / "moved")
        for epochs, device in enumerate(devices[1:], 2):
            run([*TRAIN, f"resume={folder / 'moved'}", f"trainer={device}", f"trainer.max_epochs={epochs}"], ROOT)
        summary = json.loads((folder / "moved" / "summary.json").read_text())
        moved, rows = summary["metrics"]["val/elbo"], (folder / "moved" / "metrics.csv").read_text().count("\n") - 1
        ok = summary["status"] == "completed" and rows == len(devices) and abs(moved - whole) < 0.05 * abs(whole)
        result = f"val ELBO {moved:.2f} after gpu, cpu, gpu; {whole:.2f} all on the GPU; {rows} rows of metrics.csv"
        yield Case("resume", "GPU, CPU, GPU", result, ok, {"moved": moved, "whole": whole})
    except ProcessError as error:
        yield Case("resume", "GPU, CPU, GPU", last_line(error), False, {})


def speed(folder: Path, minutes: float) -> Iterator[Case]:
    """Images per second of the training loop in each way, alone on the machine, beside a bare eager loop in bf16."""
    # The networks of the bare loop, and a cache of the pictures.
    trained(["model=conv", "data=pokemon", "trainer=gpu", NO_PICTURES, *length(1, 1)], folder / "conv")
    mlp: list[str] = ["model=mlp", "data=mnist", "data.binarize=dynamic"]
    conv: list[str] = ["model=conv", *PLAIN_POKEMON]
    bare_conv = {"dynamic": False, "pokemon": True, "run_dir": str(folder / "conv")}
    for name, overrides, batch, epochs, options in (
        ("mlp", mlp, 128, 6, {"dynamic": True}),
        ("mlp", mlp, 1024, 20, {"dynamic": True}),
        ("conv", conv, 32, 40, bare_conv),
        ("conv", conv, 128, 40, bare_conv),
    ):
        loop, what = side("bare", epochs=epochs, device="cuda", batch=batch, **options), f"{name}, batch {batch}"
        yield Case("speed", f"{what}: bare eager loop", f"{loop:,.0f} images/s", True, {"images/s": loop})
        common = [*overrides, "trainer=gpu", f"data.batch_size={batch}", NO_PICTURES, *length(epochs, None)]
        for way, switch in SWITCHES.items():
            try:
                summary = trained([*common, *switch], folder / f"{name}-{batch}-{way}".replace(" ", "-"))
            except ProcessError as error:
                yield Case("speed", f"{what}: {way}", last_line(error), False, {})
                continue
            rate = float(summary["images_per_second"])
            result = f"{rate:,.0f} images/s, {rate / loop:.2f} of the bare loop"
            yield Case("speed", f"{what}: {way}", result, True, {"images/s": rate, "ratio": rate / loop})


def peak(folder: Path, minutes: float) -> Iterator[Case]:
    """Arithmetic of a training step of a wide residual network, beside that of a large matrix product."""
    for way in ("plain", "compile"):
        try:
            found = trained([*WIDE, "trainer=gpu", NO_PICTURES, *length(12, None), *SWITCHES[way]], folder / way)
        except ProcessError as error:
            yield Case("peak", f"wide resnet, {way}", last_line(error), False, {})
            continue
        done = found["images_per_second"] * flops_per_image(folder / way) / 1e12
        product = matrix_product()
        result = f"{done:.0f} TFLOP/s of {product:.0f} in an 8192x8192x8192 product: {done / product:.0%}"
        figures = {"TFLOP/s": done, "matrix product": product, "images/s": found["images_per_second"]}
        yield Case("peak", f"wide resnet, {way}", result, True, figures)


def flops_per_image(run_dir: Path) -> float:
    """Floating-point operations of the forward and backward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    import vae_lab

    model: Any = vae_lab.load(run_dir).model.requires_grad_(True)
    with FlopCounterMode(display=False) as counter:
        x = torch.rand(2, *model.image.shape)
        model(x).likelihood.log_prob(x).sum().backward()
    return counter.get_total_flops() / len(x)


def matrix_product(size: int = 8192, repeats: int = 20) -> float:
    """TFLOP/s of a bf16 matrix product of random numbers."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for count in (3, repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            a @ b
        torch.cuda.synchronize()
    return 2 * size**3 * repeats / (time.perf_counter() - start) / 1e12


def pictures(folder: Path, minutes: float) -> Iterator[Case]:
    """The large experiments side by side for some minutes each; their last pictures are kept."""
    with ThreadPoolExecutor(len(LARGE)) as pool:
        limit = f"trainer.max_time={{seconds: {round(60 * minutes)}}}"
        runs = {name: pool.submit(trained, [*options, limit], folder / name) for name, options in LARGE.items()}
        for name, future in runs.items():
            try:
                summary = future.result()
            except ProcessError as error:
                yield Case("pictures", name, last_line(error), False, {})
                continue
            metrics = {key: value for key, value in summary["metrics"].items() if key.startswith("test/")}
            result = f"{summary['steps']:,} steps, {summary['images_per_second']:,.0f} images/s, " + ", ".join(
                f"{key} {value:.2f}" for key, value in metrics.items()
            )
            # By trainer.max_time, a run ends as interrupted.
            yield Case("pictures", name, result, summary["status"] in ("completed", "interrupted"), metrics)


PARTS: dict[str, Callable[[Path, float], Iterator[Case]]] = {
    "experiments": experiments, "resume": resume, "speed": speed, "peak": peak, "pictures": pictures,
}  # fmt: skip


def checked(parts: Sequence[str], out: Path, minutes: float) -> list[Case]:
    """The cases of these parts, printed as they come; pictures and what failed are kept in `out`."""
    report = []
    with tempfile.TemporaryDirectory(prefix="vae_lab-gpu-") as temporary:
        for part in parts:
            (folder := Path(temporary) / part).mkdir()
            start = time.perf_counter()
            for case in PARTS[part](folder, minutes):
                print(f"{'ok' if case.ok else 'FAIL':6}{case.part:13}{case.name:44}{case.result}", flush=True)
                report.append(case)
            print(f"      {part:13}{time.perf_counter() - start:.0f} s", flush=True)
            for path in [*folder.glob("*/images/*.png"), *folder.glob("*.txt")]:
                name = path.name if path.parent == folder else f"{path.parents[1].name}_{path.name}"
                shutil.copy(path, out / f"{part}_{name}")
    return report


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; default: all of them")
    parser.add_argument("--out", type=Path, default=Path("gpu_check"), metavar="FOLDER", help="default: gpu_check")
    parser.add_argument("--minutes", type=float, default=2, help="of each run of the part `pictures` (default 2)")
    options = parser.parse_args(argv)
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"no part {unknown[0]}: expected {', '.join(PARTS)}")
    if not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} sees no CUDA device here")
    options.out.mkdir(parents=True, exist_ok=True)
    report = checked(options.parts or list(PARTS), options.out, options.minutes)
    cases = [case._asdict() for case in report]
    content = {"card": torch.cuda.get_device_name(), "torch": torch.__version__, "cases": cases}
    (options.out / "report.json").write_text(json.dumps(content, indent=2) + "\n")
    return int(not all(case.ok for case in report))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
