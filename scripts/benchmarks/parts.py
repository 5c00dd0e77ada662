"""The tables that need no GPU: which sides take turns, how often, and what is wanted."""

from __future__ import annotations

import functools
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from scripts.benchmarks.processes import MIB, TRAIN, paired, peak_anonymous, peak_resident, seconds
from scripts.benchmarks.rows import Note, Row, Wanted, compared, subtracted
from scripts.benchmarks.workers import Side, command_of, has_mnist, has_pokemon, in_turn, once, side

Found = Iterator[Row | Note]
Part = Callable[[bool], Found]
IMAGES_PER_S = "images/s"
NO_MNIST = Note("left out, since VAE_LAB_DATA holds no MNIST")
QUICK = "left out by --quick: "
NOISE = ("data=mnist", "data._target_=scripts.benchmarks.sources.noise")
WITHOUT_MNIST_KEYS = ("~data.root", "~data.val_size", "~data.test_size")
LAST = ("trainer.max_epochs=1000000",)  # the other process says when it is enough


def ours(*overrides: str, measure: str = "Training", **options: Any) -> Side:
    """Our side under a callback of `turns`."""
    return side("ours:train", overrides=[*overrides, *LAST], measure=measure, **options)


def training(quick: bool) -> Found:
    """Training beside bare eager loops, and beside Lightning as it is usually written."""
    if not has_mnist():
        yield NO_MNIST
    else:
        yield from _training_mlp(quick)
        yield from _training_conv("mnist", "MNIST 28x28", 10 if quick else 60, quick)
    if quick:
        yield Note(f"{QUICK}conv on pokemon, Lightning with two workers")
    elif has_pokemon():
        yield from _training_conv("pokemon", "Pokemon 128x128", 12, quick)
    else:
        yield Note("conv at 128x128 is left out, since VAE_LAB_DATA holds no pokemon")


def _training_mlp(quick: bool) -> Found:
    repeats, what, steps = (2, "mlp, MNIST 28x28", 60) if quick else (6, "mlp, MNIST 28x28", None)
    limit = [f"trainer.limit_train_batches={steps}"] if steps else []
    usual = {
        workers: side("usual:lightning", num_workers=workers, steps=steps) for workers in ([0] if quick else [0, 2])
    }
    mine, bare, *others = in_turn(
        [ours("model=mlp", "data=mnist", *limit), side("bare:mlp", steps=steps), *usual.values()], repeats
    )
    yield compared(what, mine, "bare eager loop", bare, Wanted("at least", 0.95), IMAGES_PER_S)
    for workers, rates in zip(usual, others, strict=True):
        beside = f"Lightning + DataLoader, num_workers={workers}"
        yield compared(what, mine, beside, rates, Wanted("at least", 3.5), IMAGES_PER_S)


def _training_conv(data: str, title: str, steps: int, quick: bool) -> Found:
    overrides = ["model=conv", f"data={data}"]
    sides = [
        ours(*overrides, f"trainer.limit_train_batches={steps}"),
        side("bare:configured", overrides=overrides, steps=steps),
    ]
    mine, bare = in_turn(sides, 2 if quick else 5)
    what = f"conv, {title}"
    yield compared(what, mine, "bare eager loop, contiguous", bare, Wanted("at least", 1.2), IMAGES_PER_S)


def evaluation(quick: bool) -> Found:
    """Validation, and the importance-weighted bound."""
    if not has_mnist():
        yield NO_MNIST
        return
    yield _validation(quick)
    yield _importance(quick)


def _validation(quick: bool) -> Row:
    passes, images, batch = (2 if quick else 10), 10_000, 500
    overrides = ["model=mlp", "data=mnist", f"data.val_size={images}", f"data.eval_batch_size={batch}"]
    overrides += ["trainer.limit_train_batches=1", "callbacks.images=null"]
    sides = [
        ours(*overrides, measure="Validation", passes=passes),
        side("bare:validation", num_images=images, batch=batch, passes=passes),
    ]
    mine, bare = in_turn(sides, 2 if quick else 7)
    return compared("validation, mlp", mine, "bare inference_mode", bare, Wanted("at least", 0.9), IMAGES_PER_S)


