"""The page in gradio components, with its event handlers.

Importing this module imports gradio, which then reads environment variables; `mambar.web.server` sets them first.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio_client.utils import is_http_url_like

from mambar.analysis.analyzed_model import AnalyzedModel
from mambar.analysis.draw import html
from mambar.data.loading.images import read_image
from mambar.data.synthetic.photographs import photographs
from mambar.errors import MambarError
from mambar.image_file import MAX_PIXELS
from mambar.version import __version__
from mambar.web.explain import Explanation, explain
from mambar.web.views import ViewSettings, histogram_html, maps_html, predictions_html, share_html

logger = logging.getLogger("mambar.web.page")

# In seconds: the age at which uploads are removed, the interval of that check, and how long a result is cached.
_UPLOAD_LIFETIME, _CLEANUP_INTERVAL, _RESULT_LIFETIME = 600, 60, 1800


class PageState:
    """State of all visitors: the models, and cached results of the built-in photographs."""

    def __init__(self, analyzed_models: Sequence[AnalyzedModel], *, max_pixels: int = MAX_PIXELS) -> None:
        self.analyzed_models, self.max_pixels = tuple(analyzed_models), max_pixels
        self._photographs = photographs()
        self._seen: dict[str, Explanation] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """The built-in photographs."""
        return list(self._photographs)

    def photograph(self, name: str) -> Explanation:
        """The results for a built-in photograph; its name is looked up in a table, never opened as a file."""
        with self._lock:
            if name not in self._seen:
                self._seen[name] = explain(self.analyzed_models, self._photographs[name], name=name)
            return self._seen[name]

    def upload(self, path: Path) -> Explanation:
        """The results for an uploaded file; its file name is not shown."""
        image = read_image(path.read_bytes(), name="The image", max_pixels=self.max_pixels)
        with self._lock:
            return explain(self.analyzed_models, image, name="uploaded image")


def _uploaded_path(payload: Any) -> str | None:
    """The path of an upload, which gradio has checked; data in place of a path is refused.

    gradio's own preprocessing decodes every Pillow format up to 179 megapixels, before `read_image` can refuse it.
    """
    if payload is None:
        return None
    if not payload.path:
        raise gr.Error("Choose an image file.", print_exception=False)
    return str(payload.path)


def build_page(analyzed_models: Sequence[AnalyzedModel], *, max_pixels: int = MAX_PIXELS) -> gr.Blocks:
    """The page of one model, or of two side by side."""
    state = PageState(analyzed_models, max_pixels=max_pixels)
    names = [analyzed.name for analyzed in analyzed_models]
    layers = analyzed_models[0].model.num_layers
    with gr.Blocks(
        title=f"mambar: {' and '.join(names)}",
        analytics_enabled=False,
        delete_cache=(_CLEANUP_INTERVAL, _UPLOAD_LIFETIME),
    ) as page:
        seen = gr.State(None, time_to_live=_RESULT_LIFETIME)
        gr.HTML(_head(analyzed_models))
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                upload = gr.Image(
                    label="Drop an image here (PNG, JPEG or WEBP, at most 5 MB)",
                    type="filepath",
                    sources=["upload", "clipboard"],
                    image_mode=None,
                    height=220,
                    buttons=[],
                    elem_id="upload",
                )
                # Set on the object: for a subclass, gradio writes a stub file beside this module.
                upload.preprocess = _uploaded_path
                photograph = gr.Radio(
                    choices=state.names, value=state.names[0], label="or choose a photograph", elem_id="photographs"
                )
            with gr.Column(scale=3, min_width=280):
                predictions = gr.HTML(elem_id="predictions")
                layer = gr.Slider(
                    0, max(layers - 1, 1), value=layers - 1, step=1, label="Layer", elem_id="layer", buttons=[]
                )
                with gr.Row():
                    scale = gr.Radio(
                        ["linear", "log"], value="linear", label="Norm scale", elem_id="scale", min_width=180
                    )
                    resampling = gr.Radio(
                        ["tokens", "smooth"], value="tokens", label="Maps", elem_id="resampling", min_width=180
                    )
                compare = gr.Checkbox(
                    value=len(analyzed_models) > 1,
                    label="Both models side by side",
                    visible=len(analyzed_models) > 1,
                    elem_id="compare",
                )
        maps = gr.HTML(elem_id="maps")
        histogram = gr.HTML(elem_id="histogram")
        with gr.Row(elem_id="share-row"):
            share_button = gr.Button("Share this view", elem_id="share-button", variant="secondary", min_width=180)
            share = gr.HTML(elem_id="share")

        settings = [layer, compare, scale, resampling]
        shown = [predictions, maps, histogram, share]
        heavy: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private"}
        light: dict[str, Any] = {"concurrency_limit": 2, "concurrency_id": "drawing", "api_visibility": "private"}

        def explained(find: Callable[[Any], Explanation], source: Any, *chosen: Any) -> Any:
            try:
                found = find(source)
            except MambarError as error:
                raise gr.Error(str(error), print_exception=False) from error
            # The last output clears the other input: the upload or the photograph.
            return (found, *_drawn(found, _choices(layers, *chosen)), None)

        def on_photograph(name: str, *chosen: Any) -> Any:
            return explained(state.photograph, name, *chosen)

        def on_upload(path: str | None, *chosen: Any) -> Any:
            if path is None:
                raise gr.Error("Choose an image file.", print_exception=False)
            return explained(lambda given: state.upload(Path(given)), path, *chosen)

        def on_settings(found: Explanation | None, *chosen: Any) -> Any:
            found = found or state.photograph(state.names[0])
            return _drawn(found, _choices(layers, *chosen))

        def on_share(found: Explanation | None, *chosen: Any) -> str:
            found = found or state.photograph(state.names[0])
            return share_html(found, _choices(layers, *chosen))

        gr.on([page.load, photograph.input], on_photograph, [photograph, *settings], [seen, *shown, upload], **heavy)
        upload.upload(on_upload, [upload, *settings], [seen, *shown, photograph], **heavy)
        gr.on(
            [layer.input, compare.input, scale.input, resampling.input],
            on_settings,
            [seen, *settings],
            shown,
            trigger_mode="always_last",
            show_progress="hidden",
            **light,
        )
        share_button.click(on_share, [seen, *settings], share, **light)
    for block in page.blocks.values():
        _fetch_nothing(block)
    _log_errors_in_one_line(page)
    return page


def _log_errors_in_one_line(page: gr.Blocks) -> None:
    """Replaces gradio's traceback of an invalid request by one line in the log."""
    process = page.process_api

    async def process_api(*args: Any, **kwargs: Any) -> Any:
        try:
            return await process(*args, **kwargs)
        except Exception as error:
            if not isinstance(error, gr.Error):
                logger.warning("An event failed: %s", type(error).__name__)
                logger.debug("Traceback:", exc_info=True)
                raise gr.Error("The request is not valid.", print_exception=False) from None
            error.print_exception = False
            raise

    page.process_api = process_api


