"""Damaged pictures and IDX files by the thousand: each is refused by name or is a right picture, and nothing else.

python scripts/stressing/fuzz.py --count 20000
python scripts/stressing/fuzz.py --only 123    # what becomes of input 123; --keep FILE writes it

They are decoded in a child process, so that a crash or a hang is one more outcome and the others go on.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # scripts/ is beside the package, not in it

from scripts.stressing.fuzz_corpus import Valid  # noqa: E402
from scripts.stressing.fuzz_mutations import Case, make_case  # noqa: E402
from vae_lab.data.decode import PictureOptions, decode  # noqa: E402
from vae_lab.data.sources.idx import read_idx  # noqa: E402
from vae_lab.utils.errors import UsageError  # noqa: E402

OPTIONS = PictureOptions(image_size=16, max_pixels=4_000_000, max_bytes=1_000_000, max_seconds=1.0)
GOOD = ("refused", "right")
SUFFIXES = {"IDX": "", "IDX.gz": ".gz"}

Decoder = Callable[[Path, Case], NDArray[np.uint8]]


class Bounds(NamedTuple):
    """In seconds: of processor time, above which an input is slow, and on the clock, above which it hangs."""

    slow: float = 2.0
    hang: float = 20.0


class Job(NamedTuple):
    """What a child is told."""

    seed: int
    decoder: Decoder
    bounds: Bounds
    folder: Path

    def path(self, kind: str) -> Path:
        """Where an input of this format goes."""
        return self.folder / f"input{SUFFIXES.get(kind, '.' + kind.lower())}"


class Result(NamedTuple):
    """What became of an input: refused, right, or one of the failures (wrong, error, slow, crash, hang)."""

    number: int
    outcome: str
    seconds: float
    detail: str = ""


@dataclass
class Report:
    """What became of all inputs."""

    inputs: int = 0
    outcomes: dict[str, dict[str, int]] = field(default_factory=dict)  # by format
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0  # seconds of processor time of one input
    slowest_input: str = ""
    peak_mib: float = 0.0  # of the child's memory
    per_second: float = 0.0

    def add(self, seed: int, result: Result) -> None:
        """Count a result; a failure is written down with what is needed to see it again."""
        case = make_case(seed, result.number)
        name = f"seed {seed}, input {result.number} ({case.original.kind}, {case.original.name}, {case.mutation})"
        self.inputs += 1
        counts = self.outcomes.setdefault(case.original.kind, {})
        counts[result.outcome] = counts.get(result.outcome, 0) + 1
        if result.outcome not in GOOD:
            self.failures.append(f"{name}: {result.outcome} {result.detail}".rstrip())
        if result.seconds > self.slowest:
            self.slowest, self.slowest_input = result.seconds, name


def run(count: int, seed: int = 0) -> dict[str, Any]:
    """Decode `count` damaged files: counts by format and outcome, the failures, the slowest."""
    return asdict(fuzz(count, seed))


def fuzz(count: int, seed: int = 0, decoder: Decoder | None = None, bounds: Bounds | None = None) -> Report:
    """The same, with a decoder and bounds of one's own."""
    report, start = Report(), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:  # here, for a child that crashes removes nothing
        job = Job(seed, decoder or decoded, bounds or Bounds(), Path(folder))
        for result in _results(count, job):
            report.add(seed, result)
    report.per_second = count / (time.perf_counter() - start)
    report.peak_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return report


def decoded(path: Path, case: Case) -> NDArray[np.uint8]:
    """The pixels as vae_lab reads them."""
    if case.original.kind.startswith("IDX"):
        return read_idx(path, num_dims=3 if case.original.name == "images" else 1).numpy()
    return decode(path, OPTIONS)


def _results(count: int, job: Job) -> Iterator[Result]:
    """One for each input; a child that crashed or hung is replaced, and the next one goes on behind that input."""
    at = 0
    while at < count:
        for result in _of_one_child(range(at, count), job):
            at += 1
            yield result


