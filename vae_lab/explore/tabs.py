"""The tabs of the page: each is a way to a place, or to pictures."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from torch import Tensor

from vae_lab.data.decode import UnreadableImageError
from vae_lab.explore.explorer import Explorer
from vae_lab.explore.page import INSTANT, Page, picture
from vae_lab.explore.pictures import animation_uri, cell, grid_uri

NUM_SAMPLES, NUM_VARIANTS = 32, 16
PATH_STEPS, STRIP, CANVAS = 33, 9, 280
CANVAS_HTML = """<canvas width="${size}" height="${size}" style="background: ${ground}"></canvas>
<div class="tools"><label>colour <input class="ink" type="color" value="${ink}"></label>
<label>width <input class="width" type="range" min="1" max="60" value="${width}"></label>
<button class="clear">Clear</button> <input class="file" type="file" accept="image/*" aria-label="Open"></div>"""
NO_PLACES = {
    True: "A hierarchy has no single z for sliders and a map: give it an image, and resample its layers.",
    False: "This model has codes, and between two of them there is nothing: no sliders, map or interpolation.",
}


def build_page(explorer: Explorer, name: str, note: str = "") -> gr.Blocks:
    """The page of a run. name: its title. note: what a user should know of the images."""
    with gr.Blocks(title=f"{name} - vae_lab", analytics_enabled=False) as blocks:
        gr.Markdown(f"### {name}\n{explorer.lab!r}" + (f"\n\n**{note}**" if note else ""))
        with gr.Row():
            page = Page(explorer)
            with gr.Column(scale=2, min_width=300, elem_classes="left"):
                page.add_pictures()
                if explorer.has_places:
                    page.add_sliders()
                else:
                    gr.Markdown(NO_PLACES[explorer.num_layers > 0])
            with gr.Column(scale=3, min_width=320), gr.Tabs():
                for title, fill in tabs(explorer).items():
                    with gr.Tab(title):
                        fill(page)
    return blocks


def tabs(explorer: Explorer) -> dict[str, Callable[[Page], None]]:
    """The tabs that a model has."""
    every: list[tuple[str, Callable[[Page], None], bool]] = [
        ("Map", latent_map, explorer.has_places),
        ("Images", images, True),
        ("Draw or drop", canvas, True),
        ("Interpolate", interpolation, explorer.has_places and len(explorer.examples) > 1),
        ("Arithmetic", arithmetic, explorer.has_places and len(explorer.labels) > 1),
        ("Layers", layers, explorer.num_layers > 0),
        ("Samples", samples, explorer.context.can_sample),
    ]
    return {title: fill for title, fill, there in every if there}


def latent_map(page: Page) -> None:
    gr.Markdown("Click to decode a point of the plane. The ring is the place of the decoded picture.")
    page.map.render()

    def clicked(label: int, event: gr.EventData) -> list[Any]:
        return page.go(page.plane.place(event.x, event.y), label)

    page.map.click(clicked, page.label, page.of_jump, **INSTANT)


def images(page: Page) -> None:
    examples = page.explorer.examples
    gr.Markdown(f"Images of the {examples.split} split. Click to encode one.")
    grid = clickable(page, "examples")

    def clicked(label: int, event: gr.EventData) -> list[Any]:
        index = cell(event.x, event.y, len(page.examples))
        if page.conditional and examples.labels is not None:
            label = int(examples.labels[index])
        return [label, *page.encode(page.examples[index], label)]

    grid.click(clicked, page.label, [page.label, *page.of_image], **INSTANT)


def canvas(page: Page) -> None:
    ground = page.explorer.background
    ink = "#ffffff" if sum(bytes.fromhex(ground[1:])) < 3 * 128 else "#000000"
    gr.Markdown("Draw, or drop, paste or open a picture: it is resized, and binarised as the data are.")
    board = gr.HTML(
        html_template=CANVAS_HTML, js_on_load=Path(__file__).with_name("canvas.js").read_text(), elem_id="canvas",
        size=CANVAS, ground=ground, ink=ink, width=CANVAS // 14,
    )  # fmt: skip
    invert, drawn = gr.Checkbox(label="exchange light and dark"), gr.State(b"")

    def encode(drawn: bytes, invert: bool, label: int) -> list[Any]:
        try:
            return [drawn, *page.encode(page.explorer.read(drawn, invert), label)]
        except UnreadableImageError as error:
            raise gr.Error(f"The picture {error}") from error

    def draw(invert: bool, label: int, event: gr.EventData) -> list[Any]:
        return encode(base64.b64decode(event.picture.partition(",")[2]), invert, label)

    board.draw(draw, [invert, page.label], [drawn, *page.of_image], **INSTANT)
    invert.input(lambda drawn, *given: encode(drawn, *given) if drawn else gr.skip(), [drawn, invert, page.label],
                 [drawn, *page.of_image], **INSTANT)  # fmt: skip


def interpolation(page: Page) -> None:
    explorer = page.explorer
    with gr.Row():
        which = gr.Radio(["start", "end"], value="start", label="a click on an image chooses the")
        on_sphere = explorer.lab.model.latents[0].kind == "sphere"  # where only great circles are paths
        kind = gr.Radio(["spherical", "linear"], value="spherical", label="path", visible=not on_sphere)
    grid, ends = clickable(page, "ends"), gr.State([0, 1])
    position = gr.Slider(0, 1, 0, step=0.01, label="position on the path", buttons=[])

    def strip_of(ends: Sequence[int], kind: Any, label: int) -> str:
        return grid_uri(explorer.decode(explorer.path(ends, STRIP, kind), label), STRIP)

    strip = picture(strip_of([0, 1], "spherical", page.first_label), "Pictures along the path", "strip")
    with gr.Row():
        play = gr.Button("Play", min_width=100)
        film = picture("", "The interpolation, there and back", "film", visible=False)

    def clicked(which: str, ends: list[int], kind: Any, label: int, event: gr.EventData) -> list[Any]:
        index = cell(event.x, event.y, len(page.examples))
        ends = [index, ends[1]] if which == "start" else [ends[0], index]
        return ["end" if which == "start" else "start", ends, strip_of(ends, kind, label), gr.update(visible=False)]

    def move(ends: list[int], kind: Any, label: int, position: float) -> list[Any]:
        z = explorer.path(ends, 101, kind)[round(100 * position)]
        return page.go(z, label)

    def animate(ends: list[int], kind: Any, label: int) -> Any:
        frames = explorer.decode(explorer.path(ends, PATH_STEPS, kind), label)
        return gr.update(value=animation_uri(frames), visible=True)

    path = [ends, kind, page.label]
    grid.click(clicked, [which, *path], [which, ends, strip, film], **INSTANT)
    gr.on([kind.change, page.label.change], strip_of, path, strip, **INSTANT)
    position.input(move, [*path, position], page.of_jump, **INSTANT)
    play.click(animate, path, film, **INSTANT)


def arithmetic(page: Page) -> None:
    gr.Markdown("To the place of the decoded picture: strength x (mean of one class - mean of another).")
    names = [page.names[label] for label in page.explorer.labels]
    plus = gr.Dropdown(names, value=names[1][1], label="plus the mean of")
    minus = gr.Dropdown(names, value=names[0][1], label="minus the mean of")
    page.strength.render()

    def add(z: Tensor, added: float, label: int, plus: int, minus: int, strength: float) -> list[Any]:
        z = z + (strength - added) * page.explorer.attribute(plus, minus)
        return [*page.at(z, label), strength, *page.values(z)]

    inputs = [page.place, page.strength_added, page.label, plus, minus, page.strength]
    page.strength.input(add, inputs, [*page.of_place, page.strength_added, *page.sliders], **INSTANT)
    gr.on([plus.change, minus.change], lambda: [0.0, 0.0], None, [page.strength_added, page.strength], **INSTANT)


def layers(page: Page) -> None:
    gr.Markdown("The image last encoded, with some layers sampled from the prior given the layers above.")
    shapes = ["x".join(map(str, latent.shape)) for latent in page.explorer.lab.model.latents]
    choices = [(f"{layer}: {shape}", layer) for layer, shape in enumerate(shapes)]
    lower = list(range(len(choices) // 2, len(choices)))
    chosen = gr.CheckboxGroup(choices, value=lower, label="layers to resample, from the top down")
    temperature, seed = sampling_controls(page, "Resample")

    def resample(image: Tensor, layers: list[int], temperature: float, seed: float, label: int) -> str:
        return grid_uri(page.explorer.resample(image, layers, NUM_VARIANTS, temperature, int(seed or 0), label))

    inputs = [page.image, chosen, temperature, seed, page.label]
    first = resample(page.explorer.examples.x[0], lower, 1.0, 0, page.first_label)
    grid = picture(first, "Variants of the image", "variants")
    gr.on([chosen.input, temperature.input, seed.change, page.image.change], resample, inputs, grid, **INSTANT)


def samples(page: Page) -> None:
    explorer, fitted = page.explorer, page.explorer.lab.fitted_prior
    prior = gr.Radio([fitted or "", "trained"], value=fitted, label="prior", visible=explorer.trained is not None)
    temperature, seed = sampling_controls(page, "New samples")

    def sample(prior: str | None, temperature: float, seed: float, label: int) -> list[Any]:
        found = explorer.samples(NUM_SAMPLES, temperature, int(seed or 0), label, prior or "")
        return [grid_uri(found.images), found.places]

    uri, first = sample(fitted, 1.0, 0, page.first_label)
    grid, places = picture(uri, "Samples", "samples", click=True), gr.State(first)
    triggers = [prior.input, temperature.input, seed.change, page.label.change]
    gr.on(triggers, sample, [prior, temperature, seed, page.label], [grid, places], **INSTANT)
    if explorer.has_places:
        gr.Markdown("Click a sample to go to its place.")

        def clicked(places: Tensor, label: int, event: gr.EventData) -> list[Any]:
            return page.go(places[cell(event.x, event.y, NUM_SAMPLES)], label)

        grid.click(clicked, [places, page.label], page.of_jump, **INSTANT)


def sampling_controls(page: Page, button: str) -> tuple[gr.Slider, gr.Number]:
    """Temperature and seed, and a button for the next seed."""
    adjustable = page.explorer.context.can_sample_at_temperature
    temperature = gr.Slider(0, 1.5, 1.0, step=0.05, label="temperature", buttons=[], visible=adjustable)
    with gr.Row():
        seed = gr.Number(0, precision=0, label="seed", min_width=80)
        gr.Button(button).click(lambda seed: (seed or 0) + 1, seed, seed, **INSTANT)
    return temperature, seed


def clickable(page: Page, name: str) -> gr.HTML:
    """The first example images as a grid."""
    return picture(grid_uri(page.examples), "Example images", name, click=True)