def _fetch_nothing(block: Any) -> None:
    """Prevents gradio from downloading an address that is given in place of an uploaded file.

    The value of any component may be such a file, and gradio refuses addresses of private networks only.
    """
    keep = block.async_move_resource_to_block_cache

    async def keep_file(path: Any) -> Any:
        if is_http_url_like(str(path)):
            raise gr.Error("Images are uploaded; none is fetched from elsewhere.", print_exception=False)
        return await keep(path)

    block.async_move_resource_to_block_cache = keep_file


def _choices(layers: int, layer: Any, compare: Any, scale: Any, resampling: Any) -> ViewSettings:
    """The visitor's settings; invalid values become the default."""
    number = int(layer) if isinstance(layer, int | float) and abs(layer) < 1e6 else layers - 1
    return ViewSettings(
        layer=min(max(number, 0), layers - 1),
        compare=bool(compare),
        scale="log" if scale == "log" else "linear",
        resampling="bicubic" if resampling == "smooth" else "nearest",
    )


def _drawn(found: Explanation, choices: ViewSettings) -> tuple[str, str, str, str]:
    """Classes, maps and histogram; the links to save an earlier view are removed."""
    return predictions_html(found, choices), maps_html(found, choices), histogram_html(found, choices), ""


def _head(analyzed_models: Sequence[AnalyzedModel]) -> html.Html:
    names = " and ".join(analyzed.name for analyzed in analyzed_models)
    sizes = " and ".join(dict.fromkeys("×".join(map(str, s.preprocessing.size)) for s in analyzed_models))
    return html.element(
        "div",
        html.element("h1", names),
        html.element(
            "p",
            f"Classes, token norms, feature and register maps. Images are read at {sizes} pixels. ",
            f"mambar {__version__}; nothing leaves this machine.",
        ),
        class_="mambar head",
    )
