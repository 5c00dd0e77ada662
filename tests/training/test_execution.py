"""Ways to run a step that change its speed alone: several a call, compiled, another layout, recorded."""

import json
from functools import partial

import pytest
import torch
from helpers.commands import QUIET
from helpers.steps import BATCH, SMALL_MLP, images_of, model_of, step_of, weights
from hydra.utils import instantiate
from torch.testing import assert_close

from vae_lab.objectives.bounds import elbo
from vae_lab.training.build import require_capturable
from vae_lab.training.optimizer import OptimizerSettings, WeightAverage, adapt_optimizer_state
from vae_lab.training.step import ScheduledValues
from vae_lab.utils.callables import unwrap_partial
from vae_lab.utils.errors import UsageError

SMALL_CONV = ("model=conv", "model.latent_dim=3", "model.encoder.width=8", "model.decoder.width=8")


def saved(run, name="last"):
    return torch.load(run / f"checkpoints/{name}.ckpt", weights_only=True)


@pytest.mark.parametrize(("model", "precision"), [("mlp", "bf16-mixed"), ("conv", "32-true")])
def test_several_steps_in_a_call_give_the_same_bits_as_one(command, model, precision):
    """Under autocast too, whose cache would hand the rounded weights of one step to the next: Lightning's is off."""
    options = (*QUIET, f"model={model}", f"trainer.precision={precision}", "optimizer.clip_norm=1",
               "optimizer.ema_decay=0.9", "optimizer/schedule=cosine", "trainer.limit_train_batches=4",
               "trainer.log_every_n_steps=100")  # fmt: skip
    states = []
    for steps in (1, 3):
        done = command(*options, f"trainer.steps_per_execution={steps}", f"hydra.run.dir=run-{steps}")
        assert done.code == 0, done.stderr
        states.append(saved(command.cwd / f"run-{steps}"))
    assert states[0]["global_step"] == 8
    assert all(torch.equal(states[1]["state_dict"][name], value) for name, value in states[0]["state_dict"].items())


@pytest.mark.slow
def test_a_compiled_run_is_a_plain_one_to_rounding_and_resumes_as_one_in_another_layout(command):
    """Compiled code draws torch's own noise, and a checkpoint has the same names."""
    options = (*QUIET, "model.encoder.hidden=[16]", "model.decoder.hidden=[16]", "optimizer.lr=0.01")
    plain = command(*options, "hydra.run.dir=plain")
    done = command(*options, "trainer.compile=true")
    assert plain.code == done.code == 0, done.stderr
    assert saved(done.run)["state_dict"].keys() == saved(command.cwd / "plain")["state_dict"].keys()
    expected = json.loads((command.cwd / "plain/summary.json").read_text())["metrics"]
    assert all(done.summary["metrics"][name] == pytest.approx(value, rel=1e-3) for name, value in expected.items())
    interpreted = ("trainer.compile=false", "trainer.channels_last=false", "trainer.num_threads=1")
    resumed = command(f"resume={done.run}", "trainer.max_epochs=3", *interpreted)
    assert resumed.code == 0, resumed.stderr


# --- layouts ----------------------------------------------------------------------------------------------


def test_channels_last_is_the_same_to_rounding():
    ends = []
    for layout in (torch.contiguous_format, torch.channels_last):
        model = model_of(*SMALL_CONV).to(memory_format=layout)
        step = step_of(model, algorithm=torch.optim.SGD, lr=1e-3)
        terms = [step(images_of(BATCH, seed=i), i).terms for i in range(3)]
        ends.append((torch.stack(terms), weights(model)))
    assert_close(ends[1], ends[0], rtol=1e-4, atol=1e-4)


