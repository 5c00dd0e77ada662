"""Downloads from a local server: whole files or none, those present skipped, and what is said otherwise."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vae_lab.data import download
from vae_lab.data.download import fetch_pictures, main
from vae_lab.utils.errors import UsageError


def png(number):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (20, 20, 4), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def pictures(server):
    """The server has 1.png to 9.png."""
    have = {f"{number}.png": png(number) for number in range(1, 10)}
    server.answer = lambda name: (200, have[name], None) if name in have else (404, b"", None)
    return server


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_every_picture_is_fetched_once_and_a_missing_number_is_counted(pictures, tmp_path):
    assert fetch_pictures(pictures.url, tmp_path / "p", range(8, 12)) == {"fetched": 2, "not there": 2}
    assert names(tmp_path / "p") == ["0008.png", "0009.png"] and (tmp_path / "p/0008.png").read_bytes() == png(8)
    assert fetch_pictures(pictures.url, tmp_path / "p", [7, 8, 9]) == {"fetched": 1, "already here": 2}
    assert pictures.asked[4:] == ["7.png"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((200, png(1), 10**6), r"IncompleteRead\(\d+ bytes read, \d+ more expected\)"),
        ((200, png(1)[:-30], None), "did not send a complete PNG"),
        ((200, b"<html>please sign in</html>", None), "did not send a complete PNG"),
        ((403, b"", None), "HTTP Error 403"),
        ((None, b"", None), "timed out"),
    ],
)
def test_what_is_not_a_whole_picture_never_gets_a_name(pictures, tmp_path, monkeypatch, answer, reason):
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    good = pictures.answer
    pictures.answer = lambda name: answer if name == "2.png" else good(name)
    with pytest.raises(UsageError, match=rf"could not be downloaded: .*{reason}"):
        fetch_pictures(pictures.url, tmp_path, [1, 2])
    assert names(tmp_path) == ["0001.png"]


def test_a_wrong_address_has_none_of_the_pictures_and_a_file_is_no_folder(pictures, tmp_path):
    with pytest.raises(UsageError, match=r"the server has none of the 3 \(404\)"):
        fetch_pictures(pictures.url, tmp_path, [20, 21, 22])
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match=rf"File exists.*\n.*to save in {tmp_path}/file"):
        fetch_pictures(pictures.url, tmp_path / "file", [1])


def test_the_command_says_what_it_did(pictures, tmp_path, capsys):
    folder = tmp_path / "p"
    assert main(["pokemon", f"--folder={folder}", f"--base-url={pictures.url}/", "--first=9", "--last=10"]) == 0
    assert f"{folder}: 1 fetched, 1 not there" in capsys.readouterr().out


def test_no_network_is_three_lines_exit_2_and_names_the_digits(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("VAE_LAB_DATA", str(tmp_path))
    assert main(["pokemon", "--base-url", "http://127.0.0.1:9"]) == 2  # discard: refused
    first, second, third = capsys.readouterr().err.strip().split("\n")
    assert "could not be downloaded" in first and "refused" in first
    assert "http://127.0.0.1:9/1.png" in second and str(tmp_path / "pokemon") in second
    assert "data=digits" in third


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digimon"], "invalid choice"),
        (["pokemon", "--first", "5", "--last", "4"], "expected 1 <= first <= last"),
        (["pokemon", "--first", "0"], "expected 1 <= first <= last"),
        (["pokemon", "--base-url", "file:///etc"], "expected an address with http"),
    ],
)
def test_wrong_arguments_exit_2_and_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_ctrl_c_exits_130_and_keeps_what_was_fetched(pictures, tmp_path, monkeypatch, capsys):
    fetch = download.fetch_file

    def stopped(urls, path):
        if path.name == "0003.png":
            raise KeyboardInterrupt
        fetch(urls, path)

    monkeypatch.setattr(download, "fetch_file", stopped)
    assert main(["pokemon", "--base-url", pictures.url, "--folder", str(tmp_path)]) == 130
    assert "same command to resume" in capsys.readouterr().err
    assert names(tmp_path) == ["0001.png", "0002.png"]


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
