"""vae_lab.report: one page that shows what the run has written, and makes no request."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from helpers.commands import QUIET
from helpers.refusals import refused
from helpers.steps import model_of
from PIL import Image

from vae_lab import load
from vae_lab.core import ImageSpec
from vae_lab.figures.context import ExampleImages, FigureContext, FigureSizes
from vae_lab.figures.mosaic import to_pixels
from vae_lab.figures.pictures import PICTURES
from vae_lab.inference import images_of
from vae_lab.models.base import evaluation_mode
from vae_lab.report.explorer import explorer
from vae_lab.report.gallery import DESCRIPTIONS

pytest.importorskip("plotly")
REPORT = {"module": "vae_lab.report"}
DATA = re.compile(r"data:image/(png|webp|jpeg|gif);base64,")


class Page(HTMLParser):
    """Elements by tag, numbers of tables, and the JSON in scripts."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.json, self.numbers = [], [], {}
        self._script = self._row = None
        self.text = path.read_text()
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        self._script = attributes if tag == "script" else None
        if tag == "tr":
            self._row = None
        if "data-value" in attributes:
            self.numbers.setdefault(self._row, []).append(float(attributes["data-value"]))

    def handle_endtag(self, tag):
        self._script = None

    def handle_data(self, data):
        if self._script is not None and self._script.get("type") == "application/json":
            self.json.append(json.loads(data))
        elif self._row is None and data.strip():
            self._row = data.strip()

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def explorers(self):
        return [it for it in self.json if "sheets" in it]

    @property
    def charts(self):
        (found,) = [it for it in self.json if any(name.startswith(("curve", "means", "kl")) for name in it)]
        return found


def pixels_of(address):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB"))


def frame(explorer, start, index):
    height, width, columns = explorer["height"], explorer["width"], explorer["columns"]
    top, left = index // columns * height, index % columns * width
    return pixels_of(explorer["sheets"][start])[top : top + height, left : left + width].astype(float)


@pytest.fixture
def run(fast_run, tmp_path):
    return shutil.copytree(fast_run.run, tmp_path / "run")


def test_a_page_shows_the_run_and_needs_nothing_else(run, command):
    done = command(str(run), **REPORT)
    assert done.code == 0 and "report.html" in done.stdout, done.stderr
    page, summary = Page(run / "report.html"), json.loads((run / "summary.json").read_text())
    assert len(page.text) < 15e6
    images = page.all("img")
    assert len(images) > 10 and all(DATA.match(it["src"]) and it["alt"] for it in images)
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "data"):
            assert not re.match(r"(https?:)?//|\w+\.", attributes.get(name, "")), (tag, attributes)
    assert "@import" not in page.text and not re.search(r"<script[^>]*\ssrc=", page.text)
    for name, value in summary["metrics"].items():
        if name.startswith("test/") and not name.endswith("_stderr"):
            assert page.numbers[name] == [value]
    assert page.numbers["val/elbo"] == [summary["best_metrics"]["val/elbo"]]
    elbo = {trace["name"]: trace for trace in page.charts["curve-0"][0]}
    rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    column = rows[0].index("val/elbo")
    assert elbo["val"]["y"] == [float(row[column]) for row in rows[1:]]
    assert "python -m vae_lab.train debug=fast trainer.num_threads=1" in page.text


def test_the_frames_are_what_the_model_decodes(run, command):
    assert command(str(run), **REPORT).code == 0
    page, lab = Page(run / "report.html"), load(run)
    (found,) = page.explorers
    sliders = [it for it in page.all("input") if it["type"] == "range" and "data-values" in it]
    names = [it["alt"] for it in page.all("img") if it["alt"].startswith("image ")]
    x, _ = images_of(lab, {}).example_images("test", 1000)
    index = int(names[2].split()[1].rstrip(","))
    mean = lab.encode(x[[index]]).mean[0]
    start = [json.loads(it["data-values"])[2] for it in sliders]
    dims = [int((mean - value).abs().argmin()) for value in start]
    assert len(set(dims)) == len(sliders) == 8
    steps = found["columns"]
    for row, step in ((0, 0), (3, steps // 2), (7, steps - 1)):
        z = mean.clone()
        low, high = (float(sliders[row][end]) for end in ("min", "max"))
        z[dims[row]] = low + (high - low) * step / (steps - 1)
        error = np.abs(
            frame(found, 2, row * steps + step) - to_pixels(lab.decode(z[None]).as_subclass(torch.Tensor))[0]
        )
        assert error.mean() < 2 and error.max() < 25
    for column, image in enumerate((lab.reconstruct(x[[index]]).as_subclass(torch.Tensor), x[[index]])):
        assert np.abs(frame(found, 2, len(sliders) * steps + column) - to_pixels(image)[0]).mean() < 2


def test_two_runs_side_by_side(run, command, tmp_path):
    assert command(*QUIET, "model.latent_dim=2", "seed=3", "hydra.run.dir=other").code == 0
    done = command(str(run), "other", **REPORT)
    assert done.code == 0, done.stderr
    page = Page(tmp_path / "report.html")
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (run, tmp_path / "other")]
    assert page.numbers["test/elbo"] == [it["metrics"]["test/elbo"] for it in summaries]
    assert {trace["name"] for trace in page.charts["curve-0"][0]} == {"A train", "A val", "B train", "B val"}
    assert [it["kind"] for it in page.explorers] == ["sliders", "map"]
    assert '<th scope="row">seed</th>' in page.text and "model.latent_dim" in page.text
    assert "drawn for this page" in page.text  # of the run that was trained without pictures


def test_runs_that_lack_something(run, command, tmp_path):
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"status": "failed", "error": "RunFailed: <b>nan</b>"}))
    (run / "checkpoints" / "best.ckpt").unlink()
    assert command(str(run), **REPORT).code == 0
    assert "last weights, of step 6" in Page(run / "report.html").text
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    saved["state_dict"]["model.decoder.0.weight"].fill_(torch.nan)
    torch.save(saved, run / "checkpoints" / "last.ckpt")
    assert command(str(run), **REPORT).code == 0
    assert "are not finite" in Page(run / "report.html").text
    shutil.rmtree(run / "checkpoints")
    assert command(str(run), **REPORT).code == 0
    page = Page(run / "report.html")
    assert "&lt;b&gt;nan" in page.text and "No model" in page.text and not page.explorers
    assert len(page.all("img")) > 8 and "curve-0" in page.charts
    shutil.rmtree(run / "images")
    for name in ("summary.json", "metrics.csv"):
        (run / name).unlink()
    assert command(str(run), **REPORT).code == 0
    assert "unfinished" in Page(run / "report.html").text


