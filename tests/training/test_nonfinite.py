"""A step whose loss or gradient is not finite changes nothing, and is located."""

import pytest
import torch
from helpers.commands import QUIET
from helpers.named import nan_at
from helpers.steps import BATCH, images_of, small_model, step_of, weights
from torch import nn
from torch.testing import assert_close

from vae_lab.runs.checkpoint_io import load_checkpoint
from vae_lab.training.nonfinite import (
    BufferSnapshot,
    NonFiniteLoss,
    NonFinitePolicy,
    can_skip_on_device,
    nonfinite_flag,
    require_finite,
    watch_nonfinite,
    ways_out,
)
from vae_lab.training.optimizer import WeightAverage

INF, NAN = float("inf"), float("nan")


# --- finding it -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [1.0, NAN, INF, -INF])
@pytest.mark.parametrize("value", [0.0, -3e38, NAN, INF, -INF])
def test_any_infinity_or_nan_is_found_and_nothing_changed(loss, value):
    gradients = [torch.linspace(-1, 1, 7), torch.full((2, 3), 1e-40), torch.tensor([0.0, value])]
    before = [g.clone() for g in gradients]
    bad = nonfinite_flag(torch.tensor(loss), gradients)
    assert bad.item() == float(not (torch.tensor(loss).isfinite() and torch.tensor(value).isfinite()))
    assert_close(gradients, before, rtol=0, atol=0, equal_nan=True)


def test_the_loss_of_one_process_reaches_the_others_through_the_gradient():
    """`reduce_gradients` sees a gradient that is not finite though only the loss is."""
    step, reduced = spoilt_step(True), []
    step.reduce_gradients = lambda parameters: reduced.append(parameters[0].grad.clone())
    score = step._score
    step._score = lambda *given: (score(*given)[0], score(*given)[1] * (NAN if step.spoilt else 1))
    for number in (0, 1):
        step.spoilt = number == 1
        step(images_of(BATCH), number)
    assert reduced[0].isfinite().all() and not reduced[1].isfinite().all()


# --- leaving it out ---------------------------------------------------------------------------------------


def spoilt_step(checks_every_step: bool, on_nonfinite: str = "skip", gradient_only: bool = False):
    """A step whose loss (or one gradient alone) is NaN while `step.spoilt` is set; with Adam and averaged weights."""
    model = small_model()
    step = step_of(model, algorithm=lambda p, lr: torch.optim.Adam(p, lr=lr, fused=True), lr=0.01, ema_decay=0.9,
                   average=WeightAverage(model, 0.9), on_nonfinite=on_nonfinite)  # fmt: skip
    step.checks_every_step = checks_every_step  # False: as on a GPU, by a flag on the device
    step.spoilt = False
    if gradient_only:
        step.parameters[0].register_hook(lambda g: g * NAN if step.spoilt else g)
    else:
        score = step._score
        step._score = lambda *given: spoil(*score(*given)) if step.spoilt else score(*given)
    return step


def spoil(loss, means):
    return loss * NAN, means * NAN


def everything(step) -> list[torch.Tensor]:
    state = [value.clone() for weight in step.parameters for value in step.optimizer.state[weight].values()]
    return weights(step.model) + weights(step.average.model) + state


@pytest.mark.parametrize("checks_every_step", [True, False])
@pytest.mark.parametrize("gradient_only", [True, False])
def test_a_step_left_out_never_was(checks_every_step, gradient_only):
    """Steps 0, 1, 2, 3 with 1 and 2 bad end with the bits of steps 0 and 3."""
    ends = []
    for numbers, bad in (((0, 1, 2, 3), (1, 2)), ((0, 3), ())):
        step = spoilt_step(checks_every_step, gradient_only=gradient_only)
        for number in numbers:
            step.spoilt = number in bad
            record = step(images_of(BATCH, seed=number), number)
            assert record.nonfinite.item() == float(number in bad)
        ends.append(everything(step))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("checks_every_step", [True, False])
