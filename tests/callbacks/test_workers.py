"""Work in forked copies of the process: what it returns arrives, whatever becomes of the copy."""

import os
import signal
import time
import warnings

import pytest
import torch
from helpers.drawing import SMALL, Data, Model, events, names, train

from vae_lab.callbacks import rendering as drawings
from vae_lab.callbacks.forked_process import reason_not_to_fork
from vae_lab.callbacks.images import ImageLogger
from vae_lab.callbacks.workers import MAX_PROCESSES, BackgroundError, ForkedWorkers

pytestmark = pytest.mark.skipif(reason_not_to_fork(torch.device("cpu"), 1) is not None, reason="needs a safe fork")


@pytest.fixture
def delivered():
    return []


@pytest.fixture
def background(delivered):
    workers = ForkedWorkers(delivered.append)
    yield workers
    workers.stop()


def forever():
    time.sleep(600)
    return []


def test_values_arrive_in_the_order_of_start(background, delivered):
    def slow():
        time.sleep(0.3)
        yield "first"

    background.start("slow", slow)
    for k in range(MAX_PROCESSES):
        background.start("quick", lambda k=k: [k, os.getpid()])
    background.drain()
    assert [value for value in delivered if value in ("first", *range(MAX_PROCESSES))] == [
        "first",
        *range(MAX_PROCESSES),
    ]
    assert os.getpid() not in delivered


def test_the_copy_has_the_state_of_its_moment(background, delivered):
    weight = torch.zeros(3)
    background.start("a look", lambda: [weight.tolist(), torch.get_num_threads()])
    weight += 1
    background.drain()
    assert delivered == [[0.0] * 3, 1]


def test_results_larger_than_a_pipe_do_not_wait_for_a_reader(background, delivered):
    background.start("many bytes", lambda: [bytes(2**22)])
    deadline = time.monotonic() + 60
    while not delivered and time.monotonic() < deadline:
        background.poll()
    assert len(delivered[0]) == 2**22


def test_a_failure_arrives_with_its_traceback_after_what_came_before_it(background, delivered):
    def fails():
        yield 1
        raise LookupError("no such colour")

    background.start("drawing epoch 7", fails)
    with pytest.raises(BackgroundError, match=r"drawing epoch 7 failed(.|\n)*in fails(.|\n)*no such colour"):
        background.drain()
    assert delivered == [1]


def test_a_copy_that_is_killed_is_warned_about(background, delivered):
    background.start("drawing epoch 7", lambda: os.kill(os.getpid(), signal.SIGKILL))
    background.start("drawing epoch 8", lambda: [8])
    with pytest.warns(UserWarning, match="drawing epoch 7: .*SIGKILL"):
        background.drain()
    assert delivered == [8]


def test_warnings_of_a_copy_are_given_here(background):
    background.start("a warning", lambda: [warnings.warn("a glyph is missing", stacklevel=1)])
    with pytest.warns(UserWarning, match="a glyph is missing"):
        background.drain()


def test_nobody_waits_once_interrupted_and_what_is_not_done_in_time_is_left_out(delivered, logged_warnings):
    background = ForkedWorkers(delivered.append, lambda: True)
    background.start("quick", lambda: [1])
    background.start("long", forever)
    pids = [copy.pid for copy in background._copies]
    background.drain()  # returns
    background.finish(0.6)
    assert delivered == [1]
    assert "unfinished when training was stopped, and skipped: long" in logged_warnings[0]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_work_without_idle_time_is_done_by_the_copy_itself_once_it_is_hurried(background, delivered, monkeypatch):
    """The worker is stopped where it would wait for a processor: hurried, the copy of the process does it."""
    monkeypatch.setattr("vae_lab.callbacks.workers.MAX_IDLE_WAIT", 0.2)
    monkeypatch.setattr(
        "vae_lab.callbacks.forked_process._set_idle_priority", lambda: os.kill(os.getpid(), signal.SIGSTOP)
    )
    background.start("first", lambda: [1])
    background.start("second", lambda: [2])
    background.drain()
    assert delivered == [1, 2]


def test_a_failure_while_training_ends_is_a_warning(background, logged_warnings):
    def fails():
        raise LookupError("no such colour")

    background.start("drawing epoch 7", fails)
    background.finish(5.0)
    assert "drawing epoch 7 failed" in logged_warnings[0] and "no such colour" in logged_warnings[0]


def test_what_cannot_be_sent_is_a_failure_that_says_so(background):
    background.start("a function", lambda: [lambda: 1])
    with pytest.raises(BackgroundError, match=r"a function failed(.|\n)*pickle"):
        background.drain()