def test_an_export_and_data_that_have_moved(command, pictures, tmp_path):
    train = (*QUIET, "model=mlp", "data=folder", f"data.folder={pictures}", "data.image_size=16", "hydra.run.dir=run")
    assert command(*train).code == 0
    pictures.rename(tmp_path / "moved")
    assert command("run", **REPORT).code == 0
    page = Page(tmp_path / "run" / "report.html")
    assert "No images, so no latent space" in page.text and not page.explorers
    refused(command("run", "data.folder=nowhere", **REPORT), "nowhere")
    assert command("run", module="vae_lab.export").code == 0
    assert command("run/export", f"data.folder={tmp_path / 'moved'}", "out=of_export.html", **REPORT).code == 0
    assert len(Page(tmp_path / "of_export.html").explorers) == 1


def test_wrong_requests(run, command, tmp_path):
    for name in ("folder", "sweep"):
        (tmp_path / name).mkdir()
    (tmp_path / "sweep" / "multirun.yaml").touch()
    before = (run / "summary.json").read_bytes()
    for words, found in (
        ((), ("neither",)),
        (("nowhere",), ("Not a run directory", "nowhere")),
        (("sweep",), ("a sweep", "sweep=DIR")),
        ((str(tmp_path),), ("Not a run directory",)),
        ((str(run), "sweep=x"), ("both",)),
        ((str(run), "out=folder"), ("out=folder", "a folder")),
        ((str(run), f"out={run}/summary.json"), ("summary.json", ".html")),
        ((str(run), "checkpoint=none"), ("none.ckpt",)),
        ((str(run), "prior=fitted"), ("no prior was fitted",)),
        ((str(run),) * 9, ("9 runs", "at most 8")),
    ):
        refused(command(*words, **REPORT), *found)
    assert (run / "summary.json").read_bytes() == before and not (run / "report.html").exists()
    file = tmp_path / "file"
    file.touch()
    done = command(str(run), f"out={file}/page.html", **REPORT)
    refused(done, f"{file}/page.html: cannot be written", "out=FILE.html")


KINDS = {
    "map of each class": (("model.latent_dim=2", "model.conditional=true"), ("map", 3, 2)),
    "line": (("model.latent_dim=1",), ("map", 1, 1)),
    "sliders of a conditional model": (("model.latent_dim=5", "model.conditional=true"), ("sliders", 6, 5)),
    "sphere": (("model/posterior=von_mises_fisher", "model/prior=uniform_sphere"), ("sliders", 3, 1)),
    "latent map": (("model=spatial",), ("sliders", 3, 1)),
    "ladder": (("model=ladder",), ("sliders", 8, 1)),
    "codes": (("model=spatial", "model/posterior=nearest_code", "model/prior=uniform_codes"), None),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_can_be_explored(kind, one_thread):
    overrides, expected = KINDS[kind]
    torch.manual_seed(0)
    model = model_of(*overrides, image=ImageSpec(1, 16, 16, num_classes=3))
    examples = ExampleImages(torch.rand(6, 1, 16, 16), torch.tensor([2, 2, 0, 1, 1, 0]), ("a", "b", "c"))
    with evaluation_mode(model, 0):
        context = FigureContext(model, examples, FigureSizes())
        found = explorer(context, 300_000)
        if expected is None:
            assert "codes" in found
            return
        assert (found.kind, len(found.starts), len(found.axes)) == expected
        rows = {"map": found.columns ** (len(found.axes) - 1), "sliders": len(found.axes) + 1}[found.kind]
        assert all(pixels_of(it).shape == (rows * 16, found.columns * 16, 3) for it in found.sheets)
        if kind == "map of each class":
            (x, y), n = found.axes, found.columns
            z = torch.tensor([x.high, y.low + (y.high - y.low) / (n - 1)])
            image = to_pixels(context.space.decode(z[None], torch.tensor(1)))[0]
            as_json = {"height": 16, "width": 16, "columns": n, "sheets": found.sheets}
            assert np.abs(frame(as_json, 1, 2 * n - 1) - image).mean() < 4  # noise: the model is untrained


def test_every_picture_has_words():
    assert PICTURES.keys() <= DESCRIPTIONS.keys()
