"""What watches a run: checkpoints, pictures, the progress bar, the files of the run directory."""

from vae_lab.callbacks.checkpoint import BestCheckpoint, LastCheckpoint
from vae_lab.callbacks.collapse import CollapseWatch
from vae_lab.callbacks.event_files import EventFiles
from vae_lab.callbacks.images import ImageLogger
from vae_lab.callbacks.interrupt import StopOnSignal
from vae_lab.callbacks.metrics_csv import MetricsTable
from vae_lab.callbacks.model_summary import LayerTable
from vae_lab.callbacks.progress import Progress
from vae_lab.callbacks.tensorboard import TensorBoardSummary
from vae_lab.callbacks.throughput import Throughput

__all__ = [
    "BestCheckpoint",
    "CollapseWatch",
    "EventFiles",
    "ImageLogger",
    "LastCheckpoint",
    "LayerTable",
    "MetricsTable",
    "Progress",
    "StopOnSignal",
    "TensorBoardSummary",
    "Throughput",
]
