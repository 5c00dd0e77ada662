"""The page: Gradio components before an Explorer, which computes what they show.

The components are made once, and events change their values. `place` is the latent that the large picture is decoded
from; a way to go there is a tab of `vae_lab.explore.tabs`.
"""

from __future__ import annotations

import math
import os
import time
from functools import partial
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read at the import

import gradio as gr
from torch import Tensor

from vae_lab.explore.explorer import Explorer
from vae_lab.explore.latent_map import LatentMap
from vae_lab.explore.pictures import data_uri, image_uri

INSTANT: dict[str, Any] = {"queue": False, "show_progress": "hidden", "trigger_mode": "always_last"}
# Where the picture was clicked, in shares of its width and height.
CLICK = """element.addEventListener('click', event => {
  const box = element.querySelector('img').getBoundingClientRect();
  trigger('click', {x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height});
});"""
CSS = """
.pixels img {image-rendering: pixelated; display: block; width: 100%; margin: 0}
.clickable {cursor: crosshair}
.captions .prose {text-align: center}
#canvas canvas {width: 280px; height: 280px; touch-action: none; cursor: crosshair; border: 1px solid #888}
#canvas .tools {display: flex; flex-wrap: wrap; gap: 14px; align-items: center; padding: 8px 0}
#canvas .clear {border: 1px solid #888; border-radius: 6px; padding: 2px 12px}
#examples, #ends, #samples, #variants {max-width: 560px}
#map {max-width: 680px}
#film {max-width: 200px}
.map {position: relative; background: white; border-radius: 6px; overflow: hidden}
.map img {display: block; width: 100%; margin: 0}
.map i {position: absolute; width: 18px; height: 18px; margin: -9px; border: 3px solid #111; border-radius: 50%;
  outline: 2px solid white; pointer-events: none}
footer {display: none !important}
"""


class Page:
    """The picture, the sliders and the map, which show the place wherever it was set."""

    def __init__(self, explorer: Explorer) -> None:
        self.explorer, examples = explorer, explorer.examples
        self.conditional = explorer.lab.model.conditional
        self.names = [(examples.class_name(k), k) for k in range(explorer.lab.image.num_classes)] or [("", 0)]
        self.first_label = int(examples.labels[0]) if self.conditional and examples.labels is not None else 0
        self.image, self.sliders = gr.State(examples.x[0]), list[gr.Slider]()
        if explorer.has_places:
            self.plane, z = LatentMap(explorer), explorer.centres[0]
            self.place, self.strength_added = gr.State(z), gr.State(0.0)
            self.strength = gr.Slider(-3, 3, 0.0, step=0.05, label="strength", buttons=[], render=False)
            self.map = gr.HTML(
                self._position(z), src=data_uri(self.plane.png), js_on_load=CLICK, elem_classes="clickable", render=False,
                html_template='<div class="map"><img alt="Map of the examples in latent space" src="${src}">'
                '<i style="left:${value[0]}%;top:${value[1]}%"></i></div>', elem_id="map",
            )  # fmt: skip

    def add_pictures(self) -> None:
        """The decoded picture, the image last encoded, and the class."""
        image = self.explorer.examples.x[0]
        with gr.Row():
            with gr.Column(min_width=120):
                self.picture = picture(
                    image_uri(self.explorer.reconstruct(image, self.first_label)), "Decoded picture", "decoded"
                )
                gr.Markdown("decoded")
            with gr.Column(min_width=120):
                self.encoded = picture(image_uri(image), "The image last encoded", "encoded")
                gr.Markdown("the image last encoded")
        self.label = gr.Dropdown(
            self.names, value=self.first_label, label="Class given to the model", visible=self.conditional
        )

    def add_sliders(self) -> None:
        axes, z = self.explorer.axes, self.explorer.centres[0]
        for name, low, high in zip(axes.names, axes.lowest.tolist(), axes.highest.tolist(), strict=True):
            digits = max(0, 2 - math.floor(math.log10(max(high - low, 1e-6))))
            ends = math.floor(low * 10**digits) / 10**digits, math.ceil(high * 10**digits) / 10**digits
            self.sliders.append(gr.Slider(*ends, step=10.0**-digits, precision=digits, label=name, buttons=[]))
        for axis, (slider, value) in enumerate(zip(self.sliders, self.values(z), strict=True)):
            slider.value = value
            slider.input(partial(self._move, axis), [self.place, self.label, slider], self.of_place, **INSTANT)
        self.label.change(self.go, [self.place, self.label], self.of_jump, **INSTANT)

    def _move(self, axis: int, z: Tensor, label: int, value: float) -> list[Any]:
        return self.at(self.explorer.axes.move(z, axis, value), label)

    @property
    def of_place(self) -> list[Any]:
        """Components that follow the place as it moves, with the values of `at`."""
        return [self.place, self.picture, self.map]

    def at(self, z: Tensor, label: int) -> list[Any]:
        return [z, image_uri(self.explorer.decode(z, label)), self._position(z)]

    @property
    def of_jump(self) -> list[Any]:
        """Components that change where the place is another at once, with the values of `go`."""
        return [*self.of_place, self.strength_added, self.strength, *self.sliders]

    def go(self, z: Tensor, label: int) -> list[Any]:
        return [*self.at(z, label), 0.0, 0.0, *self.values(z)]

    @property
    def of_image(self) -> list[Any]:
        """Components that change with the image that is encoded, with the values of `encode`."""
        return [self.image, self.encoded, *(self.of_jump if self.explorer.has_places else [self.picture])]

    def encode(self, image: Tensor, label: int) -> list[Any]:
        if self.explorer.has_places:
            return [image, image_uri(image), *self.go(self.explorer.encode(image, label), label)]
        return [image, image_uri(image), image_uri(self.explorer.reconstruct(image, label))]

    def values(self, z: Tensor) -> list[float]:
        """Of the sliders; for a place beyond its ends a slider is at one of them."""
        coordinates = zip(self.sliders, self.explorer.axes.coordinates(z).tolist(), strict=True)
        return [round(min(max(value, it.minimum), it.maximum), it.precision) for it, value in coordinates]

    def _position(self, z: Tensor) -> list[float]:
        return [round(100 * share, 2) for share in self.plane.position(z)]


def picture(uri: str, alt: str, name: str, click: bool = False, visible: bool = True) -> gr.HTML:
    """A picture whose value is its URI; pixels stay squares. click: whether its click tells where."""
    classes, script = (["pixels", "clickable"], CLICK) if click else (["pixels"], None)
    template = f'<img alt="{alt}" src="${{value}}">'
    return gr.HTML(uri, html_template=template, js_on_load=script, elem_id=name, elem_classes=classes, visible=visible)


def serve(blocks: gr.Blocks, host: str, port: int, open_browser: bool) -> None:
    """Serve the page until an exception, such as that of a signal, ends it."""
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    blocks.launch(
        server_name=host, server_port=port, inbrowser=open_browser, share=False, quiet=True, prevent_thread_lock=True,
        ssr_mode=False, footer_links=[], enable_monitoring=False, theme=theme, css=CSS,
    )  # fmt: skip
    print(f"{blocks.local_url} (Ctrl-C ends it)", flush=True)  # noqa: T201
    try:
        while True:
            time.sleep(1)
    finally:
        blocks.close(verbose=False)