def test_a_bad_first_step_leaves_the_optimiser_as_new(checks_every_step):
    step = spoilt_step(checks_every_step)
    step.spoilt = True
    before = weights(step.model)
    step(images_of(BATCH), 0)
    assert_close(weights(step.model), before, rtol=0, atol=0)
    step.spoilt = False
    step(images_of(BATCH), 1)
    fresh = spoilt_step(checks_every_step)
    fresh(images_of(BATCH), 1)
    assert all(torch.equal(a, b) for a, b in zip(everything(step), everything(fresh), strict=True))


def test_on_a_device_all_stops_at_the_first_until_somebody_looks():
    step = spoilt_step(checks_every_step=False, on_nonfinite="stop")
    step(images_of(BATCH), 0)
    before = everything(step)
    for number in (1, 2, 3):
        step.spoilt = number == 1
        assert step(images_of(BATCH, seed=number), number).nonfinite.item() == 1
    assert all(torch.equal(a, b) for a, b in zip(everything(step), before, strict=True))


@pytest.mark.parametrize("bad", [None, torch.tensor(1.0), torch.tensor(0.0)])
def test_running_means_are_put_back(bad):
    layer = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    buffers, before = BufferSnapshot(layer), [b.clone() for b in layer.buffers()]
    buffers.save()
    layer(torch.full((4, 2), NAN))
    after = [b.clone() for b in layer.buffers()]
    buffers.restore(bad)
    expected = after if bad is not None and bad == 0 else before
    assert_close(list(layer.buffers()), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("algorithm", "options", "obeys"),
    [
        (torch.optim.Adam, {"fused": True}, True),
        (torch.optim.AdamW, {"fused": True}, True),
        (torch.optim.Adagrad, {"fused": True}, True),
        (torch.optim.SGD, {"fused": True}, True),
        (torch.optim.SGD, {"fused": True, "momentum": 0.9}, False),
        (torch.optim.Adam, {"fused": False}, False),
        (torch.optim.RMSprop, {}, False),
    ],
)
def test_an_optimiser_that_cannot_leave_out_is_looked_after_at_each_step(algorithm, options, obeys):
    """The flag is obeyed by those that say so, and the others are never given it: they would refuse it."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = algorithm([weight], lr=0.1, **options)
    assert can_skip_on_device(optimizer) is obeys
    if obeys:
        weight.grad = torch.full((3,), NAN)
        optimizer.found_inf, optimizer.grad_scale = torch.ones(()), None
        optimizer.step()
        assert weight.eq(1).all()
        weight.grad = torch.ones(3)
        optimizer.found_inf = torch.zeros(())
        optimizer.step()
        assert weight.isfinite().all() and weight.lt(1).all()
    meta = small_model().to("meta")
    plain = options | {"fused": False} if obeys else options
    step = step_of(meta, algorithm=lambda p, lr: algorithm(p, lr=lr, **plain))
    assert step.checks_every_step is True


# --- what is done about it --------------------------------------------------------------------------------

TERMS = {"loss": NAN, "log_px": -3.0, "kl": INF}


def test_stop_says_which_term_and_where_and_what_to_try():
    where = "First non-finite output: encoder.1 (Linear)"
    with pytest.raises(NonFiniteLoss) as caught:
        NonFinitePolicy("stop", ways_out(0.1, "stop", "bf16-mixed")).handle(7, TERMS, lambda: where)
    text = str(caught.value)
    assert "kl became inf at optimiser step 8 (loss nan, log_px -3, kl inf)" in text
    assert (
        where in text and "resume=RUN optimizer.lr=0.01, or trainer.on_nonfinite=skip, or trainer.precision=32" in text
    )
    finite = {"loss": 1.0, "log_px": -1.0, "kl": 0.0}
    with pytest.raises(NonFiniteLoss, match="a gradient became infinite or NaN"):
        NonFinitePolicy("stop").handle(7, finite, lambda: where)


def test_skip_locates_the_first_three_counts_all_and_gives_up_after_a_hundred_in_a_row():
    steps, located = NonFinitePolicy("skip"), []

    def locate():
        located.append(number)
        return ""

    for number in (1, 5, 6, 7, 9):
        steps.handle(number, TERMS, locate)
    assert located == [1, 5, 6] and steps.num_skipped == 5
    again = NonFinitePolicy("skip")
    again.load_state_dict(steps.state_dict())
    for number in range(10, 108):
        again.handle(number, TERMS, locate)
    with pytest.raises(NonFiniteLoss, match="99 steps before it"):
        again.handle(108, TERMS, locate)
    assert again.num_skipped == 104


def test_weights_that_are_not_finite_replace_no_checkpoint():
    model = small_model()
    require_finite((model,), 3)
    with torch.no_grad():
        model.encoder[1].weight[0, 0] = INF
    with pytest.raises(NonFiniteLoss, match=r"the weights encoder\.1\.weight became infinite.*by optimiser step 3"):
        require_finite((model,), 3)


def test_the_first_module_and_parameter_that_are_not_finite_are_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.fill_(3e38)
    with watch_nonfinite(model) as source:
        model(torch.full((1, 2), 9.0)).sum().backward()
    assert str(source) == "First non-finite output: 0 (Linear); first non-finite gradient: 2.weight."
    with torch.no_grad():
        model[2].bias.fill_(NAN)
    with watch_nonfinite(model) as source:
        model(torch.zeros(1, 2))
    assert str(source) == "Before the step, the weights 2.bias were not finite."


def test_locating_changes_neither_weights_nor_gradients_nor_modes():
    step = spoilt_step(True)
    step(images_of(BATCH), 0)
    before = everything(step)
    step.model.eval()
    with torch.no_grad():
        bias = step.model.encoder[1].bias[0].clone()
        step.model.encoder[1].bias[0] = INF
    with torch.inference_mode():
        found = step.locate_nonfinite(images_of(BATCH, seed=1), 1)
    assert "encoder.1.bias were not finite" in found
    with torch.no_grad():
        step.model.encoder[1].bias[0] = bias
    assert all(torch.equal(a, b) for a, b in zip(everything(step), before, strict=True))
    assert not step.model.training and all(weight.grad is None for weight in step.parameters)


# --- the command ------------------------------------------------------------------------------------------


def test_a_run_stops_at_the_step_and_says_where_it_became_nonfinite(command):
    done = command(*QUIET, *nan_at(4), "callbacks.last.every_n_steps=1")
    assert done.code == 1 and "Traceback" not in done.stderr, done.stderr
    said = " ".join(done.stderr.split())
    assert "became nan at optimiser step 5" in said
    assert "First non-finite output: none, it arose in the densities or the objective" in said
    assert "first non-finite gradient: encoder" in said
    assert done.summary["steps"] == 4
    assert load_checkpoint(done.run / "checkpoints/last.ckpt")["global_step"] == 4


def test_skip_leaves_the_step_out_and_says_so(command):
    done = command(*QUIET, *nan_at(4), "trainer.on_nonfinite=skip")
    assert done.code == 0, done.stderr
    assert "1 of 6 steps were skipped: a loss or gradient was not finite" in done.summary["warnings"]
    assert done.stderr.index("skipped step: loss became nan") < done.stderr.index("test elbo")
    assert "1 of 6 steps" in (done.run / "train.log").read_text()
    assert "First non-finite output" in done.stderr
    assert "nan" not in (done.run / "metrics.csv").read_text()
    assert done.summary["metrics"]["skipped_steps"] == 1


def test_a_rate_that_throws_the_weights_away_saves_nothing(command):
    done = command(*QUIET, "optimizer.lr=inf", "trainer.limit_train_batches=1")
    assert done.code == 1 and "Traceback" not in done.stderr, done.stderr
    assert "became infinite or NaN by optimiser step 1" in done.stderr
    assert not list((done.run / "checkpoints").glob("*.ckpt"))
    assert done.summary["status"] == "failed"