def _importance(quick: bool) -> Row | Note:
    if not once(side("availability:importance_bound")):
        return Note("the importance bound is left out, since there is no vae_lab.metrics.importance.importance_bound")
    options = {"num_images": 100 if quick else 500, "num_samples": 64, "chunk": 16}
    sides = [ours("model=mlp", "data=mnist", measure="ImportanceBound", **options), side("bare:importance", **options)]
    mine, bare = in_turn(sides, 2 if quick else 7)
    wanted = Wanted("at least", 0.9)
    return compared("importance bound, K=64, mlp", mine, "bare inference_mode", bare, wanted, IMAGES_PER_S)


HYDRA_APP = """
import hydra
@hydra.main(config_path=".", config_name="app", version_base="1.3")
def main(config):
    print(config)
main()
"""


def startup(quick: bool) -> Found:
    """From the command to the first optimiser step, and to its help."""
    repeats, warm_up = (2, 0) if quick else (7, 1)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "app.yaml").write_text("lr: 0.001\nepochs: 10\nmodel: {width: 32, depth: 2}\n")
        app = Path(folder) / "app.py"
        app.write_text(HYDRA_APP)
        mine, theirs = paired([*TRAIN, "--help"], [sys.executable, str(app), "--help"], repeats, warm_up=warm_up)
    yield compared("--help", mine, "a bare Hydra app's", theirs, Wanted("at most", 1.5), "s")
    if quick:
        yield Note(f"{QUICK}command to first step")
        return
    first_step = [sys.executable, "-m", "scripts.benchmarks.ours"]
    mine, theirs = paired(first_step, [sys.executable, "-c", "import torch, lightning"], repeats)
    yield compared(
        "command to first step, digits", mine, "import torch, lightning", theirs, Wanted("at most", 1.6), "s"
    )


def data(quick: bool) -> Found:
    """A folder of pictures: the first start decodes it, the second finds it decoded."""
    count, repeats = (500, 1) if quick else (5000, 5)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "pictures"
        folder.mkdir()
        once(side("sources:write_pictures", folder=str(folder), num_pictures=count))
        caches = [str(Path(temporary) / f"cache{i}") for i in range(repeats)]
        found = [[_setup(folder, cache) for _ in ("first", "second")] for cache in caches]
    first, second = zip(*found, strict=True)
    what = f"second start, {count:,} pictures"
    yield compared(what, second, "first start", first, Wanted("at most", 0.2), "s")


def _setup(folder: Path, cache: str) -> float:
    return float(once(side("sources:setup_seconds", folder=str(folder), cache=cache)))


def memory(quick: bool) -> Found:
    """Peaks: of an epoch on MNIST, and of training on a folder set as it grows."""
    if has_mnist():
        command = [*TRAIN, "data=mnist", "model=mlp", "trainer.max_epochs=1"]
        bare = command_of(side("bare:mlp_epoch"))
        repeats = 1 if quick else 5
        mine, theirs = paired(command, bare, repeats, peak_resident, warm_up=0)
        wanted = Wanted("at most", 1.4)
        yield compared("peak memory, an epoch of MNIST", mine, "bare loop", theirs, wanted, "MiB", 1 / MIB)
    else:
        yield NO_MNIST
    if quick:
        yield Note(f"{QUICK}memory of a folder set of 2 GiB")
    elif not Path("/proc/self/status").exists():
        yield Note("memory of a folder set is left out: only Linux tells anonymous memory")
    else:
        yield _growing_folder()


