"""The LightningModule: connects the trainer to the training step and the evaluator."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from vae_lab.data.batches import Batch
from vae_lab.data.datamodule import datamodule_of, final_step, has_validation, is_within_epoch, share_of
from vae_lab.data.images import Split
from vae_lab.data.transforms import Preprocess
from vae_lab.metrics.diagnostics import Diagnostics
from vae_lab.metrics.elbo_sums import ElboSums
from vae_lab.metrics.evaluator import SplitEvaluator
from vae_lab.models.base import LabelledBatches, Model
from vae_lab.objectives.objective import Objective
from vae_lab.training.ddp import AllReduceStrategy
from vae_lab.training.nonfinite import NonFinitePolicy, OnNonFinite, require_finite, ways_out
from vae_lab.training.optimizer import OptimizerSettings, WeightAverage
from vae_lab.training.resume import continue_at_step
from vae_lab.training.step import TrainingStep, term_names
from vae_lab.training.step_log import StepLog
from vae_lab.training.trainer import best_by
from vae_lab.utils.stopwatch import Stopwatch

log = logging.getLogger("vae_lab")
NUM_FITTED, NUM_FITTED_TO_STOP = 512, 32  # images that the likelihood is fitted to; the latter where seconds are left
NOT_VALIDATED = ("train/", "test/", "learning_rate", "beta", "capacity", "multiplier", "gradient_norm", "skipped")


class VAEModule(LightningModule):
    """Trains, validates and tests a VAE; logs the terms of the ELBO in nats per image.

    config: plain values, for the loggers. stop_requested: checked between steps and pictures; True skips the last ones.
    """

    def __init__(
        self,
        model: Model,
        objective: Objective,
        optimizer: OptimizerSettings,
        preprocess: Preprocess,
        batch_size: int,
        seed: int,
        config: Mapping[str, Any],
        compile: bool | Literal["reduce-overhead"] = False,
        cuda_graphs: bool = False,
        on_nonfinite: OnNonFinite = "stop",
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.average = WeightAverage(model, optimizer.ema_decay) if optimizer.ema_decay else None
        self.objective, self.settings, self.preprocess = objective, optimizer, preprocess
        self.batch_size, self.seed, self.config = batch_size, seed, config
        self.compile_step, self.cuda_graphs = compile, cuda_graphs
        self.sums = ElboSums.for_latents(model.latents)  # a submodule, so that it moves with the model
        self.diagnostics = Diagnostics(model)
        self.evaluation = SplitEvaluator(self.sums, self.diagnostics, objective, preprocess, seed)
        self.metrics: dict[str, float] = {}  # latest value of each, by name
        self.best_metrics: dict[str, float] = {}  # those of the best validation
        self.baseline: dict[str, Any] | None = None  # metrics of a linear model, after the test
        self.caveats: dict[str, list[str]] = {}  # warnings about the results, by the part that recorded them
        self.on_nonfinite = on_nonfinite
        precision = str(config.get("trainer", {}).get("precision", "32-true"))
        self.nonfinite_policy = NonFinitePolicy(on_nonfinite, ways_out(optimizer.lr, on_nonfinite, precision))
        self.stop_requested = stop_requested
        self.stopwatch = Stopwatch()
        self.step_log = StepLog(term_names(objective))

    @property
    def evaluation_model(self) -> Model:
        """The model that is validated, tested and sampled for pictures: the averaged weights if enabled."""
        return self.model if self.average is None else self.average.model

    @property
    def kl_per_dim(self) -> Tensor | None:
        """KL of each latent dimension at the last validation, (D,)."""
        return self.evaluation.kl_per_dim

    def warnings(self) -> list[str]:
        """Caveats of the results: those recorded, skipped steps, and non-finite metrics."""
        found = [warning for recorded in self.caveats.values() for warning in recorded]
        if skipped := self.nonfinite_policy.num_skipped:
            found.append(f"{skipped} of {self.global_step} steps were skipped: a loss or gradient was not finite")
        elbos = {name: self.metrics.get(name, 0.0) for name in ("val/elbo", "test/elbo")}
        return found + [
            f"{name} is {value}: an image without a finite density, or weights that diverged"
            for name, value in elbos.items()
            if not math.isfinite(value)
        ]

    # Training

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.settings.build(self.model.parameters(), self.objective.discriminators)

    def on_train_start(self) -> None:
        """Build the training step, now that the trainer has the optimiser and the number of steps."""
        strategy = self.trainer.strategy
        self.step = TrainingStep(
            model=self.model,
            objective=self.objective,
            preprocess=self.preprocess,
            optimizer=self.trainer.optimizers[0],
            settings=self.settings,
            batch_size=self.batch_size,
            total_steps=self._total_steps(),
            seed=self.seed,
            share=share_of(self.trainer),
            average=self.average,
            reduce_gradients=strategy.reduce_gradients if isinstance(strategy, AllReduceStrategy) else None,
            compile=self.compile_step,
            cuda_graphs=self.cuda_graphs,
            on_nonfinite=self.on_nonfinite,
        )
        if (last := self._total_steps()) is not None:  # a run shorter than that is validated once, at its end
            epochs = max(1, last // datamodule_of(self.trainer).steps_per_epoch)
            every = self.trainer.check_val_every_n_epoch or 1
            self.trainer.check_val_every_n_epoch = min(every, epochs)
        for stopping in self.trainer.early_stopping_callbacks:  # of a run that was killed after it had stopped early
            if stopping.wait_count >= stopping.patience:
                self.trainer.should_stop = True

    def _total_steps(self) -> int | None:
        return final_step(self.trainer, datamodule_of(self.trainer).steps_per_epoch)

    def training_step(self, call: list[Batch], batch_idx: int) -> None:
        """Run the optimiser steps of one call; read back from the device only every `log_every_n_steps`."""
        first, every = self.global_step, self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        for step, batch in enumerate(call, first):
            if self.stop_requested() and self.trainer.world_size == 1:  # several processes would have to agree
                return
            logs = (step + 1) % every == 0
            record = self.step(batch.images, step, measure=logs, labels=batch.labels)
            self.step_log.add(record)
            self._count_steps(1)
            if logs:
                self.log_steps()
            elif self.step.skipped:
                self.read_steps()

    def _count_steps(self, steps: int) -> None:
        """Advance `global_step`; Lightning's optimiser wrapper would too, at 1 to 2 per cent of a small step's time."""
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total
        progress.ready += steps
        progress.completed += steps

    def read_steps(self) -> None:
        """Read the steps since the last read. NonFiniteLoss: one is non-finite (with `skip`: too many in a row)."""
        first = self.global_step - len(self.step_log)
        # Mean over devices: a non-finite value in one process stops all.
        nonfinite = self.step_log.read(lambda terms: self.trainer.strategy.reduce(terms, reduce_op="mean"))
        for row, terms in nonfinite.items():
            step = first + row
            if self.on_nonfinite == "stop":  # no later step changed anything: set the step back
                self._count_steps(step - self.global_step)
            self.nonfinite_policy.handle(step, terms, partial(self._locate_nonfinite, step))

    def _locate_nonfinite(self, step: int) -> str:
        batch = datamodule_of(self.trainer).train_dataloader().step(step)
        images, labels = (None if part is None else part.to(self.device) for part in batch)
        assert images is not None
        with self.trainer.precision_plugin.train_step_context():
            return self.step.locate_nonfinite(images, step, labels)

    def log_steps(self) -> None:
        """Read the steps since the last log entry and log their mean."""
        self.read_steps()
        means = self.step_log.means_since_log()
        if not means:
            return
        shown = means | self._rates()
        if self.step_log.last_norm is not None:
            shown["gradient_norm"] = float(self.step_log.last_norm)
        if self.on_nonfinite == "skip":
            shown["skipped_steps"] = float(self.nonfinite_policy.num_skipped)
        self.metrics |= shown
        self._to_loggers(shown)

    def _rates(self) -> dict[str, float]:
        """Scheduled values of the last step, by metric name."""
        last = self.global_step - 1
        rates = self.step.rates(last)
        shown = {"learning_rate": float(rates.lr), "beta": float(rates.beta)}
        if self.objective.capacity is not None:
            shown["capacity"] = float(rates.capacity)
        if self.objective.constraint is not None:
            shown["multiplier"] = self.objective.constraint.multiplier
        return shown

    def on_train_epoch_start(self) -> None:
        """Reset the sums of the epoch, unless a resumed run continues it."""
        if not is_within_epoch(self.trainer):
            self.step_log.start_epoch()

    def epoch_means(self) -> dict[str, float]:
        """Means of the training terms over the epoch so far, in nats per image."""
        self.log_steps()
        means = self.step_log.epoch_means()
        self.metrics |= means
        return means

    def record_metrics(self) -> dict[str, float]:
        """Metrics at the end of an epoch, functions of the weights and the step; kept as the best if they are."""
        found = {name: value for name, value in self.metrics.items() if not name.startswith(NOT_VALIDATED)}
        row = {**self.epoch_means(), **self._rates(), **found}
        name, mode = best_by(self.trainer)
        best, score = self.best_metrics.get(name), row.get(name)
        if best is None or score is None or (score > best if mode == "max" else score < best):
            self.best_metrics = row
        return row

    # Evaluation

    def on_validation_epoch_start(self) -> None:
        """Read all steps first, so that non-finite weights are neither validated nor saved."""
        if not self.trainer.sanity_checking:
            self.log_steps()
        self.on_test_epoch_start()

    def on_test_epoch_start(self) -> None:
        self.evaluation.start(self.evaluation_model, self._training_batches(), self.global_step)

    def on_train_epoch_end(self) -> None:
        """Without validation, fit the likelihood to the last weights: they are saved as the best after this."""
        self.log_steps()
        if not has_validation(self.trainer):
            self.evaluation.fit_likelihood(self.evaluation_model, self._training_batches(), self.global_step)

    def _training_batches(self, count: int = NUM_FITTED) -> LabelledBatches:
        for x, y in datamodule_of(self.trainer).first_images("train", count):
            yield x.to(self.device), y.to(self.device) if y is not None and self.model.conditional else None

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        weights = self.objective.weights_at(max(self.global_step - 1, 0), self._total_steps())  # of the last step
        with torch.autocast(self.device.type, enabled=False):  # in float32, as a loaded model
            self.evaluation.add(self.evaluation_model, batch, weights, batch_idx, share_of(self.trainer))

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self._log_split("val")

    def on_test_epoch_end(self) -> None:
        self._log_split("test")

    def _log_split(self, split: Split) -> None:
        means = self.evaluation.means(self.evaluation_model, split)
        if split == "val" or "val/elbo" not in self.metrics:
            # The most active dimensions change: remove those of the previous validation.
            self.metrics = {name: value for name, value in self.metrics.items() if not name.startswith("kl/dim_")}
            means |= self.evaluation.latent_metrics()
        self.metrics |= means
        if not math.isfinite(means[f"{split}/elbo"]):
            log.warning("%s/elbo is %s at step %d", split, means[f"{split}/elbo"], self.global_step)
        self.log_dict(means, logger=False)
        self._to_loggers({name: value for name, value in means.items() if not name.endswith("_stderr")})

    def _to_loggers(self, values: Mapping[str, float]) -> None:
        for logger in self.trainer.loggers:
            logger.log_metrics(dict(values), step=self.global_step)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the last steps and the weights, fit the likelihood to them, and add what restores model and run."""
        self.read_steps()
        require_finite((self.model, self.objective), self.global_step, self.nonfinite_policy.advice)
        if self.evaluation.fitted_at != self.global_step:  # within an epoch; the checkpoint holds the same tensors
            batches = self._training_batches(NUM_FITTED_TO_STOP if self.stop_requested() else NUM_FITTED)
            self.evaluation.fit_likelihood(self.evaluation_model, batches, self.global_step)
        checkpoint["image"] = dataclasses.asdict(self.model.image)
        checkpoint["steps_per_epoch"] = datamodule_of(self.trainer).steps_per_epoch
        checkpoint["data_checksum"] = datamodule_of(self.trainer).checksum
        checkpoint["kl_per_dim"] = self.kl_per_dim
        checkpoint["metrics"], checkpoint["best_metrics"] = self.metrics, self.best_metrics
        checkpoint["step_log"] = self.step_log.state_dict()
        checkpoint["nonfinite_policy"] = self.nonfinite_policy.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Resume from the step number. For a test only the weights are loaded, and callbacks keep their states."""
        if self.trainer.state.fn != "fit":
            checkpoint["callbacks"] = {}
            return
        self.evaluation.kl_per_dim = checkpoint["kl_per_dim"]
        self.metrics, self.best_metrics = dict(checkpoint["metrics"]), dict(checkpoint["best_metrics"])
        self.step_log.load_state_dict(checkpoint["step_log"])
        self.nonfinite_policy.load_state_dict(checkpoint["nonfinite_policy"])
        continue_at_step(self.trainer, checkpoint)
