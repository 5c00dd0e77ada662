"""A linear model that pictures are drawn of while it trains, and what is in its event files."""

import math

import lightning
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from vae_lab.core import ImageSpec
from vae_lab.data.transforms import Preprocess
from vae_lab.likelihoods import ContinuousBernoulli
from vae_lab.models.vae import VAE
from vae_lab.posteriors.vectors import DiagonalGaussian
from vae_lab.priors.fixed import StandardNormal
from vae_lab.utils.stopwatch import Stopwatch

SMALL = {"num_images": 4, "num_samples": 4, "grid_size": 3, "num_steps": 3, "num_pairs": 2, "num_scatter": 20}


class Model(VAE):
    """A linear VAE with dropout, so that eval mode shows."""

    def __init__(self, latent_dim, shape=(1, 8, 8), **options):
        super().__init__(
            ImageSpec(*shape, num_classes=3),
            latent_dim,
            lambda shape, size: nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(math.prod(shape), size)),
            lambda size, shape: nn.Sequential(nn.Linear(size, math.prod(shape)), nn.Unflatten(1, shape)),
            **{"posterior": DiagonalGaussian, "prior": StandardNormal, "likelihood": ContinuousBernoulli, **options},
        )
        self.largest_batch = 0

    def decode(self, z, y=None):
        self.largest_batch = max(self.largest_batch, z.shape[:-1].numel())
        return super().decode(z, y)


class Experiment(lightning.LightningModule):
    """Trains the model and notes the random numbers that training sees."""

    def __init__(self, model):
        super().__init__()
        self.model = self.evaluation_model = model
        self.kl_per_dim = None
        self.preprocess = Preprocess()
        self.config = {
            "seed": 1,
            "model": {"latent_dim": model.latent_shape[0], "act": None, "sizes": [4, 4]},
        }
        self.noise = []
        self.metrics, self.best_metrics, self.caveats = {}, {}, {}
        self.stopwatch = Stopwatch()
        self.stop_requested = lambda: False

    def training_step(self, batch, index):
        self.noise.append(float(torch.rand(())))
        assert self.model.training
        q = self.model.encode(batch[0])
        return -self.model.decode(q.rsample()).log_prob(batch[0]).mean()

    def validation_step(self, batch, index):
        self.log("val/elbo", torch.tensor(-3.0))
        self.metrics["val/elbo"] = self.best_metrics["val/elbo"] = -3.0

    def test_step(self, batch, index):
        self.log("test/elbo", torch.tensor(-4.0))
        self.metrics["test/elbo"] = -4.0

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Data(lightning.LightningDataModule):
    """Sixteen images; the splits given are the ones that hold any."""

    def __init__(self, shape=(1, 8, 8), labels=True, splits=("train", "val", "test")):
        super().__init__()
        self.x = torch.rand(16, *shape, generator=torch.Generator().manual_seed(0))
        self.labels = torch.arange(16) % 3 if labels else None
        self.class_names = ("ant", "bee", "cat") if labels else ()
        self.splits = splits

    def example_images(self, split, n):
        n = n if split in self.splits else 0
        return self.x[:n], None if self.labels is None else self.labels[:n]

    def train_dataloader(self):
        return DataLoader(TensorDataset(self.x), batch_size=4)

    steps_per_epoch = 4

    val_dataloader = test_dataloader = train_dataloader


def train(
    run, *callbacks, model=None, data=None, epochs=2, test=False, preprocess=None, stop_requested=None, **options
):
    torch.manual_seed(0)
    trainer = lightning.Trainer(
        default_root_dir=run,
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=TensorBoardLogger(save_dir=run, name="tensorboard", version="", default_hp_metric=False),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **options,
    )
    experiment = Experiment(model or Model(3))
    experiment.preprocess = preprocess or Preprocess()
    experiment.stop_requested = stop_requested or experiment.stop_requested
    data = data or Data()
    trainer.fit(experiment, datamodule=data)
    if test:
        trainer.test(experiment, datamodule=data, verbose=False)
    return experiment


def events(run):
    sizes = {"images": 0, "tensors": 0, "histograms": 0, "scalars": 0}
    return EventAccumulator(str(run / "tensorboard"), size_guidance=sizes).Reload()


def names(run):
    return sorted(path.name for path in (run / "images").iterdir())