def test_copies_end_with_the_process_that_trains():
    reader, writer = os.pipe()
    parent = os.fork()
    if parent == 0:
        background = ForkedWorkers(print)
        background.start("long", forever)
        time.sleep(0.5)  # for the copy to ask for its end
        os.kill(os.getpid(), signal.SIGKILL)
    os.close(writer)
    os.waitpid(parent, 0)
    assert os.read(reader, 1) == b""  # the end of the file: nobody holds the pipe any more
    os.close(reader)


def test_where_no_copy_can_be_forked_the_process_does_it_itself(background, delivered, monkeypatch):
    def refused():
        raise BlockingIOError

    background.start("before", lambda: [1])
    monkeypatch.setattr(os, "fork", refused)
    background.start("after", lambda: [os.getpid()])
    assert delivered == [1, os.getpid()]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same training drawn in the background and in the process."""
    runs = {background: tmp_path_factory.mktemp("run") for background in (True, False)}
    models = {on: train(runs[on], ImageLogger(**SMALL, background=on), epochs=3) for on in runs}
    return runs, models


def test_the_files_are_the_same_as_drawn_in_the_process(both):
    runs, _ = both
    assert names(runs[True]) == names(runs[False])
    for name in names(runs[True]):
        assert (runs[True] / "images" / name).read_bytes() == (runs[False] / "images" / name).read_bytes(), name


def test_tensorboard_is_the_same_as_drawn_in_the_process(both):
    there, here = (events(both[0][background]) for background in (True, False))
    assert there.Tags() == here.Tags()
    for tag in here.Tags()["images"]:
        shown = [[(event.step, event.encoded_image_string) for event in e.Images(tag)] for e in (there, here)]
        assert shown[0] == shown[1], tag
    for tag in here.Tags()["histograms"]:
        shown = [[(event.step, event.histogram_value) for event in e.Histograms(tag)] for e in (there, here)]
        assert shown[0] == shown[1], tag


def test_training_is_the_same_in_the_background(both):
    there, here = both[1][True], both[1][False]
    assert there.noise == here.noise
    for a, b in zip(there.parameters(), here.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_picture_that_fails_ends_the_fit_with_its_traceback(tmp_path, monkeypatch):
    def fails(context):
        raise LookupError("no such colour")

    monkeypatch.setattr(drawings, "PICTURES", {**drawings.PICTURES, "samples": fails})
    with pytest.raises(BackgroundError, match=r"drawing epoch 1 failed(.|\n)*no such colour"):
        train(tmp_path, ImageLogger(**SMALL))


def test_training_outlives_a_drawing_that_is_killed(tmp_path, monkeypatch):
    def killed(context):
        if context.when == "epoch 1":
            os.kill(os.getpid(), signal.SIGKILL)
        return samples(context)

    samples = drawings.PICTURES["samples"]
    monkeypatch.setattr(drawings, "PICTURES", {**drawings.PICTURES, "samples": killed})
    with pytest.warns(UserWarning, match="drawing epoch 1: .*SIGKILL"):
        train(tmp_path, ImageLogger(**SMALL, pictures=["samples"]))
    assert names(tmp_path) == ["network.png", "samples.gif", "samples_epoch=0002.png"]


def test_an_exception_in_training_leaves_no_drawing_behind(tmp_path, monkeypatch):
    class Failing(Model):
        def decode(self, z, y=None):
            if self.training and (tmp_path / "fail").exists():
                raise ArithmeticError
            return super().decode(z, y)

    def never(context):
        forever()

    monkeypatch.setattr(drawings, "PICTURES", {**drawings.PICTURES, "samples": never})
    images = ImageLogger(**SMALL, pictures=["samples"])
    begin = ForkedWorkers.start

    def start_then_fail(self, *args, **options):
        begin(self, *args, **options)
        (tmp_path / "fail").touch()

    monkeypatch.setattr(ForkedWorkers, "start", start_then_fail)
    monkeypatch.setattr("vae_lab.callbacks.images.SECONDS_AT_END", 0.6)
    with pytest.raises(ArithmeticError):
        train(tmp_path, images, model=Failing(3), data=Data())
    assert not images._workers._copies


def test_a_background_that_cannot_be_is_refused(tmp_path, monkeypatch):
    previous = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with pytest.raises(ValueError, match=r"images.background=true: SIGCHLD is ignored.* auto or false"):
            train(tmp_path, ImageLogger(**SMALL, background=True))
    finally:
        signal.signal(signal.SIGCHLD, previous)


@pytest.mark.parametrize(("device", "processes"), [("cuda", 1), ("mps", 1), ("cpu", 2)])
def test_devices_and_several_processes_draw_in_the_process(device, processes):
    assert reason_not_to_fork(torch.device(device), processes)