def test_a_state_saved_in_another_layout_is_the_same_state():
    """A fused update reads weights and state in the order of memory: with two orders it would mix them up."""
    ends = []
    for change in (False, True):
        model = model_of(*SMALL_CONV)
        step = step_of(model, algorithm=partial(torch.optim.Adam, fused=True), lr=1e-2)
        step(images_of(BATCH), 0)
        if change:
            state = step.optimizer.state_dict()
            model.to(memory_format=torch.channels_last)
            step = step_of(model, algorithm=partial(torch.optim.Adam, fused=True), lr=1e-2)
            step.optimizer.load_state_dict(state)
            adapt_optimizer_state(step.optimizer, capturable=False)
            for weight, state_of in step.optimizer.state.items():
                assert state_of["exp_avg"].stride() == weight.stride()
        step(images_of(BATCH, seed=1), 1)
        ends.append(weights(model))
    assert_close(ends[1], ends[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("capturable", "fused", "there"), [(True, None, True), (False, True, True), (False, None, False)]
)
def test_the_count_of_a_loaded_state_lies_where_the_optimiser_reads_it(capturable, fused, there):
    """On the device where it is captured or fused, else on the host; the device here is one that holds nothing."""
    weight = torch.nn.Parameter(torch.zeros(3, device="meta"))
    optimizer = torch.optim.Adam([weight], lr=1e-3)
    optimizer.param_groups[0]["fused"] = fused
    optimizer.state[weight] = {"step": torch.tensor(5.0)}
    adapt_optimizer_state(optimizer, capturable)
    assert optimizer.state[weight]["step"].device.type == ("meta" if there else "cpu")
    assert optimizer.param_groups[0]["capturable"] is capturable


# --- recorded steps, as far as a CPU goes -----------------------------------------------------------------


def test_a_step_takes_its_rates_as_tensors():
    """A recorded step reads them from the device's memory: the same weights as with numbers."""
    ends = []
    for as_tensors in (False, True):
        model = model_of(*SMALL_MLP)
        average = WeightAverage(model, 0.9)
        step = step_of(model, algorithm=partial(torch.optim.Adam, fused=True), average=average,
                       ema_decay=0.9)  # fmt: skip
        torch.manual_seed(0)
        for rates in (ScheduledValues(0.01, 0.5, 0.0, 0.3), ScheduledValues(0.02, 1.0, 0.0, 0.6)):
            given = ScheduledValues(*map(torch.tensor, rates)) if as_tensors else rates
            terms, bad, norm = step._update(images_of(BATCH), None, given)
        ends.append((weights(model), weights(average.model), terms, bad, norm))
    assert_close(ends[1], ends[0], rtol=1e-5, atol=1e-6)


def test_cuda_graphs_without_a_gpu_are_refused(command):
    done = command(*QUIET, "trainer.cuda_graphs=true")
    assert done.code == 2
    assert "trainer.cuda_graphs=true with the device cpu" in done.stderr
    assert "Traceback" not in done.stderr and not list(command.cwd.glob("outputs/*/*"))


def test_an_optimiser_that_reads_back_cannot_be_recorded():
    for algorithm in (torch.optim.LBFGS, torch.optim.RMSprop):
        with pytest.raises(UsageError, match=rf"{algorithm.__name__} cannot be recorded.*\n?.*optimizer=adam"):
            require_capturable(OptimizerSettings(algorithm))
    require_capturable(OptimizerSettings(partial(torch.optim.Adam, fused=True)))


def test_compile_without_a_compiler_is_refused(command):
    done = command(*QUIET, "trainer.compile=true", PATH="/nowhere")
    assert done.code == 2
    assert "no C++ compiler found" in done.stderr and "trainer.compile=false" in done.stderr


# --- the functions a config chose -------------------------------------------------------------------------


def test_a_chosen_function_is_called_without_hydras_checks():
    chosen = instantiate({"_target_": "vae_lab.objectives.bounds.elbo", "_partial_": True})
    assert unwrap_partial(chosen) is elbo
    with_option = unwrap_partial(
        instantiate({"_target_": "vae_lab.objectives.bounds.elbo", "_partial_": True, "beta": 0.5})
    )
    assert type(with_option).__name__ == "partial" and with_option.keywords == {"beta": 0.5}
    assert unwrap_partial(len) is len
