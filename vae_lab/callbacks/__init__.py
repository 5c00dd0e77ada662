"""Lightning callbacks: checkpoints, pictures, the progress bar, warnings, the files of the run directory."""

from vae_lab.callbacks.baseline import Baseline
from vae_lab.callbacks.checkpoint import BestCheckpoint, LastCheckpoint, StopOnSignal
from vae_lab.callbacks.collapse import CollapseMonitor
from vae_lab.callbacks.images import ImageLogger
from vae_lab.callbacks.loggers import LoggerRecords
from vae_lab.callbacks.metrics_csv import MetricsCSV
from vae_lab.callbacks.progress import ModelSummaryTable, Progress
from vae_lab.callbacks.tensorboard import TensorBoardSummary
from vae_lab.callbacks.throughput import Throughput

__all__ = [
    "Baseline",
    "BestCheckpoint",
    "CollapseMonitor",
    "ImageLogger",
    "LastCheckpoint",
    "LoggerRecords",
    "MetricsCSV",
    "ModelSummaryTable",
    "Progress",
    "StopOnSignal",
    "TensorBoardSummary",
    "Throughput",
]
