"""A small app: a config directory with the groups of vae_lab's own, and its composition in this process."""

from pathlib import Path
from textwrap import dedent

FILES = {
    "app.yaml": """
        defaults: [schema, trainer: auto, logger: board, callbacks: all, model: mlp, data: digits, experiment: null,
                   override hydra/job_logging: disabled, override hydra/hydra_logging: disabled, _self_]
        objective: {beta: 1.0}
        optimizer: {lr: 0.001}
        hydra:
          run: {dir: "outputs/${run_name:}/${now:%Y-%m-%d_%H-%M-%S}"}
          sweep: {dir: "outputs/sweeps/${now:%Y-%m-%d_%H-%M-%S}", subdir: "${hydra.job.num}"}
          callbacks: {run_folder: {_target_: vae_lab.runs.run_dir.RunDirectory}}
    """,
    "trainer/auto.yaml": "max_epochs: 3\nprecision: bf16-mixed",
    "trainer/cpu.yaml": "accelerator: cpu",
    "logger/board.yaml": "board: {flush: 10}",
    "logger/csv.yaml": "csv: {every: 5}",
    "callbacks/all.yaml": "images: {every: 1}\nstop: {patience: 3}",
    "callbacks/none.yaml": "{}",
    "model/mlp.yaml": "latent_dim: 2\nhidden: ${model.latent_dim}\nencoder: {hidden: 400}",
    "model/conv.yaml": "latent_dim: 32\nencoder: {channels: 8}",
    "model/unset.yaml": "latent_dim: ???",
    "model/encoder/deep.yaml": "hidden: 800",
    "data/digits.yaml": "root: data\nbatch_size: 8",
    "experiment/paper.yaml": "# @package _global_\ndefaults: [override /model: conv]\nseed: 7",
    "experiment/key.yaml": "# @package _global_\ntrainer: {max_epoch: 3}",
    "experiment/type.yaml": "# @package _global_\nseed: many",
    "experiment/option.yaml": "# @package _global_\ndefaults: [override /model: cnov]",
    "experiment/group.yaml": "# @package _global_\ndefaults: [override /modle: conv]",
}


def write_conf(folder: Path) -> str:
    """Write the config directory below a folder; returns its path."""
    for name, text in FILES.items():
        file = folder / "conf" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(text))
    return str(folder / "conf")
