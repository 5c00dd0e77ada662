"""Warnings of posterior collapse and the like: none on a healthy run, one with advice on a sick one; after resume."""

import math
import re
from types import SimpleNamespace

import pytest
from helpers.data import FAST
from helpers.steps import composed

from vae_lab.callbacks.collapse import CollapseMonitor
from vae_lab.runs.checkpoint_io import load_checkpoint

HEALTHY = {"val/elbo": -100.0, "val/kl": 20.0, "active_units": 8.0}
QUIET = ("callbacks.images=null", "logger=null")


class Module(SimpleNamespace):
    """What the callback asks of an experiment."""

    def __init__(self, log_px: float = -80.0, kl: float = 20.0, **metrics: float):
        train = {"train/elbo": log_px - kl, "train/log_px": log_px, "train/kl": kl}
        super().__init__(metrics=metrics, epoch_means=lambda: train, caveats={})


def validate(watch: CollapseMonitor, module: Module | None = None, sanity_checking: bool = False, **metrics: float):
    """The warnings that hold after a validation."""
    trainer = SimpleNamespace(sanity_checking=sanity_checking, is_global_zero=True)
    named = {name.replace("_", "/", 1) if name.startswith("val_") else name: value for name, value in metrics.items()}
    module = module or Module(**HEALTHY | named)
    watch.on_validation_end(trainer, module)
    return module.caveats.get("collapse", [])


@pytest.fixture
def said(logged_warnings):
    return lambda: list(logged_warnings)


SICK = [
    (
        {"active_units": 0.0, "val_kl": 0.001},
        ("posterior collapse", "active_units", "objective/beta_schedule=linear_warmup"),
    ),
    ({"val_kl": 0.05}, ("posterior collapse", "val/kl is 0.05 nats", "objective.free_bits=0.1", "objective.beta")),
    ({"val_elbo": -130.0}, ("overfitting", "30% below train/elbo", "callbacks=early_stopping")),
    ({"codes_used": 0.02}, ("dead codes", "only 2.0% of the codebook", "model.posterior.num_codes")),
    ({"label_gain": 0.01}, ("ignored labels", "0.01 nats", "model.latent_dim")),
]


NAN = float("nan")
HEALTHY_COURSES = {  # metrics of each validation
    "an autoencoder, whose KL is 0 by convention": [{"val_kl": 0.0, "active_units": NAN}],
    "beta is 0, so the KL is free": [{"val_kl": 0.01, "beta": 0.0}],
    "no active unit yet, but 94 nats about to be used": [{"active_units": 0.0, "val_kl": 94.0}],
    "a gap while validation rises": [{"val_elbo": elbo} for elbo in (-400.0, -300.0, -200.0, -150.0, -150.5)],
    "nothing to compare with": [{}, {"val_elbo": NAN}],
    "not overfitting but infinite": [{}, {"val_elbo": -math.inf}],
    "a density's ELBO that passes through zero": [{"log_px": 20.0, "val_elbo": elbo} for elbo in (0.0, -2.0, -2.0)],
    "a batch scored by its own variance": [
        {"log_px": 6000.0, "kl": 150.0, "val_elbo": elbo} for elbo in (5040.0, 4960.0) * 3
    ],
}


@pytest.mark.parametrize("course", HEALTHY_COURSES.values(), ids=HEALTHY_COURSES)
def test_a_healthy_course_gives_no_warning(course):
    watch = CollapseMonitor(patience=1)
    for metrics in course:
        assert validate(watch, **metrics) == []


def test_a_kl_threshold_of_zero_disables_the_rule():
    watch = CollapseMonitor(patience=1, min_kl=0.0)
    assert validate(watch, val_kl=0.0) == []


def test_missing_metrics_leave_the_other_rules():
    watch = CollapseMonitor(patience=1)
    assert len(validate(watch, Module(**{"val/elbo": -100.0, "val/kl": 0.001}))) == 1
    assert validate(watch, SimpleNamespace(metrics={}, epoch_means=dict, caveats={})) == []


