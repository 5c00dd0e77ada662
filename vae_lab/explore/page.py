"""The page: Gradio components before an Explorer, which computes what they show.

The components are made once, and events change their values. `place` is the latent that the large picture is decoded
from; a way to go there is a tab of `vae_lab.explore.tabs`.
"""

from __future__ import annotations

import math
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read at the import

import gradio as gr
from torch import Tensor

from vae_lab.explore.explorer import Explorer
from vae_lab.explore.latent_map import LatentMap
from vae_lab.explore.pictures import image_uri
from vae_lab.figures.canvas import data_uri

NUM_EXAMPLES = 40
# Of every event. A public one would be stored in the browser with all its pictures, which takes a second after a while.
INSTANT: dict[str, Any] = {
    "queue": False, "show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private",
}  # fmt: skip
# Where the picture was clicked, in shares of its width and height.
CLICK = """element.addEventListener('click', event => {
  const box = element.querySelector('img').getBoundingClientRect();
  trigger('click', {x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height});
});"""
MAP = """<div class="map"><img alt="Map of the examples in latent space" src="${src}">
<i style="left:${value[0]}%;top:${value[1]}%"></i></div>"""
STYLE = f"<style>{Path(__file__).with_name('page.css').read_text()}</style>"


class Page:
    """The picture, the sliders and the map, which show the place wherever it was set."""

    def __init__(self, explorer: Explorer) -> None:
        self.explorer, examples = explorer, explorer.examples
        self.conditional = explorer.lab.model.conditional
        self.names = [(examples.class_name(k), k) for k in range(explorer.lab.image.num_classes)] or [("", 0)]
        self.first_label = int(examples.labels[0]) if self.conditional and examples.labels is not None else 0
        self.examples = examples.x[:NUM_EXAMPLES]  # to click on
        self.image, self.sliders = gr.State(examples.x[0]), list[gr.Slider]()
        if explorer.has_places:
            self.plane, z = LatentMap(explorer), explorer.centres[0]
            self.place, self.strength_added = gr.State(z), gr.State(0.0)
            self.strength = gr.Slider(-3, 3, 0.0, step=0.05, label="strength", buttons=[], render=False)
            self.map = gr.HTML(
                self._position(z), html_template=MAP, src=data_uri(self.plane.png), js_on_load=CLICK, elem_id="map",
                elem_classes="clickable", render=False,
            )  # fmt: skip

    def add_pictures(self) -> None:
        """The decoded picture, the one last encoded, and the class."""
        image = self.explorer.examples.x[0]
        with gr.Row(elem_id="pictures"):
            decoded = self.explorer.reconstruct(image, self.first_label)
            self.picture = picture(image_uri(decoded), "decoded picture", "decoded", caption=True)
            self.encoded = picture(image_uri(image), "encoded picture", "encoded", caption=True)
        self.label = gr.Dropdown(
            self.names, value=self.first_label, label="class given to the model", visible=self.conditional
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


def picture(uri: str, alt: str, name: str, caption: bool = False, click: bool = False, **options: Any) -> gr.HTML:
    """A picture whose value is its URI; pixels stay squares. click: whether its click tells where."""
    classes, script = (["pixels", "clickable"], CLICK) if click else (["pixels"], None)
    template = f'<img alt="{alt}" src="${{value}}">' + (f"<p>{alt}</p>" if caption else "")
    return gr.HTML(uri, html_template=template, js_on_load=script, elem_id=name, elem_classes=classes, **options)


def serve(blocks: gr.Blocks, host: str, port: int, open_browser: bool) -> None:
    """Serve the page until an exception, such as that of a signal, ends it."""
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    blocks.launch(
        server_name=host, server_port=port, inbrowser=open_browser, share=False, quiet=True, prevent_thread_lock=True,
        ssr_mode=False, footer_links=[], enable_monitoring=False, run_history=False, theme=theme, head=STYLE,
    )  # fmt: skip
    print(f"{blocks.local_url} (Ctrl-C ends it)", flush=True)  # noqa: T201
    try:
        while True:
            time.sleep(1)
    finally:
        blocks.close(verbose=False)