def _growing_folder(repeats: int = 5) -> Row:
    overrides = ["model=conv", "data=mnist", "model/likelihood=gaussian_optimal", "data.binarize=none"]
    overrides += ["data._target_=scripts.benchmarks.sources.mapped", "~data.val_size", "~data.test_size"]
    overrides += ["data.batch_size=32", "data.eval_batch_size=64", "callbacks.images=null", "trainer.max_epochs=2"]
    overrides += ["trainer.limit_train_batches=4", "trainer.limit_val_batches=2"]
    with tempfile.TemporaryDirectory() as temporary:
        roots = [Path(temporary) / name for name in ("large", "small")]
        for root, count in zip(roots, (43_690, 4_369), strict=True):
            once(side("sources:write_mapped", folder=str(root), num_images=count))
        commands = [[*TRAIN, *overrides, f"data.root={root}"] for root in roots]
        large, small = paired(commands[0], commands[1], repeats, peak_anonymous, warm_up=0)
    wanted = Wanted("at most", 300, " MiB more")
    return subtracted("anonymous memory, a folder of 2 GiB", large, "one of 200 MiB", small, wanted, "MiB", 1 / MIB)


def scaling(quick: bool) -> Found:
    """What an image costs as the set grows: as many steps of each, in whole epochs."""
    base, factors, repeats = (5_000, (1, 10), 1) if quick else (10_000, (1, 10, 100), 5)
    most = factors[-1]
    sides = []
    for factor in factors:
        size = f"+data.num_images={base * factor + min(500, base * factor // 10)}"  # and those held out
        # Pictures come by the epoch, of which small sets have more.
        sides.append(
            ours("model=mlp", *NOISE, *WITHOUT_MNIST_KEYS, size, "callbacks.images=null", epochs=most // factor)
        )
    one, *larger = [[1 / rate for rate in rates] for rates in in_turn(sides, repeats)]
    for factor, costs in zip(factors[1:], larger, strict=True):
        what = f"an image of {base * factor:,}, mlp"
        yield compared(what, costs, f"of {base:,}", one, Wanted("flat"), "us/image", 1e6)
    if quick:
        yield Note(f"{QUICK}a set 100 times as large")


def logging(quick: bool) -> Found:
    """What the loggers and the progress bar cost training."""
    if not has_mnist():
        yield NO_MNIST
        return
    command = ["model=mlp", "data=mnist", *(["trainer.limit_train_batches=100"] if quick else [])]
    silent = ["logger=null", "trainer.enable_progress_bar=false", "callbacks.images=null"]
    silent += ["trainer.log_every_n_steps=1000000000"]
    logged, bare = in_turn([ours(*command), ours(*command, *silent)], 2 if quick else 9)
    yield compared("training with logging", logged, "without", bare, Wanted("at least", 0.98), IMAGES_PER_S)


@functools.cache
def default_runs(repeats: int) -> tuple[list[float], list[dict[str, Any]]]:
    """Seconds of the default command as a newcomer runs it, and what each run says of itself."""
    times, summaries = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            times.append(seconds(TRAIN, folder))
            (summary,) = Path(folder).glob("outputs/**/summary.json")
            summaries.append(json.loads(summary.read_text()))
    return times, summaries


def default(quick: bool) -> Found:
    """The default command, whole, beside a minute."""
    times, _ = default_runs(1 if quick else 5)
    yield compared("the default command", times, "a minute", [60.0] * len(times), Wanted("about"), "s")


def shares(quick: bool) -> Found:
    """What pictures and checkpoints take of the default command's training."""
    _, summaries = default_runs(1 if quick else 5)
    if not all("seconds_in" in summary for summary in summaries):
        yield Note("left out, since summary.json does not say `seconds_in`")
        return
    spent = [summary["seconds_in"] for summary in summaries]
    wanted = ("pictures", "checkpoints")
    taken = [sum(each.get(name) or 0.0 for name in wanted) for each in spent]
    whole = [sum(each[name] for name in ("training", "validation", *wanted)) for each in spent]
    yield compared("pictures and checkpoints", taken, "the epochs", whole, Wanted("at most", 0.05), "s")
    each = (
        f"{name} {statistics.median(s.get(name) or 0.0 for s in spent):.2f} s" for name in (*wanted, "last_pictures")
    )
    yield Note(f"{', '.join(each)} (these after the last epoch)")
