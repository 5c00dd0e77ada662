"""python -m vae_lab.report sweep=DIR: the numbers of its tables, states of jobs, and one page without requests."""

import csv
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from helpers.commands import QUIET, Command
from helpers.refusals import refused
from omegaconf import OmegaConf

from vae_lab.report import sweep_figures as figures
from vae_lab.report.sweep_importance import importance
from vae_lab.report.sweep_jobs import Job, read_jobs
from vae_lab.report.sweep_page import MAX_POINTS, group_table, shown_points
from vae_lab.report.sweep_table import compare, mean_text, shown
from vae_lab.runs.resume import exclusive_lock

BROWSER = shutil.which("chromium")
REPORT = {"module": "vae_lab.report"}
SWEEP = ("-m", *(word for word in QUIET if not word.startswith("callbacks.images")), "trainer.max_epochs=1",
         "callbacks.images.every_n_epochs=null", "callbacks.images.pictures=[samples,reconstructions]",
         "callbacks.images.projector=false", "callbacks.images.animations=false")  # fmt: skip


class Page(HTMLParser):
    """The addresses that a page refers to, its text without scripts, the sources of its pictures."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.text, self.pictures, self._in = [], "", [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self._in = tag if tag in ("script", "style") else self._in
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        self.pictures += [dict(attrs)["alt"]] if tag == "img" else []

    def handle_endtag(self, tag):
        self._in = "" if tag == self._in else self._in

    def handle_data(self, data):
        if self._in == "style":
            assert "url(" not in data and "@import" not in data
        self.text += "" if self._in else f"{data} "


def write_job(run, words, status="completed", best=None, config=None, **summary):
    """What a finished job leaves; status None: it is killed, or runs."""
    (run / ".hydra").mkdir(parents=True)
    stored = OmegaConf.from_dotlist([word.lstrip("+") for word in words if "/" not in word and "=" in word])
    stored = OmegaConf.merge({"optimized_metric": "val/elbo"}, stored, config or {})
    OmegaConf.save(stored, run / ".hydra/config.yaml")
    OmegaConf.save(list(words), run / ".hydra/overrides.yaml")
    if status:
        content = {"status": status, "metrics": {}, "best_metrics": best or {}, **summary}
        (run / "summary.json").write_text(json.dumps(content))
    return run


def write_sweep(folder, values, key="a"):
    """A job for each pair of values of the key and the seed, with this ELBO."""
    for number, ((choice, seed), elbo) in enumerate(values.items()):
        best = {"val/elbo": elbo} if elbo is not None else {}
        status = "completed" if elbo is not None else "failed"
        write_job(folder / str(number), [f"{key}={choice}", f"seed={seed}"], status, best, error="broken\nmore")
    return folder


def ranked(folder, metric=None):
    return compare(folder, read_jobs(folder), metric)


def lines_of(text, pattern):
    return [line.split() for line in text.splitlines() if re.search(pattern, line)]


@pytest.fixture(scope="module")
def swept(warm, tmp_path_factory):
    """A sweep of four jobs, and its report."""
    command = Command(warm, tmp_path_factory.mktemp("swept"))
    done = command(*SWEEP, "objective.beta=0.5,4", "seed=1,2", "hydra.sweep.dir=sw")
    assert done.code == 0, done.stderr
    return command("sweep=sw", **REPORT)


def test_a_sweep_on_one_page(swept):
    assert swept.code == 0, swept.stderr
    text = (swept.cwd / "sw/report.html").read_text()
    page = Page(text)
    assert page.addresses and all(it.startswith("data:") for it in page.addresses)
    assert "4 jobs: 4 completed" in page.text and "debug=fast" in page.text and len(text) < 15e6
    assert "samples of job" in page.pictures[0] and len(page.pictures) % 2 == 0
    assert "at least 8 completed jobs; there are 4" in page.text
    for plot in ("coordinates", "plane"):
        assert f'plot("{plot}"' in text


@pytest.mark.skipif(BROWSER is None, reason="no chromium")
def test_a_browser_draws_the_charts(swept):
    flags = (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader",
    )
    page = (swept.cwd / "sw/report.html").as_uri()
    command = [BROWSER, *flags, f"--user-data-dir={swept.cwd / 'browser'}", "--dump-dom", page]
    drawn = subprocess.run(command, capture_output=True, text=True, check=True, timeout=90).stdout
    drawn = re.sub(r"<script>.*?</script>", "", drawn, flags=re.DOTALL)
    assert drawn.count('class="plot js-plotly-plot"') == 2 and 'class="parcoords"' in drawn
    assert ">objective.beta<" not in drawn and ">beta</text>" in drawn and ">distortion: −log p(x|z)" in drawn  # noqa: RUF001


def test_the_tables_hold_the_summaries_best_first(swept):
    with (swept.cwd / "sw/sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        summary = json.loads((swept.cwd / "sw" / row["job"] / "summary.json").read_text())
        assert float(row["val/elbo"]) == summary["best_metrics"]["val/elbo"]
        assert float(row["test/kl"]) == summary["metrics"]["test/kl"] and row["status"] == "completed"
    elbos = [float(row["val/elbo"]) for row in rows]
    assert elbos == sorted(elbos, reverse=True) and {row["seed"] for row in rows} == {"1", "2"}
    shown = lines_of(swept.stdout, r"completed +\d +$")
    assert [line[-1] for line in shown] == [row["job"] for row in rows]
    means = lines_of(swept.stdout, "±")
    assert len(means) == 2 and [line[3] for line in means] == ["2", "2"]


def test_means_and_standard_errors_are_exact(tmp_path):
    elbos = {(1, 0): -10, (1, 1): -14, (1, 2): None, (2, 0): -11, (2, 1): -11, (3, 0): -9}  # by choice and seed
    sweep = ranked(write_sweep(tmp_path, elbos))
    best, second, third = sweep.groups()
    assert (best.values, second.values, third.values) == (("3",), ("2",), ("1",))
    assert third.mean("val/elbo") == (-12.0, 2.0) and len(third.scored) == 2 and len(third.jobs) == 3
    assert second.mean("val/elbo") == (-11.0, 0.0) and best.mean("val/kl") is None
    texts = [mean_text(group.mean("val/elbo"), "val/elbo") for group in (best, second, third)]
    assert texts == ["-9.00", "-11.00 ± 0.00", "-12.0 ± 2.0"]
    assert [job.name for job in sweep.jobs] == ["5", "0", "3", "4", "1", "2"]
    elbo = group_table(sweep)["rows"][2]
    log_px = [job._replace(metrics={"val/log_px": job.metrics.get("val/elbo", 0.0)}) for job in sweep.jobs]
    distortion = group_table(compare(tmp_path, log_px, "val/log_px"))
    assert elbo["numbers"] == ["-12.0 ± 2.0", "2 (1 missing)"]
    assert (distortion["titles"][0], distortion["rows"][2]["numbers"][0]) == ("val distortion", "12.0 ± 2.0")
    assert (shown("0.00012345678"), shown("1e-3"), shown("[1,2]"), shown("12345678")) == (
        "0.0001235", "1e-3", "[1,2]", "12345678",
    )  # fmt: skip
    assert mean_text((-98.76543, 0.01234), "val/elbo") == "-98.765 ± 0.012"


@pytest.mark.parametrize(
    ("metric", "order"), [("val/loss", "102"), ("test/mse", "102"), ("val/kl", "201"), (None, "201")]
)
def test_the_direction_is_that_of_a_search(tmp_path, metric, order):
    for number, value in enumerate((2.0, 1.0, 3.0)):
        names = ("val/loss", "val/kl", "test/mse", "test/elbo")  # no validation images: the test's ELBO
        best = dict.fromkeys(names, value)
        write_job(tmp_path / str(number), [f"a={number}"], best=best)
    assert "".join(job.name for job in ranked(tmp_path, metric).jobs) == order


def test_what_varies(tmp_path):
    write_job(tmp_path / "0", ["data=mnist", "a=1e-3", "+b=x", "seed=1"], config={"hidden": {"c": 1, "d": 2}})
    write_job(tmp_path / "1", ["data=mnist", "a=0.001", "+b=x", "seed=2"], config={"hidden": {"c": 5, "d": 2}})
    write_job(tmp_path / "2", ["data=mnist", "a=0.001", "+b=y", "seed=2"], config={"hidden": {"c": 1, "d": 3}})
    sweep = ranked(tmp_path)
    assert sweep.keys == ["b", "hidden.c", "seed"] and sweep.constant == {"data": "mnist", "a": "1e-3"}
    assert [job.value("hidden.c") for job in sweep.jobs] == ["1", "5", "1"]
    assert figures.short_names(["model.x", "data.x", "b.y"]) == {"model.x": "model.x", "data.x": "data.x", "b.y": "y"}


def test_jobs_that_are_not_completed(command):
    """Three that run, of which one is seen by its lock alone; one killed, one queued, two failed."""
    folder = command.cwd / "sw"
    table = "epoch,step,val/elbo,val/kl\n1,2,-90,5\n2,4,-80,6\n3,6,-85,7\n4,8,-1"
    old = {}
    for name, status in (("0", None), ("1", None), ("2", "interrupted"), ("3", "failed"), ("4", None)):
        run = write_job(folder / name, [f"a={name}", "seed=0"], status, error="ValueError: <b>broken\nmore")
        (run / "metrics.csv").write_text(table)
        old[name] = run
    for name in "12":
        for path in (folder / name, folder / name / "metrics.csv"):
            os.utime(path, (0, 0))
    (folder / "4/summary.json").write_text('{"status": "comp')
    task = {"overrides": {"task": ["a=0,1,2,3,4,5", "seed=0"]}}
    sweeper = {"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper", "params": None}
    OmegaConf.save({"hydra": {**task, "sweeper": sweeper}}, folder / "multirun.yaml")
    with exclusive_lock(folder / "2"):
        done = command("sweep=sw", **REPORT)
    assert done.code == 0, done.stderr
    with (folder / "sweep.csv").open() as file:
        rows = {row["job"]: row for row in csv.DictReader(file)}
    states = {name: row["status"] for name, row in rows.items()}
    assert states == {"0": "running", "1": "interrupted", "2": "running", "3": "failed", "4": "failed", "5": "queued"}
    assert rows["0"]["val/elbo"] == "-80.0" and rows["0"]["val/kl"] == "6.0" and rows["5"]["a"] == "5"
    assert "failed: job 3 (a=3)\n  ValueError: <b>broken\n" in done.stdout and done.stdout.count("more") == 0
    assert "summary.json cannot be read" in done.stdout
    page = Page((folder / "report.html").read_text())
    assert "ValueError: <b>broken" in page.text and "No job is completed yet" in page.text
    assert "6 jobs: 2 running, 1 interrupted, 1 queued, 2 failed" in page.text


def point(name, rate, distortion, folder=None, status="completed"):
    return figures.Point(Job(name, folder, status, (f"beta={name}",)), rate, distortion)


def test_the_front_of_known_points(tmp_path):
    front = [point("a", 1, 9), point("b", 2, 5), point("c", 4, 3), point("d", 8, 2.5)]
    beaten = [point("e", 2, 6), point("f", 3, 5), point("g", 9, 2.5), point("h", 0, 0, status="running")]
    found = [*beaten[:2], *front[::-1], *beaten[2:]]
    assert figures.pareto_front(found) == front
    plane = figures.rate_distortion(found, front, ["beta"])
    drawn = {trace["name"]: trace for trace in plane.traces if "name" in trace}
    assert drawn["front"]["x"] == [1, 2, 4, 8] and drawn["front"]["y"] == [9, 5, 3, 2.5]
    assert drawn["not completed"]["x"] == [0] and "beta=e" in drawn["jobs"]["text"][0]
    for line in plane.traces[:3]:
        assert line["x"][0] + line["y"][0] == pytest.approx(line["x"][1] + line["y"][1])
    many = [point(str(number), number, -number, tmp_path) for number in range(40)]
    shown = shown_points(many, ["beta"])
    assert len(shown) == MAX_POINTS and (shown[0].point, shown[-1].point) == (many[0], many[-1])


def test_the_key_that_alone_matters_is_the_most_important(tmp_path):
    values = [(width, prior, seed) for width in (2, 4, 8) for prior in ("vamp", "normal") for seed in (0, 1)]
    for number, (width, prior, seed) in enumerate(values):
        words = [f"model.width={width}", f"model/prior={prior}", f"seed={seed}"]
        write_job(tmp_path / str(number), words, best={"val/elbo": -5.0 * (prior == "vamp")})
    sweep = ranked(tmp_path)
    found = importance(sweep, None)
    assert next(iter(found.values)) == "model/prior" and found == importance(sweep, None)
    assert found.values["model/prior"] > 100 * max(abs(found.values["seed"]), abs(found.values["model.width"]))
    assert figures.importance_bars(found).traces[0]["y"][-1] == "model/prior"
    axes = figures.parallel_coordinates(sweep).traces[0]["dimensions"]
    assert [it["label"] for it in axes] == ["width", "model/prior", "seed", "val/elbo"]
    assert (
        figures.axis("x", ["[64]", "[128]"])["ticktext"] == ["[64]", "[128]"]
        and axes[1]["ticktext"] == ["normal", "vamp"]
        and set(axes[1]["values"]) == {0, 1}
    )
    few = compare(tmp_path, read_jobs(tmp_path)[:7], None)
    assert not importance(few, None).values and "there are 7" in importance(few, None).method


def test_axes():
    rates = figures.axis("lr", ["1e-4", "1e-3", "1e-2"])
    assert rates["label"] == "lr (log)" and rates["ticktext"] == ["0.0001", "0.001", "0.01"]
    assert rates["values"] == rates["tickvals"] == pytest.approx([-4, -3, -2])
    assert figures.axis("beta", ["0.5", "1", "2"])["tickvals"] == [0.5, 1, 2]
    assert len(figures.axis("x", [str(number) for number in range(100)])["tickvals"]) < 10
    assert figures.axis("x", ["3", "3"])["range"] == [2, 4]


def test_a_search_has_its_studys_states_and_importances(command):
    """A trial that was refused has no run directory but what it printed."""
    import optuna

    folder = command.cwd / "study"
    folder.mkdir()
    study = optuna.create_study(study_name="study", storage=f"sqlite:///{folder}/study.db", direction="maximize")
    study.set_user_attr("request", {"metric": "val/elbo"})
    space = {name: optuna.distributions.FloatDistribution(0, 20) for name in "ab"}
    for number in range(11):
        params, state = {"a": float(number), "b": float(number % 3)}, "COMPLETE" if number < 9 else "PRUNED"
        if number == 10:
            (folder / "10").mkdir()
            (folder / "10/output.txt").write_text("noise\nerror: a: found 10\n  expected less")
        else:
            status = "completed" if state == "COMPLETE" else "interrupted"
            words = ["data=mnist", *(f"{key}={value}" for key, value in params.items())]
            write_job(folder / str(number), words, status, {"val/elbo": -number})
        trial = optuna.trial.create_trial(
            params=params, distributions=space, value=None if number == 10 else -float(number),
            state=optuna.trial.TrialState[state if number < 10 else "FAIL"], user_attrs={"run": str(number)},
        )  # fmt: skip
        study.add_trial(trial)
    done = command("sweep=study", **REPORT)
    assert done.code == 0, done.stderr
    assert "pruned" in done.stdout and "failed: job 10 (a=10.0 b=1.0)\n  a: found 10\n" in done.stdout
    page = Page((folder / "report.html").read_text())
    assert "functional ANOVA" in page.text and "9 completed, 1 pruned, 1 failed" in page.text
    assert "All of them with  data=mnist" in " ".join(page.text.split("\n"))
    (folder / "study.db").write_bytes(b"no database")
    assert command("sweep=study", **REPORT).code == 0
    assert "random forest" in Page((folder / "report.html").read_text()).text


def test_wrong_sweeps(command):
    for name, metric in (("0", "val/elbo"), ("1", "val/loss")):
        write_job(command.cwd / "sw" / name, [f"optimized_metric={metric}"], best={"val/elbo": -1.0, "val/loss": 1.0})
    (command.cwd / "empty/.hydra").mkdir(parents=True)  # as of a sweep that was refused
    (command.cwd / "file").touch()
    for words, texts in (
        (["sweep=nowhere"], ["sweep=nowhere: no such folder", "outputs/sweeps/DATE_TIME"]),
        (["sweep=empty"], ["sweep=empty: there is no run in it"]),
        (["sweep=sw/0"], ["sw/0: a single run", "python -m vae_lab.report sw/0"]),
        (["sweep=sw"], ["different optimized metrics", "val/loss: job 1", "choose one: metric=val/elbo"]),
        (["sweep=sw", "metric=val/elbo", "out=file/page.html"], ["file/page.csv: cannot be written", "out=FILE.html"]),
        (["sweep=sw", "metric=val/elb"], ["metric=val/elb: no job has it", "expected one of val/elbo, val/loss"]),
    ):
        refused(command(*words, **REPORT), *texts)
    assert not list(command.cwd.rglob("report.html")) and not list(command.cwd.rglob("sweep.csv"))
    assert command("sweep=sw", "metric=val/loss", "out=pages/mine.html", **REPORT).code == 0
    assert {path.name for path in (command.cwd / "pages").iterdir()} == {"mine.html", "mine.csv"}
