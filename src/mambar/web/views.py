"""An explanation as HTML and files: classes, maps and a histogram; names are always escaped."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mambar.analysis.draw import html
from mambar.analysis.draw.color_maps import MapStyle, Resampling, photograph
from mambar.analysis.draw.figures import distribution_charts
from mambar.analysis.draw.image_maps import GalleryImage, MapRow, RegisterMaps, draw_gallery, gallery_html
from mambar.analysis.draw.plots import draw_chart, png, svg
from mambar.analysis.figure_label import FigureLabel, layer_name, layers_text, listed
from mambar.analysis.measure.collect import CollectedNorms
from mambar.analysis.measure.feature_maps import GLOBAL_VECTORS, METRIC_NAMES
from mambar.analysis.measure.register_maps import registers_label
from mambar.data.synthetic.photographs import photographs
from mambar.web.explain import METRIC, Explanation, ModelExplanation


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """The visitor's settings: layer (from 0, of the first model), second model, scale and resampling."""

    layer: int
    compare: bool = True
    scale: Literal["linear", "log"] = "linear"
    resampling: Resampling = "nearest"


def predictions_html(explanation: Explanation, choices: ViewSettings) -> html.Html:
    """The classes of each model with bars, a warning for random weights, and the run time."""
    cards = []
    for view in _shown(explanation, choices):
        rows = [
            html.element(
                "li",
                html.element("span", each.name, class_="name"),
                html.element("span", f"{each.probability:.1%}", class_="share"),
                html.element("span", class_="bar", style=f"--share:{each.probability:.4f}"),
            )
            for each in view.predictions
        ]
        parts = [html.element("h3", view.name)]
        if view.random_weights:
            parts.append(html.element("p", "random weights: the maps show untrained features", class_="warning"))
        if rows:
            parts.append(html.element("ol", *rows, class_="predictions"))
        else:
            parts.append(html.element("p", "This model has no classifier.", class_="note"))
        seconds = " · ".join(f"{name} {1000 * value:.0f} ms" for name, value in view.seconds.items())
        parts.append(html.element("p", seconds, class_="note"))
        cards.append(html.element("div", *parts, class_="card"))
    return html.element("div", *cards, class_="mambar cards")


def maps_html(explanation: Explanation, choices: ViewSettings) -> html.Html:
    """The image and the norm, feature and register maps of the chosen layer, models on one scale."""
    # The browser interpolates the small map, which saves sending a large image.
    kind = "mambar smooth" if choices.resampling == "bicubic" else "mambar"
    return html.element("div", gallery_html(gallery(explanation, choices), MapStyle()), class_=kind)


def histogram_html(explanation: Explanation, choices: ViewSettings) -> html.Html:
    """The distribution of the norms of the chosen layer, for patches and registers of each model."""
    views = _shown(explanation, choices)
    norms: Mapping[str, CollectedNorms] = {view.name: view.norms for view in views}
    layers = {view.name: explanation.layer(view, choices.layer) for view in views}
    label = _label(explanation, views, choices.layer, metric="L2 norm of each token")
    registers = {view.name: registers_label(view.register_names) for view in views}
    picture = svg(draw_chart(distribution_charts(norms, [layers], label, registers=registers), 0))
    rows = []
    for view in views:
        layer = explanation.layer(view, choices.layer)
        patches, registers = view.norms.patches[layer], view.norms.registers[layer]
        values = (patches.median, patches.quantile(0.99), patches.maximum, registers.median)
        rows.append((view.name, *(f"{value:.4g}" if value == value else "–" for value in values)))
    table = html.table(("model", "median", "99 %", "maximum", "registers"), rows)
    chart = html.svg_image(picture, description="histogram of token norms", class_="chart")
    return html.element("div", chart, table, class_="mambar histogram")


