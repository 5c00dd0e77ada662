"""The watch over collapse: silent on a healthy run, one sentence that helps on a sick one, the same after a resume."""

import re
from types import SimpleNamespace

import pytest
from helpers.data import FAST
from helpers.steps import composed

from vae_lab.callbacks.collapse import RULES, CollapseMonitor, MetricsOrNaN
from vae_lab.runs.checkpoint_io import load_checkpoint

HEALTHY = {"val/elbo": -100.0, "val/kl": 20.0, "active_units": 8.0}
QUIET = ("callbacks.images=null", "logger=null")


class Module(SimpleNamespace):
    """What the callback asks of an experiment."""

    def __init__(self, log_px: float = -80.0, kl: float = 20.0, **metrics: float):
        train = {"train/elbo": log_px - kl, "train/log_px": log_px, "train/kl": kl}
        super().__init__(metrics=metrics, epoch_means=lambda: train)


def validate(watch: CollapseMonitor, module: Module | None = None, sanity_checking: bool = False, **metrics: float):
    trainer = SimpleNamespace(sanity_checking=sanity_checking, is_global_zero=True)
    named = {name.replace("_", "/", 1) if name.startswith("val_") else name: value for name, value in metrics.items()}
    watch.on_validation_end(trainer, module or Module(**HEALTHY | named))


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


@pytest.mark.parametrize("metrics", [{"val_kl": 0.0, "active_units": float("nan")}, {"val_kl": 0.01, "beta": 0.0}])
def test_a_kl_that_nobody_asked_for_is_no_alarm(said, metrics):
    """Of an autoencoder it is 0 by convention, and at beta = 0 it is free."""
    watch = CollapseMonitor(patience=1)
    validate(watch, **metrics)
    assert said() == []


@pytest.mark.parametrize(("metrics", "words"), SICK)
def test_what_is_wrong_three_times_in_a_row_is_said_once(said, metrics, words):
    watch = CollapseMonitor()
    validate(watch)
    for _ in range(2):
        validate(watch, **metrics)
    assert said() == watch.warnings == []
    for _ in range(4):
        validate(watch, **metrics)
    (sentence,) = said()
    assert all(word in sentence for word in words)
    assert len(sentence) < 220
    assert watch.warnings == [sentence.removeprefix("warning: ")]


def test_two_in_a_row_and_then_a_good_one_are_no_alarm(said):
    watch = CollapseMonitor()
    for _ in range(5):
        validate(watch, active_units=0.0, val_kl=0.01)
        validate(watch, active_units=0.0, val_kl=0.01)
        validate(watch)
    assert said() == []


def test_what_is_over_is_not_current_and_is_not_said_again(said):
    watch = CollapseMonitor(patience=1)
    validate(watch, active_units=0.0, val_kl=0.01)
    assert len(watch.warnings) == 1
    validate(watch)
    assert watch.warnings == []
    validate(watch, active_units=0.0, val_kl=0.01)
    assert len(watch.warnings) == len(said()) == 1


def test_sanity_checks_do_not_count(said):
    watch = CollapseMonitor(patience=1)
    validate(watch, active_units=0.0, val_kl=0.0, sanity_checking=True)
    assert watch.warnings == said() == []


def test_one_cause_is_one_sentence():
    watch = CollapseMonitor(patience=1)
    validate(watch, active_units=0.0, val_kl=0.001)
    assert len(watch.warnings) == 1


def test_a_start_far_from_the_prior_is_no_collapse():
    """The first epochs of conv on 128x128 pictures: no active unit, and 90 nats that are about to be used."""
    watch = CollapseMonitor(patience=1)
    validate(watch, active_units=0.0, val_kl=94.0)
    assert watch.warnings == []


def test_a_model_without_some_metrics_is_judged_by_the_others():
    watch = CollapseMonitor(patience=1)
    validate(watch, Module(**{"val/elbo": -100.0, "val/kl": 0.001}))
    assert len(watch.warnings) == 1
    validate(watch, SimpleNamespace(metrics={}, epoch_means=dict))
    assert watch.warnings == []


