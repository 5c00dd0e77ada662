"""Damaged files by the hundred: refused by name or right; and a harness that sees when they are not."""

import faulthandler
import itertools
import os
import signal
import time

import numpy as np
import pytest

from scripts.stressing.fuzz import GOOD, Bounds, decoded, fuzz, main, run
from scripts.stressing.fuzz_corpus import corpus
from scripts.stressing.fuzz_mutations import KINDS, MUTATIONS, make_case, spans


def test_damaged_files_are_refused_by_name_or_right():
    report = run(700)
    assert report["failures"] == []
    assert set(report["outcomes"]) == set(KINDS) and report["inputs"] == 700
    for counts in report["outcomes"].values():
        assert set(counts) == set(GOOD)  # neither is all there is


@pytest.mark.parametrize("file", corpus(), ids=lambda file: f"{file.kind} {file.name}")
def test_what_is_damaged_was_whole_and_its_parts_are_all_of_it(tmp_path, file):
    path = tmp_path / f"whole.{file.kind.lower()}"
    path.write_bytes(file.content)
    case = make_case(0, 0)._replace(original=file)
    assert decoded(path, case).size > 0
    assert b"".join(file.content[start:end] for start, end in spans(file)) == file.content


def test_an_input_is_the_same_each_time_and_every_mutation_is_used():
    cases = [make_case(3, number) for number in range(600)]
    assert [case.content for case in cases] == [make_case(3, number).content for number in range(600)]
    assert {case.mutation for case in cases} == set(MUTATIONS)
    assert make_case(4, 0).content != cases[0].content


def crashing(path, case):
    faulthandler.disable()  # pytest's, which would print pages
    os.kill(os.getpid(), signal.SIGSEGV)


def hanging(path, case):
    time.sleep(60)


def failing(path, case):
    raise KeyError("IHDR")


def busy(path, case):
    until = time.thread_time() + 0.06
    while time.thread_time() < until:
        pass
    return black(path, case)


def black(path, case):
    return np.zeros((3, 16, 16), np.uint8)


def forgetful(path, case):
    return black(path, case) + np.uint8(next(COUNTER))


COUNTER = itertools.count()


def only_on(decoder, numbers):
    """A decoder that is a bad one on these inputs, all of them GIF, which has no checksum."""
    bad = {make_case(0, number).content for number in numbers}
    return lambda path, case: (decoder if case.content in bad else decoded)(path, case)


@pytest.mark.parametrize(
    ("decoder", "outcome", "detail"),
    [
        (crashing, "crash", "exit code -11"),
        (hanging, "hang", ""),
        (failing, "error", "KeyError: 'IHDR'"),
        (busy, "slow", ""),
    ],
)
def test_a_failure_is_seen_and_the_others_go_on(decoder, outcome, detail):
    report = fuzz(60, decoder=only_on(decoder, (9, 30)), bounds=Bounds(slow=0.1, hang=1.5))
    assert [failure.split(" (")[0] for failure in report.failures] == [f"seed 0, input {n}" for n in (9, 30)]
    assert all(f": {outcome} {detail}".rstrip() in failure for failure in report.failures)
    assert report.inputs == 60 == sum(sum(counts.values()) for counts in report.outcomes.values())


def test_wrong_pixels_are_seen_where_there_is_a_checksum():
    """A decoder that takes anything for a black picture."""
    report = fuzz(140, decoder=black)
    assert report.outcomes["IDX"] == {"wrong": 20} and report.outcomes["JPEG"] == {"right": 20}
    wrong = [failure for failure in report.failures if "wrong pixels other than the original's" in failure]
    assert {"PNG", "IDX.gz"} == {failure.split("(")[1].split(",")[0] for failure in wrong}


def test_pixels_that_change_from_one_reading_to_the_next_are_seen():
    assert "wrong pixels that differ from one reading to the next" in fuzz(3, decoder=forgetful).failures[2]


def test_the_command_prints_the_counts_and_one_input(tmp_path, capsys):
    assert main(["--count", "21"]) == 0
    assert "21 inputs" in capsys.readouterr().out
    main(["--only", "5", "--keep", str(tmp_path / "input")])
    assert (tmp_path / "input").read_bytes() == make_case(0, 5).content