def test_sanity_checks_do_not_count(said):
    watch = CollapseMonitor(patience=1)
    assert validate(watch, active_units=0.0, val_kl=0.0, sanity_checking=True) == said() == []


@pytest.mark.parametrize(("metrics", "words"), SICK)
def test_what_is_wrong_three_times_in_a_row_is_said_once(said, metrics, words):
    watch = CollapseMonitor()
    validate(watch)
    for _ in range(2):
        assert validate(watch, **metrics) == said() == []
    for _ in range(4):
        current = validate(watch, **metrics)
    (sentence,) = said()
    assert all(word in sentence for word in words)
    assert len(sentence) < 220
    assert current == [sentence.removeprefix("warning: ")]


def test_two_in_a_row_and_then_a_good_one_give_no_warning(said):
    watch = CollapseMonitor()
    for _ in range(5):
        validate(watch, active_units=0.0, val_kl=0.01)
        validate(watch, active_units=0.0, val_kl=0.01)
        validate(watch)
    assert said() == []


def test_a_warning_ends_with_its_cause_and_is_not_said_again(said):
    watch = CollapseMonitor(patience=1)
    for metrics, count in (({"active_units": 0.0, "val_kl": 0.01}, 1), ({}, 0)) * 2:
        assert len(validate(watch, **metrics)) == count
    assert len(said()) == 1


@pytest.mark.parametrize("metrics", [metrics for metrics, _ in SICK])
@pytest.mark.parametrize("stop", range(6))
def test_a_resumed_run_warns_as_one_that_never_stopped(said, metrics, stop):
    course = [{}, metrics, metrics, metrics, metrics, {}]
    whole, resumed = CollapseMonitor(), CollapseMonitor()
    for values in course:
        validate(whole, **values)
    expected = said()
    for at, values in enumerate(course):
        if at == stop:
            resumed, state = CollapseMonitor(), resumed.state_dict()
            resumed.load_state_dict(state)
            assert resumed.state_dict() == state
        validate(resumed, **values)
    found = said()[len(expected) :]
    assert found == expected
    assert len(found) == 1
    assert resumed.state_dict() == whole.state_dict()


def test_wrong_options_are_refused():
    for options in ({"patience": 0}, {"min_kl": -1.0}, {"max_gap": -0.1}):
        with pytest.raises(ValueError, match=r"callbacks\.collapse"):
            CollapseMonitor(**options)


def test_every_key_and_choice_in_the_advice_exists():
    sentences = []
    for metrics, _ in SICK:
        watch = CollapseMonitor(patience=1)
        validate(watch)
        sentences += validate(watch, **metrics)
    assert len(sentences) == 5
    choices = {found for text in sentences for found in re.findall(r"[\w./]+=[\w.]+", text)}
    keys = {found for text in sentences for found in re.findall(r"smaller (\w+\.\w+)", text)}
    assert len(choices) >= 4 and len(keys) >= 2
    config = composed(*sorted(choices))
    assert all(key.split(".")[1] in config[key.split(".")[0]] for key in keys)


def test_a_beta_that_is_too_large_is_told_on_the_console_and_in_the_log_after_a_resume_too(command):
    first = command(*FAST, *QUIET, "trainer.max_epochs=2", "objective.beta=1000")
    assert first.code == 0 and "posterior collapse" not in first.stderr
    resumed = command(f"resume={first.run}", "trainer.max_epochs=3")
    assert "posterior collapse: no latent dimension is active" in resumed.stderr
    assert "objective.beta" in resumed.stderr
    assert "posterior collapse" in (first.run / "train.log").read_text()
    state = load_checkpoint(first.run / "checkpoints/last.ckpt")["callbacks"]["CollapseMonitor"]
    assert state["counts"]["inactive"] == 3 and state["warned"] == ["inactive"]


def test_a_healthy_run_is_left_in_peace(command):
    done = command(*FAST, *QUIET, "trainer.max_epochs=6")
    assert done.code == 0, done.stderr
    assert "try objective" not in done.stderr and "early_stopping" not in done.stderr