def test_a_gap_is_no_alarm_while_validation_rises():
    """Averaged weights lag far behind at first; few images are soon logged_warnings from new ones."""
    watch = CollapseMonitor(patience=1)
    for elbo in (-400.0, -300.0, -200.0, -150.0, -150.5):
        validate(watch, val_elbo=elbo)
    assert watch.warnings == []


@pytest.mark.parametrize("log_px", [20.0, 20.5, 19.5, 50.0, -50.0])
def test_an_elbo_around_zero_is_no_alarm(log_px):
    """A density's ELBO passes through zero; a gap of 2 nats beside terms of 20 is small."""
    watch = CollapseMonitor(patience=1)
    elbo = log_px - 20.0
    for val in (elbo, elbo - 2, elbo - 2):
        validate(watch, Module(log_px=log_px, **HEALTHY | {"val/elbo": val}))
    assert watch.warnings == []


def test_the_optimal_gaussian_scores_a_training_batch_higher():
    """A gap that was there from the start, and validations that differ a little."""
    watch = CollapseMonitor(patience=1)
    for step in range(6):
        healthy = HEALTHY | {"val/elbo": 5000.0 + 40 * (-1) ** step}
        validate(watch, Module(log_px=6000.0, kl=150.0, **healthy))
    assert watch.warnings == []


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_what_is_not_finite_is_not_called_overfitting(value):
    watch = CollapseMonitor(patience=1)
    validate(watch)
    validate(watch, val_elbo=value)
    assert watch.warnings == []


def test_zero_turns_the_watch_over_the_kl_off():
    watch = CollapseMonitor(patience=1, min_kl=0.0)
    validate(watch, val_kl=0.0)
    assert watch.warnings == []


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


def test_what_is_to_be_tried_is_there():
    """Every key and choice that a sentence names."""
    sentences = [rule.sentence.format_map(MetricsOrNaN({"gap": 0.3, "val/kl": 0.01})) for rule in RULES]
    choices = {found for text in sentences for found in re.findall(r"[\w./]+=[\w.]+", text)}
    keys = {found for text in sentences for found in re.findall(r"smaller (\w+\.\w+)", text)}
    assert len(choices) >= 4 and len(keys) >= 2
    for choice in choices:
        composed(choice)
    config = composed()
    assert all(key.split(".")[1] in config[key.split(".")[0]] for key in keys)


def test_a_beta_that_is_too_large_is_told_on_the_console_and_in_the_log(command):
    done = command(*FAST, *QUIET, "trainer.max_epochs=5", "objective.beta=1000")
    assert done.code == 0, done.stderr
    assert "posterior collapse: no latent dimension is active" in done.stderr
    assert "objective.beta" in done.stderr
    assert "posterior collapse" in (done.run / "train.log").read_text()


def test_a_resumed_run_counts_on(command):
    first = command(*FAST, *QUIET, "trainer.max_epochs=2", "objective.beta=1000")
    assert "posterior collapse" not in first.stderr
    assert "posterior collapse" in command(f"resume={first.run}", "trainer.max_epochs=3").stderr
    state = load_checkpoint(first.run / "checkpoints/last.ckpt")["callbacks"]["CollapseMonitor"]
    assert state["counts"]["inactive"] == 3 and state["warned"] == ["inactive"]


def test_a_healthy_run_is_left_in_peace(command):
    done = command(*FAST, *QUIET, "trainer.max_epochs=6")
    assert done.code == 0, done.stderr
    assert "try objective" not in done.stderr and "early_stopping" not in done.stderr


def test_it_can_be_left_out(command):
    done = command(*FAST, *QUIET, "trainer.max_epochs=4", "objective.beta=1000", "callbacks.collapse=null")
    assert done.code == 0, done.stderr
    assert "posterior collapse" not in done.stderr
