"""The download of pictures against a local server: whole files or none, whatever the server does."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from vae_lab.data import transfer
from vae_lab.data.download import DownloadSource, fetch, fetch_all, main
from vae_lab.data.transfer import RequestPolicy
from vae_lab.utils.errors import UsageError


def png(number):
    noise = np.random.default_rng(number).integers(0, 256, (20, 20, 4), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    """Serves /<number>.png for 1 to 9; `server.script` holds what to do instead, request by request."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.requests.append((self.path, self.headers.get("Range"), self.headers["User-Agent"]))
        number = int(self.path.strip("/").removesuffix(".png"))
        step = self.server.script.pop(0) if self.server.script else Handler.whole
        if number > 9:
            self.send_error(404)
        else:
            step(self, png(number))

    def whole(self, content):
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:])

    def log_message(self, *args):
        """Nothing on the test's output."""


def failing(code, **headers):
    def step(handler, content):
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return step


def cut(handler, content):
    """Promises everything and closes the connection half way."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])
    handler.close_connection = True


def sending(body, code=200, **headers):
    def step(handler, content):
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return step


def ignoring_range(handler, content):
    sending(content)(handler, content)


def silent(handler, content):
    time.sleep(0.5)
    handler.close_connection = True


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.script = [], []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def waits(monkeypatch):
    """The pauses asked for, none of them taken."""
    waits, sleep = [], time.sleep
    monkeypatch.setattr(transfer.time, "sleep", lambda seconds: waits.append(seconds) or sleep(0))
    return waits


@pytest.fixture
def source(server, tmp_path, waits):
    return DownloadSource(f"http://127.0.0.1:{server.server_port}", tmp_path / "pictures", RequestPolicy())


def asking(source, **policy):
    return replace(source, policy=RequestPolicy(**policy))


def names(source):
    return sorted(path.name for path in source.folder.iterdir())


def test_every_picture_is_fetched_whole_and_a_missing_number_is_counted(source, server):
    assert fetch_all(source, range(8, 12)) == {"fetched": 2, "not there": 2}
    assert names(source) == ["0008.png", "0009.png"]
    assert (source.folder / "0008.png").read_bytes() == png(8)
    assert all(agent.startswith("vae_lab") for _, _, agent in server.requests)


def test_what_is_here_is_not_asked_for_again(source, server):
    fetch_all(source, [1, 2])
    (source.folder / "0002.png").write_bytes(png(2)[:-5])  # cut short by someone else
    del server.requests[:]
    assert fetch_all(source, [1, 2]) == {"already here": 1, "fetched": 1}
    assert [path for path, _, _ in server.requests] == ["/2.png"]
    assert (source.folder / "0002.png").read_bytes() == png(2)


def part(source, content):
    source.folder.mkdir(exist_ok=True)
    (source.folder / "0003.png.part").write_bytes(content)


def test_a_partial_file_goes_on_where_it_stopped(source, server):
    part(source, png(3)[:500])
    assert fetch(source, 3) == "fetched"
    assert server.requests[0][1] == "bytes=500-" and len(server.requests) == 1
    assert (source.folder / "0003.png").read_bytes() == png(3) and names(source) == ["0003.png"]


def test_a_server_that_ignores_the_range_sends_all_of_it(source, server):
    part(source, png(3)[:500])
    server.script = [ignoring_range]
    assert fetch(source, 3) == "fetched" and (source.folder / "0003.png").read_bytes() == png(3)


@pytest.mark.parametrize("content", [png(4)[:500], png(3), png(3) + b"more"], ids=["another's", "whole", "longer"])
def test_a_partial_file_that_does_not_fit_is_thrown_away(source, server, content):
    part(source, content)
    assert fetch(source, 3) == "fetched" and (source.folder / "0003.png").read_bytes() == png(3)


def test_a_range_that_was_not_asked_for_is_not_used(source, server):
    part(source, png(3)[:500])
    server.script = [sending(png(3)[200:], code=206, Content_Range=f"bytes 200-{len(png(3)) - 1}/{len(png(3))}")]
    assert fetch(source, 3) == "fetched" and (source.folder / "0003.png").read_bytes() == png(3)


def test_a_connection_cut_half_way_is_resumed(source, server):
    server.script = [cut]
    assert fetch_all(source, [5]) == {"fetched": 1}
    assert [asked for _, asked, _ in server.requests] == [None, f"bytes={len(png(5)) // 2}-"]
    assert (source.folder / "0005.png").read_bytes() == png(5)


def test_a_server_in_trouble_is_asked_again_after_longer_and_longer_pauses(source, server, waits):
    server.script = [failing(503), failing(500), failing(429)]
    assert fetch_all(source, [1]) == {"fetched": 1}
    assert [wait for wait in waits if wait] == [1.0, 2.0, 4.0]


def test_retry_after_is_honoured_in_seconds_and_as_a_date(source, server, waits):
    server.script = [
        failing(503, Retry_After="7"),
        failing(503, Retry_After=formatdate(time.time() + 90, usegmt=True)),
    ]
    assert fetch_all(source, [1]) == {"fetched": 1}
    assert [wait for wait in waits if wait] == pytest.approx([7.0, 90.0], abs=2)


def test_a_server_that_asks_for_an_hour_is_left_alone(source, server, waits):
    server.script = [failing(503, Retry_After="3600")]
    with pytest.raises(UsageError, match="HTTP 503"):
        fetch_all(source, [1])
    assert len(server.requests) == 1 and not any(waits)


def test_silence_is_a_failure_that_may_pass(source, server):
    server.script = [silent]
    impatient = asking(source, timeout=0.1)
    assert fetch_all(impatient, [1]) == {"fetched": 1} and len(server.requests) == 2


def test_more_bytes_than_may_be_are_not_fetched(source, server):
    server.script = [sending(png(1))]
    with pytest.raises(UsageError, match=rf"{len(png(1))} bytes are too many, expected at most 1000"):
        fetch_all(asking(source, max_bytes=1000), [1])
    part(source, png(3)[:500])
    with pytest.raises(UsageError, match=rf"{len(png(3))} bytes are too many"):  # the rest is shorter
        fetch_all(asking(source, max_bytes=len(png(3)) - 1), [3])
    assert len(server.requests) == 2 and names(source) == ["0003.png.part"]


def endless(handler, content):
    """Promises nothing and does not stop until nobody listens."""
    handler.send_response(200)
    handler.end_headers()
    handler.close_connection = True
    with suppress(OSError):
        while True:
            handler.wfile.write(bytes(50_000))


def test_a_server_that_does_not_stop_is_stopped(source, server):
    server.script = [endless]
    with pytest.raises(UsageError, match="the server sent too many bytes, expected at most 1000000"):
        fetch_all(asking(source, max_bytes=1_000_000), [1])
    assert len(server.requests) == 1 and names(source) == []


def longer_than_promised(handler, content):
    """A length, and more bytes than that: they are no part of the answer."""
    sending(content)(handler, content)
    handler.wfile.write(b"and more" * 1000)
    handler.close_connection = True


def test_what_is_sent_beyond_the_promise_is_left_alone(source, server):
    server.script = [longer_than_promised]
    assert fetch_all(source, [1]) == {"fetched": 1} and (source.folder / "0001.png").read_bytes() == png(1)


def test_two_downloads_of_one_file_do_not_mix(source, server):
    """The second one finds the partial file in use and takes one of its own."""
    first_half, go_on = threading.Event(), threading.Event()

    def in_two_halves(handler, content):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[:500])
        first_half.set()
        go_on.wait(20)
        handler.wfile.write(content[500:])

    server.script = [in_two_halves]
    source.folder.mkdir()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(fetch, source, 1)
        assert first_half.wait(20)
        assert fetch(source, 1) == "fetched" and server.requests[1][1] is None
        assert names(source) == ["0001.png", "0001.png.part"]
        go_on.set()
        assert slow.result() == "fetched"
    assert names(source) == ["0001.png"] and (source.folder / "0001.png").read_bytes() == png(1)


def test_a_page_instead_of_a_picture_never_gets_a_pictures_name(source, server):
    server.script = [sending(b"<html>please sign in</html>")] * 9
    with pytest.raises(UsageError, match="the server did not send a complete PNG"):
        fetch_all(source, [1])
    assert names(source) == [] and len(server.requests) == source.policy.attempts


def test_a_refusal_is_said_at_once(source, server):
    server.script = [failing(403)]
    with pytest.raises(UsageError, match="HTTP 403 Forbidden"):
        fetch_all(source, [1])
    assert len(server.requests) == 1


def test_a_wrong_address_has_none_of_the_pictures(source):
    with pytest.raises(UsageError, match=r"the server has none of the 3 pictures \(404\)"):
        fetch_all(source, [20, 21, 22])


def test_the_command_says_what_it_did(source, server, capsys):
    arguments = [
        "--folder",
        str(source.folder),
        "--base-url",
        source.base_url,
        "--first",
        "9",
        "--last",
        "10",
    ]
    assert main(["pokemon", *arguments]) == 0
    assert f"{source.folder}: 1 fetched, 1 not there" in capsys.readouterr().out


def test_no_network_is_three_lines_exit_2_and_names_the_digits(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("VAE_LAB_DATA", str(tmp_path))
    assert main(["pokemon", "--base-url", "http://127.0.0.1:9"]) == 2  # discard: refused
    first, second, third = capsys.readouterr().err.strip().split("\n")
    assert "could not be downloaded" in first and "refused" in first
    assert "http://127.0.0.1:9/1.png" in second and str(tmp_path / "pokemon") in second
    assert "data=digits" in third


def test_a_folder_that_cannot_be_written_is_named(source, server, capsys, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert main(["pokemon", "--base-url", source.base_url, "--folder", str(tmp_path / "file")]) == 2
    assert f"{tmp_path}/file: cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digimon"], "invalid choice"),
        (["pokemon", "--first", "5", "--last", "4"], "expected 1 <= first <= last"),
        (["pokemon", "--first", "0"], "expected 1 <= first <= last"),
        (["pokemon", "--base-url", "file:///etc"], "expected an address with http"),
        (["pokemon", "--delay", "-1"], "expected 0 seconds or more"),
    ],
)
def test_wrong_arguments_exit_2_and_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_ctrl_c_exits_130_and_keeps_what_was_fetched(source, server):
    """The real command, in a process of its own, stopped while it waits for the third picture."""
    reached = threading.Event()

    def hanging(handler, content):
        reached.set()
        time.sleep(0.5)
        handler.close_connection = True

    server.script = [Handler.whole, Handler.whole, hanging]
    arguments = ["pokemon", "--base-url", source.base_url, "--folder", str(source.folder)]
    process = subprocess.Popen(
        [sys.executable, "-m", "vae_lab.data.download", *arguments], stderr=subprocess.PIPE, text=True
    )
    assert reached.wait(20)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130 and "same command to resume" in said and "Traceback" not in said
    assert names(source) == ["0001.png", "0002.png"]


def test_help_needs_no_torch_and_names_the_default_folder(tmp_path):
    code = (
        "import sys, runpy; sys.argv = ['download', '--help']\n"
        "try: runpy.run_module('vae_lab.data.download', run_name='__main__')\n"
        "finally: assert 'torch' not in sys.modules"
    )
    environment = os.environ | {"VAE_LAB_DATA": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0 and "--base-url" in done.stdout
    assert str(tmp_path / "pokemon") in done.stdout.replace("\n", "").replace(" ", "")
