"""Warnings of posterior collapse and the like: none on a healthy run, one with advice on a sick one; after resume."""

import math
import re
from types import SimpleNamespace

import pytest
from helpers.data import FAST
from helpers.steps import composed

from vae_lab.callbacks.collapse import CollapseMonitor, far_from_prior
from vae_lab.objectives.bounds import elbo
from vae_lab.objectives.objective import Objective
from vae_lab.objectives.schedules import Constant
from vae_lab.runs.checkpoint_io import load_checkpoint

HEALTHY = {
    **{"train/elbo": -100.0, "train/log_px": -80.0, "train/kl": 20.0},
    **{"val/elbo": -100.0, "val/kl": 20.0, "active_units": 8.0},
}
INACTIVE = {"active_units": 0.0, "val/kl": 0.001}
SICK = {
    "inactive": (INACTIVE, ("posterior collapse", "active_units", "objective/beta_schedule=linear_warmup")),
    "no KL": (
        {"val/kl": 0.05},
        ("posterior collapse", "val/kl is 0.05 nats", "objective.free_bits=0.1", "objective.beta"),
    ),
    "overfitting": ({"val/elbo": -130.0}, ("overfitting", "30% below train/elbo", "callbacks=early_stopping")),
    "codes": ({"codes_used": 0.02}, ("dead codes", "only 2.0% of the codebook", "model.posterior.num_codes")),
    "labels": ({"label_gain": 0.01}, ("ignored labels", "0.01 nats", "model.latent_dim")),
}
DENSITY = {"train/log_px": 20.0, "train/elbo": 0.0}
OPTIMAL_VARIANCE = {"train/log_px": 6000.0, "train/kl": 150.0, "train/elbo": 5850.0}
HEALTHY_COURSES = {  # metrics of each validation
    "an autoencoder, whose KL is 0 by convention": [{"val/kl": 0.0, "active_units": math.nan}],
    "beta is 0, so the KL is free": [{"val/kl": 0.01, "beta": 0.0}],
    "no active unit yet, but 94 nats about to be used": [{"active_units": 0.0, "val/kl": 94.0}],
    "a gap while validation rises": [{"val/elbo": elbo} for elbo in (-400.0, -300.0, -200.0, -150.0, -150.5)],
    "nothing to compare with": [{}, {"val/elbo": math.nan}],
    "not overfitting but infinite": [{}, {"val/elbo": -math.inf}],
    "a density's ELBO that passes through zero": [{**DENSITY, "val/elbo": elbo} for elbo in (0.0, -2.0, -2.0)],
    "a batch scored by its own variance": [{**OPTIMAL_VARIANCE, "val/elbo": elbo} for elbo in (5040.0, 4960.0) * 3],
}
QUIET = ("callbacks.images=null", "logger=null")


def validate(watch, metrics=(), healthy=HEALTHY, sanity_checking=False):
    """The warnings that hold after a validation."""
    module = SimpleNamespace(
        metrics=healthy | dict(metrics), epoch_means=dict, caveats={}, config={}, objective=Objective(elbo, Constant())
    )
    watch.on_validation_end(SimpleNamespace(sanity_checking=sanity_checking, is_global_zero=True), module)
    return module.caveats.get("collapse", [])


@pytest.mark.parametrize("course", HEALTHY_COURSES.values(), ids=HEALTHY_COURSES)
def test_a_healthy_course_gives_no_warning(course):
    watch = CollapseMonitor(patience=1)
    assert [validate(watch, metrics) for metrics in course] == [[]] * len(course)


def test_a_kl_threshold_of_zero_a_sanity_check_and_missing_metrics_give_no_warning():
    assert validate(CollapseMonitor(patience=1, min_kl=0.0), {"val/kl": 0.0}) == []
    watch = CollapseMonitor(patience=1)
    assert validate(watch, INACTIVE, sanity_checking=True) == validate(watch, healthy={}) == []
    assert len(validate(watch, {"val/elbo": -100.0, "val/kl": 0.001}, healthy={})) == 1


@pytest.mark.parametrize(("metrics", "words"), SICK.values(), ids=SICK)
def test_what_is_wrong_three_times_in_a_row_is_said_once(logged_warnings, metrics, words):
    watch = CollapseMonitor()
    validate(watch)
    for _ in range(2):
        assert validate(watch, metrics) == logged_warnings == []
    for _ in range(4):
        current = validate(watch, metrics)
    (sentence,) = logged_warnings
    assert all(word in sentence for word in words)
    assert len(sentence) < 220
    assert current == [sentence]


def test_a_good_validation_ends_the_count_and_the_warning_which_is_not_said_again(logged_warnings):
    watch = CollapseMonitor(patience=2)
    for _ in range(3):
        assert validate(watch, INACTIVE) == validate(watch) == []
    for _ in range(2):
        counts = [len(validate(watch, metrics)) for metrics in (INACTIVE, INACTIVE, {})]
        assert counts == [0, 1, 0]
    assert len(logged_warnings) == 1


@pytest.mark.parametrize("metrics", [metrics for metrics, _ in SICK.values()], ids=SICK)
@pytest.mark.parametrize("stop", range(6))
def test_a_resumed_run_warns_as_one_that_never_stopped(logged_warnings, metrics, stop):
    course = [{}, metrics, metrics, metrics, metrics, {}]
    whole, resumed = CollapseMonitor(), CollapseMonitor()
    for at, values in enumerate(course):
        if at == stop:
            state, resumed = resumed.state_dict(), CollapseMonitor()
            resumed.load_state_dict(state)
        assert validate(whole, values) == validate(resumed, values)
        assert resumed.state_dict() == whole.state_dict()
    first, second = logged_warnings
    assert first == second


def test_wrong_options_are_refused():
    for options in ({"patience": 0}, {"min_kl": -1.0}, {"max_gap": -0.1}):
        with pytest.raises(ValueError, match=r"callbacks\.collapse"):
            CollapseMonitor(**options)


def test_every_key_and_choice_in_the_advice_exists():
    sentences = []
    for metrics, _ in SICK.values():
        watch = CollapseMonitor(patience=1)
        validate(watch)
        sentences += validate(watch, metrics)
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


@pytest.mark.parametrize(
    ("beta", "kl", "stage", "regularized", "warns"),
    [(1e-3, 400.0, None, False, True), (0.0, 400.0, None, False, True), (0.0, 400.0, None, True, False),
     (1e-3, 400.0, {"_target_": "x"}, False, False), (1e-3, 20.0, None, False, False),
     (1.0, 400.0, None, False, False)],
)  # fmt: skip
def test_next_to_no_weight_on_a_large_kl_is_told_of(beta, kl, stage, regularized, warns):
    objective = SimpleNamespace(beta=beta, regularizers=["mmd"] * regularized)
    found = far_from_prior(objective, {"val/kl": kl}, {"second_stage": stage})
    assert bool(found) == warns
    assert not warns or "second_stage=flow" in found["far_from_prior"]
