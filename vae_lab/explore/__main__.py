"""python -m vae_lab.explore RUN: the latent space of a run on a local page in the browser."""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from vae_lab.fit_prior import prepare_device
from vae_lab.runs.cli import run_command
from vae_lab.runs.command_line import run_as_first_argument
from vae_lab.runs.sweep import require_single_run
from vae_lab.utils.errors import UsageError, require_extra
from vae_lab.utils.signals import StopSignals

if TYPE_CHECKING:
    from vae_lab.explore.explorer import Explorer
    from vae_lab.figures.context import ExampleImages
    from vae_lab.inference import Lab

FIRST_PORT, NUM_PORTS = 7860, 100
NUM_PRIOR_SAMPLES = 500  # instead of the run's images


def main() -> None:
    run_as_first_argument()
    run_command(explore, config_name="explore")


def explore(config: DictConfig) -> None:
    require_single_run("explore shows one run")
    with StopSignals():
        explorer, note = explorer_of(config)
        port = available_port(config.host, config.port)
        require_extra("explore", "gradio")
        from vae_lab.explore.page import serve
        from vae_lab.explore.tabs import build_page

        serve(build_page(explorer, str(config.run), note), config.host, port, config.open)


def explorer_of(config: DictConfig) -> tuple[Explorer, str]:
    """The model of a run with its images, and a note if prior samples stand in for them. UsageError."""
    from vae_lab.explore.explorer import Explorer
    from vae_lab.inference import load

    if config.images < 2:
        raise UsageError(f"images={config.images}: expected at least 2")
    lab = load(config.run, config.checkpoint, config.trusted, config.prior)
    device = prepare_device(config.device, lab.config)
    both = lab.fitted_prior is not None and config.prior is None
    trained = load(config.run, config.checkpoint, config.trusted, "trained").to(device) if both else None
    examples, note = examples_of(lab.to(device), config)
    return Explorer(lab, examples, trained), note


def examples_of(lab: Lab, config: DictConfig) -> tuple[ExampleImages, str]:
    """Images of the test split; prior samples, and why, if they are not where the run says. UsageError: neither."""
    from vae_lab.callbacks.images import example_images
    from vae_lab.explore.explorer import prior_samples
    from vae_lab.inference import images_of

    try:
        return example_images(images_of(lab, config.data), config.images, lab.model.latents), ""
    except UsageError as error:
        if any(value is not None for value in config.data.values()):
            raise
        reason = str(error).splitlines()[0]
        try:
            examples = prior_samples(lab, min(config.images, NUM_PRIOR_SAMPLES))
        except ValueError:
            raise error from None
        note = f"Samples of the prior stand in for the run's images, which data.root or data.folder locates: {reason}"
        sys.stderr.write(f"{note}\n")
        return examples, note


def available_port(host: str, port: int | None) -> int:
    """The port, or without one the first free from 7860. UsageError: it is taken, or no such host."""
    for number in range(FIRST_PORT, FIRST_PORT + NUM_PORTS) if port is None else [port]:
        try:
            socket.create_server((host, number)).close()
        except (OSError, OverflowError) as error:
            reason = error
        else:
            return number
    where = f"port={port}" if port is not None else f"ports {FIRST_PORT} to {FIRST_PORT + NUM_PORTS - 1}"
    raise UsageError(f"{where} of host={host}: {reason}\nleave port out for a free one, or choose another")


if __name__ == "__main__":
    main()