def _of_one_child(numbers: range, job: Job) -> Iterator[Result]:
    context = multiprocessing.get_context("fork")  # what is imported and the decoder are there at once
    results, sender = context.Pipe(duplex=False)
    child = context.Process(target=_work, args=(sender, numbers, job), daemon=True)
    child.start()
    sender.close()  # so that the end of the child is the end of the pipe
    try:
        for number in numbers:
            if not results.poll(job.bounds.hang):
                yield Result(number, "hang", job.bounds.hang)
                return
            try:
                yield results.recv()
            except EOFError:
                child.join()
                yield Result(number, "crash", 0.0, f"exit code {child.exitcode}")
                return
    finally:
        child.kill()
        child.join()


def _work(sender: Connection, numbers: range, job: Job) -> None:
    """In the child: decode one after the other and say at once what became of it."""
    warnings.simplefilter("ignore")
    originals: dict[Valid, NDArray[np.uint8]] = {}
    for number in numbers:
        case = make_case(job.seed, number)
        path, original = job.path(case.original.kind), None
        if case.exact:
            if case.original not in originals:
                path.write_bytes(case.original.content)
                originals[case.original] = decoded(path, case)
            original = originals[case.original]
        path.write_bytes(case.content)
        start = time.thread_time()
        outcome, detail = _outcome(path, case, job.decoder, original)
        seconds = time.thread_time() - start
        slow = seconds > job.bounds.slow and outcome in GOOD
        sender.send(Result(number, "slow" if slow else outcome, seconds, detail))


def _outcome(path: Path, case: Case, decoder: Decoder, original: NDArray[np.uint8] | None) -> tuple[str, str]:
    try:
        pixels, again = decoder(path, case), decoder(path, case)
    except UsageError as error:
        named = str(path) in str(error)
        return ("refused", "") if named else ("error", f"the file is not named: {error}")
    except Exception as error:  # what it must not be
        return "error", f"{type(error).__name__}: {error}"
    wrong = _fault(pixels, again, case, original)
    return ("wrong", wrong) if wrong else ("right", "")


def _fault(pixels: NDArray[np.uint8], again: NDArray[np.uint8], case: Case, original: NDArray[np.uint8] | None) -> str:
    """What is wrong with the pixels; nothing where they are right as far as can be known."""
    raw = case.original.kind == "IDX" and not case.content.startswith(b"\x1f\x8b")
    if raw and pixels.tobytes() != case.content[4 + 4 * pixels.ndim :]:
        return "bytes other than the file's"
    if not case.original.kind.startswith("IDX") and pixels.shape != (OPTIONS.channels, *OPTIONS.size):
        return f"shape {pixels.shape}"
    if pixels.dtype != np.uint8:
        return f"type {pixels.dtype}"
    if not np.array_equal(pixels, again):
        return "pixels that differ from one reading to the next"
    if original is not None and not np.array_equal(pixels, original):
        return "pixels other than the original's"
    return ""


def table(report: Report) -> str:
    """The report as text."""
    lines = [
        f"{kind:8}" + "".join(f"{n:>8} {name}" for name, n in sorted(counts.items(), reverse=True))
        for kind, counts in sorted(report.outcomes.items())
    ]
    lines.append(f"{report.inputs} inputs, {report.per_second:.0f} a second, at most {report.peak_mib:.0f} MiB")
    lines.append(f"slowest: {report.slowest:.3f} s, {report.slowest_input}")
    return "\n".join([*lines, f"{len(report.failures)} failures", *report.failures[:50]])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000, help="how many inputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="write this one input to --keep, and decode it")
    parser.add_argument("--keep", type=Path, default=Path("input"), help="where --only writes it")
    arguments = parser.parse_args(argv)
    if arguments.only is not None:
        case = make_case(arguments.seed, arguments.only)
        arguments.keep.write_bytes(case.content)
        print(case.original.kind, case.original.name, case.mutation, sep=", ")
        print(*_outcome(arguments.keep, case, decoded, None))
        return 0
    report = fuzz(arguments.count, arguments.seed)
    print(table(report))
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
