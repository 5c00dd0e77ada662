"""A small model that pictures are drawn of while it trains, and what is in its event files."""

import lightning
import torch
from helpers.steps import SMALL_MLP, model_of
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader, TensorDataset

from vae_lab.core import ImageSpec
from vae_lab.data.transforms import Preprocess
from vae_lab.utils.stopwatch import Stopwatch

SMALL = {"num_images": 4, "num_samples": 4, "grid_size": 3, "num_steps": 3, "num_pairs": 2, "num_scatter": 20}


def mlp(*overrides, shape=(1, 8, 8)):
    return model_of(*SMALL_MLP, "model/likelihood=gaussian_fixed", *overrides, image=ImageSpec(*shape, num_classes=3))


class Experiment(lightning.LightningModule):
    """Trains the model and notes the random numbers that training sees."""

    kl_per_dim = None

    def __init__(self, model, preprocess, stop_requested):
        super().__init__()
        self.model = self.evaluation_model = model
        self.preprocess, self.stop_requested = preprocess, stop_requested
        self.noise, self.caveats, self.stopwatch = [], {}, Stopwatch()

    def training_step(self, batch, index):
        self.noise.append(float(torch.rand(())))
        assert self.model.training
        return -self.model(batch[0]).likelihood.log_prob(batch[0]).mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Data(lightning.LightningDataModule):
    """Sixteen images; the splits given are the ones that hold any."""

    steps_per_epoch = 4

    def __init__(self, shape=(1, 8, 8), class_names=("ant", "bee", "cat"), splits=("train", "val", "test")):
        super().__init__()
        self.x = torch.rand(16, *shape, generator=torch.Generator().manual_seed(0))
        self.labels = torch.arange(16) % 3 if class_names else None
        self.class_names, self.splits = class_names, splits

    def size(self, split):
        return 16 * (split in self.splits)

    def example_images(self, split, n):
        return self.x[:n], None if self.labels is None else self.labels[:n]

    def train_dataloader(self):
        return DataLoader(TensorDataset(self.x), batch_size=4)


def train(run, *callbacks, model=None, data=None, epochs=1, preprocess=None, stop_requested=lambda: False, **options):
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
    experiment = Experiment(model or mlp(), preprocess or Preprocess(), stop_requested)
    trainer.fit(experiment, datamodule=data or Data())
    return experiment


def events(run):
    sizes = {"images": 0, "tensors": 0, "histograms": 0, "scalars": 0}
    return EventAccumulator(str(run / "tensorboard"), size_guidance=sizes).Reload()


def names(run, grids=None):
    """Names of the pictures; of the bare grids or of the other pictures only."""
    found = sorted(path.name for path in (run / "images").iterdir())
    return [name for name in found if grids is None or ("=" in name) == grids]