def share_html(explanation: Explanation, choices: ViewSettings) -> html.Html:
    """Links that save the shown figure and its numbers; the files are embedded in the page."""
    picture, numbers = share_png(explanation, choices), share_json(explanation, choices)
    name = f"mambar-layer-{choices.layer}"
    return html.element(
        "div",
        _save_link(picture, "image/png", f"{name}.png", "Save picture (PNG)"),
        _save_link(numbers, "application/json", f"{name}.json", "Save numbers (JSON)"),
        class_="mambar share",
    )


def share_png(explanation: Explanation, choices: ViewSettings) -> bytes:
    """Image, feature maps and norm maps of the chosen layer as one labeled figure."""
    return png(draw_gallery(gallery(explanation, choices), MapStyle(resampling=choices.resampling)))


def share_json(explanation: Explanation, choices: ViewSettings) -> bytes:
    """The numbers of the figure, see `Explanation.to_dict`."""
    text = json.dumps(explanation.to_dict(choices.layer), indent=1, ensure_ascii=False)
    return f"{text}\n".encode("utf-8", "backslashreplace")


def gallery(explanation: Explanation, choices: ViewSettings) -> GalleryImage:
    """The gallery image of the chosen layer and models, as in reports."""
    views = _shown(explanation, choices)
    at = {view.name: explanation.layer(view, choices.layer) for view in views}
    rows = [
        MapRow(
            name=f"Token norm, {layers_text(at.values())}",
            quantity="L2 norm",
            maps={view.name: view.norm_maps()[at[view.name]].numpy() for view in views},
            scale=choices.scale,
        ),
        MapRow(
            name="Feature map",
            quantity=f"{METRIC_NAMES[METRIC]} (bright: similar)",
            maps={view.name: view.feature_maps[at[view.name]].numpy() for view in views},
        ),
    ]
    vectors = listed(GLOBAL_VECTORS.get(view.vector, view.vector) for view in views)
    metric = f"norms: L2; maps: {METRIC_NAMES[METRIC]} to {vectors}, after the final norm"
    registers = []
    for view in views:
        if view.register_maps is not None and len(view.register_names) > 1:
            maps = dict(zip(view.register_names, view.register_maps[at[view.name]].numpy(), strict=True))
            title = f"{view.name}: similarity of each register to the image tokens"
            label = _label(explanation, [view], choices.layer, metric=METRIC_NAMES[METRIC], tensor="normed")
            registers.append(RegisterMaps(model=view.name, row=replace(rows[1], name=title, maps=maps), label=label))
    return GalleryImage(
        name=explanation.name,
        image=explanation.image.numpy(),
        rows=rows,
        registers=registers,
        label=_label(explanation, views, choices.layer, metric=metric),
    )


def thumbnails_css(selector: str) -> str:
    """CSS rules that show the n-th built-in photograph on the n-th radio button."""
    rules = []
    for place, image in enumerate(photographs().values(), start=1):
        side = min(image.shape[1:])
        top, left = (image.shape[1] - side) // 2, (image.shape[2] - side) // 2
        data, media_type = photograph(image[:, top : top + side, left : left + side].numpy(), max_size=128)
        rules.append(
            f"{selector} label:nth-of-type({place})::before {{ background-image: url({_data_url(data, media_type)}); }}"
        )
    return "\n".join(rules)


def _shown(explanation: Explanation, choices: ViewSettings) -> Sequence[ModelExplanation]:
    return explanation.views if choices.compare else explanation.views[:1]


def _label(
    explanation: Explanation, views: Sequence[ModelExplanation], layer: int, *, metric: str, tensor: str = "residual"
) -> FigureLabel:
    """The label of a figure of these models at `layer` of the first model."""
    return FigureLabel(
        tensor=tensor,
        layer=listed(layer_name(explanation.layer(view, layer), view.num_layers) for view in views),
        metric=metric,
        model=listed(f"{view.name} (random weights)" if view.random_weights else view.name for view in views),
        input=listed(view.input_size for view in views),
        data=explanation.name,
    )


def _save_link(data: bytes, media_type: str, name: str, text: str) -> html.Html:
    return html.element("a", text, class_="save", download=name, href=_data_url(data, media_type))


def _data_url(data: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"
