"""The LightningModule: thin glue between a trainer and the step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from vae_lab.data.batches import Batch
from vae_lab.data.images import Split
from vae_lab.data.module import data_of, last_step
from vae_lab.data.preprocess import Preprocess
from vae_lab.interruption import RunFailed
from vae_lab.metrics.split_sums import SplitSums, bits_per_dim
from vae_lab.models import VAE
from vae_lab.objectives import Objective
from vae_lab.random_streams import EVALUATE, FIT, seed_noise
from vae_lab.steps import TERMS, Execution, OptimizerSettings, StepRecord, TrainingStep, WeightAverage

MOST_DIMENSIONS_LOGGED = 32


class NonFiniteLoss(RunFailed):
    """A term of the loss became infinite or not a number."""


class Experiment(LightningModule):
    """Trains, validates and tests a VAE; logs the terms of the ELBO in nats per image.

    config: the composed config as plain values, for the loggers.
    """

    def __init__(
        self,
        model: VAE,
        objective: Objective,
        optimizer: OptimizerSettings,
        preprocess: Preprocess,
        batch_size: int,
        seed: int,
        config: Mapping[str, Any],
        execution: Execution | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.average = WeightAverage(model, optimizer.ema_decay) if optimizer.ema_decay else None
        self.objective, self.settings, self.preprocess = objective, optimizer, preprocess
        self.batch_size, self.seed, self.config = batch_size, seed, config
        self.execution = execution or Execution()
        self.sums = SplitSums(model.latent_shape[0])
        self.kl_per_dim: Tensor | None = None
        self.validated_at = 0  # the step of the last validation
        self.metrics: dict[str, float] = {}  # the last of each, by its name
        self._unread: list[StepRecord] = []
        self._epoch_sums = torch.zeros(len(TERMS), dtype=torch.float64)
        self._epoch_images = 0

    @property
    def evaluation_model(self) -> VAE:
        """What is validated, drawn and tested: averaged weights if they are on."""
        return self.model if self.average is None else self.average.model

    @property
    def log_every_n_steps(self) -> int:
        """Optimiser steps between what the loggers are given."""
        steps: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return steps

    # Training

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser; its step is taken by `TrainingStep`."""
        return self.settings.build(self.model.parameters())

    def on_train_start(self) -> None:
        """Put the step together, now that the trainer has an optimiser and a length."""
        self.step = TrainingStep(
            model=self.model,
            objective=self.objective,
            preprocess=self.preprocess,
            optimizer=self.trainer.optimizers[0],
            settings=self.settings,
            batch_size=self.batch_size,
            total_steps=self._total_steps(),
            seed=self.seed,
            rank=self.global_rank,
            average=self.average,
            reduce_gradients=getattr(self.trainer.strategy, "reduce_gradients", None),
            execution=self.execution,
        )
        self._make_up_for_validation()

    def _total_steps(self) -> int | None:
        return last_step(self.trainer, data_of(self.trainer).steps_per_epoch)

    def training_step(self, call: list[Batch], batch_idx: int) -> None:
        """Several optimiser steps; nothing is read back from the device but at every `log_every_n_steps`."""
        first, every = self.global_step, self.log_every_n_steps
        for step, batch in enumerate(call, first):
            logs = (step + 1) % every == 0
            self._unread.append(self.step(batch.images, step, measure=logs))
            self._count_step()
            if logs:
                self.log_steps()

    def _count_step(self) -> None:
        """Advance `global_step`: Lightning's wrapper of an optimiser would, at 1 to 2 per cent of a small step."""
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        progress.increment_ready()
        progress.increment_completed()

    def log_steps(self) -> None:
        """Read the steps since the last time, check them, log their mean.

        Raises NonFiniteLoss naming the step and the term.
        """
        if not self._unread:
            return
        records, self._unread = self._unread, []
        # Over devices the mean: a process that is not finite stops them all.
        terms = self.trainer.strategy.reduce(torch.stack([record.terms for record in records]), reduce_op="mean")
        terms = terms.double().cpu()
        self._require_finite(terms, self.global_step - len(records))
        images = torch.tensor([float(record.num_images) for record in records], dtype=torch.float64)
        sums = images @ terms
        self._epoch_sums += sums
        self._epoch_images += int(images.sum())
        self._show_steps(sums / images.sum(), records[-1])

    def _require_finite(self, terms: Tensor, first: int) -> None:
        bad = (~terms.isfinite()).any(1).nonzero()
        if not len(bad):
            return
        row = int(bad[0])
        # log_px and kl before the loss, which is made of them.
        values = dict(zip(TERMS, terms[row].tolist(), strict=True))
        named = [name for name in ("log_px", "kl", "loss") if not torch.tensor(values[name]).isfinite()]
        raise NonFiniteLoss(
            f"{named[0]} became {values[named[0]]} at optimiser step {first + row + 1} "
            f"({', '.join(f'{name} {value:.4g}' for name, value in values.items())}).\n"
            "Training stopped; the checkpoints hold the last good weights. Try a smaller optimizer.lr, "
            "optimizer.clip_norm=1, or trainer.precision=32-true."
        )

    def _show_steps(self, means: Tensor, last: StepRecord) -> None:
        shown = {**named_terms(means), **self._rates()}
        if last.gradient_norm is not None:
            shown["gradient_norm"] = float(last.gradient_norm)
        self.metrics |= shown
        self._to_loggers(shown)

    def _rates(self) -> dict[str, float]:
        """What the schedules gave the last step."""
        last = self.global_step - 1
        rates = self.step.rates(last)
        return {"learning_rate": float(rates.lr), "beta": float(rates.beta)}

    def on_train_epoch_start(self) -> None:
        """Start the epoch's own sums; one that was cut short goes on with those it had."""
        if self.global_step % data_of(self.trainer).steps_per_epoch == 0:
            self._epoch_sums.zero_()
            self._epoch_images = 0

    def epoch_means(self) -> dict[str, float]:
        """Means of the training terms over the epoch so far, in nats per image."""
        self.log_steps()
        if not self._epoch_images:
            return {}
        means = named_terms(self._epoch_sums / self._epoch_images)
        self.metrics |= means
        return means

    def table_row(self) -> dict[str, float]:
        """What is known at the end of an epoch: functions of the weights and the step, whatever was logged when."""
        found = {name: value for name, value in self.metrics.items() if name.startswith(("val/", "kl/", "active"))}
        return {**self.epoch_means(), **self._rates(), **found}

    # Evaluation

    def on_validation_epoch_start(self) -> None:
        """Nothing that is not finite is validated or saved."""
        self.log_steps()
        self._start_split()

    def on_test_epoch_start(self) -> None:
        """Start from nothing."""
        self._start_split()

    def on_train_epoch_end(self) -> None:
        """The last weights count as the best where nothing is validated: they are saved after this."""
        if data_of(self.trainer).size("val") == 0:
            self._fit_likelihood()

    def _start_split(self) -> None:
        self.sums.reset()
        self._fit_likelihood()

    def _fit_likelihood(self) -> None:
        """Every process on the same images and noise, so that all of them find the same."""
        seed_noise(self.device, self.seed, FIT)
        model = self.evaluation_model
        training = model.training
        model.eval().fit_likelihood(x.to(self.device) for x in data_of(self.trainer).some_training_images())
        model.train(training)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the split's sums."""
        self._evaluate(batch, batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the split's sums."""
        self._evaluate(batch, batch_idx)

    def _evaluate(self, batch: Batch, batch_idx: int) -> None:
        seed_noise(self.device, self.seed, EVALUATE, self.global_rank, batch_idx)
        model = self.evaluation_model
        x = self.preprocess.evaluate(batch.images)
        trace = model(x, self.objective.num_samples)
        terms = self.objective.terms(trace, x)
        beta = self.objective.beta_at(max(self.global_step - 1, 0), self._total_steps())  # the last step's
        self.sums.update(trace, terms, self.objective(trace, terms, beta))

    def on_validation_epoch_end(self) -> None:
        """Log the whole split's means."""
        self.validated_at = self.global_step
        self._log_split("val")

    def on_test_epoch_end(self) -> None:
        """Log the whole split's means."""
        self._log_split("test")

    def _log_split(self, split: Split) -> None:
        means = {f"{split}/{name}": float(value) for name, value in self.sums.compute().items()}
        model = self.evaluation_model
        if model.is_mass_function:
            means[f"{split}/bits_per_dim"] = bits_per_dim(-means[f"{split}/elbo"], model.image.num_dims)
        if split == "val" or self.kl_per_dim is None:
            # Which dimensions are the most active changes: none of the last time's may stay.
            self.metrics = {name: value for name, value in self.metrics.items() if not name.startswith("kl/dim_")}
            means |= self._latent_metrics()
        self.metrics |= means
        self.log_dict(means, logger=False)
        self._to_loggers(means)

    def _latent_metrics(self) -> dict[str, float]:
        """`kl/dim_<d>` of the most active dimensions, and `active_units`."""
        with self.sums.sync_context():
            self.kl_per_dim = self.sums.kl_means()
            active = float(self.sums.active().sum())
        if self.kl_per_dim is None:
            return {}
        self.kl_per_dim = self.kl_per_dim.cpu()
        top = self.kl_per_dim.argsort(descending=True)[:MOST_DIMENSIONS_LOGGED].sort().values
        kl = {f"kl/dim_{d}": float(self.kl_per_dim[d]) for d in top.tolist()}
        return {"active_units": active, **kl}

    def _to_loggers(self, values: Mapping[str, float]) -> None:
        for logger in self.trainer.loggers:
            logger.log_metrics(dict(values), step=self.global_step)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the last steps before the file is written, and add what a model is rebuilt from."""
        self.log_steps()
        checkpoint["image"] = dataclasses.asdict(self.model.image)
        checkpoint["validated_at"] = self.validated_at
        checkpoint["epoch_sums"] = (self._epoch_sums.tolist(), self._epoch_images)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Resume by the clock alone: Lightning starts the epoch that the step lies in, the data cuts it short."""
        self.validated_at = checkpoint["validated_at"]
        sums, self._epoch_images = checkpoint["epoch_sums"]
        self._epoch_sums = torch.tensor(sums, dtype=torch.float64)
        if self.trainer.state.fn == "fit":
            steps = checkpoint["global_step"]
            epochs = steps // data_of(self.trainer).steps_per_epoch
            if epochs == self.trainer.max_epochs and self._owes_validation(steps):
                epochs -= 1  # or Lightning would see nothing left to do
            checkpoint["loops"]["fit_loop"] = progress_at(self.trainer.fit_loop.state_dict(), epochs, steps)

    def _owes_validation(self, step: int) -> bool:
        """Whether an interruption left out the validation at the end of an epoch."""
        epoch, at = divmod(step, data_of(self.trainer).steps_per_epoch)
        due = epoch > 0 and at == 0 and epoch % (self.trainer.check_val_every_n_epoch or 1) == 0
        return due and self.validated_at != step and data_of(self.trainer).size("val") > 0

    def _make_up_for_validation(self) -> None:
        """Run the validation that is owed."""
        if not self._owes_validation(self.global_step):
            return
        validation = self.trainer.fit_loop.epoch_loop.val_loop
        validation.restarting = False
        self.trainer.validating = True
        validation.run()
        self.trainer.training = True


def progress_at(fresh: dict[str, Any], epochs: int, steps: int) -> dict[str, Any]:
    """The state of a fit loop that has done `epochs` whole epochs and `steps` optimiser steps, none of them half."""
    for when in ("total", "current"):
        for event in ("ready", "started", "processed", "completed"):
            fresh["epoch_progress"][when][event] = epochs
    for event in ("ready", "completed"):
        fresh["epoch_loop.manual_optimization.optim_step_progress"]["total"][event] = steps
    return fresh


def named_terms(means: Tensor) -> dict[str, float]:
    """The means of a step's terms under their names, with the ELBO that they make."""
    loss, log_px, kl = means.tolist()
    return {"train/elbo": log_px - kl, "train/log_px": log_px, "train/kl": kl, "train/loss": loss}
