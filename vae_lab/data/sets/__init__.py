"""The data sets, one file for each format: functions that return a data module, as the `_target_` of `conf/data`.

The files have other names than the functions, because a dotted path finds a module before a function.
"""

from vae_lab.data.sets.amat import static_mnist
from vae_lab.data.sets.idx import fashion_mnist, mnist
from vae_lab.data.sets.numpy_files import arrays
from vae_lab.data.sets.parquet_files import parquet
from vae_lab.data.sets.pictures import folder
from vae_lab.data.sets.scikit_learn import digits
from vae_lab.data.sets.sharded import streaming
from vae_lab.data.sets.synthetic import dsprites, shapes
from vae_lab.data.sets.torchvision_datasets import torchvision

__all__ = [
    "arrays",
    "digits",
    "dsprites",
    "fashion_mnist",
    "folder",
    "mnist",
    "parquet",
    "shapes",
    "static_mnist",
    "streaming",
    "torchvision",
]
