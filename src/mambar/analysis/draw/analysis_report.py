"""The pages and files of an analysis: report.html, every figure as PNG and SVG, the numbers as JSON and npz."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mambar.analysis.analyze_model import AnalysisResult
from mambar.analysis.draw import html
from mambar.analysis.draw.color_maps import MapStyle
from mambar.analysis.draw.figures import (
    distribution_charts,
    ground_truth_charts,
    norm_charts,
    outlier_charts,
    probe_charts,
    similarity_charts,
)
from mambar.analysis.draw.image_maps import (
    GalleryImage,
    MapRow,
    RegisterMaps,
    draw_gallery,
    draw_registers,
    gallery_html,
    norm_scale,
)
from mambar.analysis.draw.object_boxes import draw_object_boxes
from mambar.analysis.draw.plots import ChartGrid, draw_chart, draw_chart_grid, png, svg
from mambar.analysis.draw.tables import (
    added_table,
    discovery_table,
    ground_truth_tables,
    local_table,
    outlier_table,
    probe_table,
    register_table,
)
from mambar.analysis.figure_label import TENSORS, layer_name, layers_text, listed, size_text
from mambar.analysis.measure.feature_maps import GLOBAL_VECTORS, METRIC_NAMES
from mambar.analysis.numbers import Analysis, arrays_npz, numbers_json
from mambar.atomic_files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_analysis(out: Path, analysis: Analysis) -> Path:
    """Writes all files below `out`, which must exist; returns the path of report.html."""
    figures = out / "figures"
    figures.mkdir(exist_ok=True)

    def save(name: str, figure: "Figure") -> None:
        write_atomically(figures / f"{name}.svg", svg(figure))
        write_atomically(figures / f"{name}.png", png(figure))

    content = [
        html.element("h1", "High-norm tokens: " + listed(analysis.results)),
        _warning(analysis),
        html.tiles(_tiles(analysis)),
        _gallery(analysis, save),
        _norms(analysis, save),
        _outliers(analysis, save),
        _registers(analysis, save),
        _probes(analysis, save),
        _ground_truth(analysis, save),
        _discovery(analysis, save),
        html.section("Test-time registers", added_table(analysis.results)),
        html.section("Settings", html.pairs(_choices(analysis))),
        html.footer(),
    ]
    write_atomically(out / "numbers.json", numbers_json(analysis))
    write_atomically(out / "arrays.npz", arrays_npz(analysis))
    path = out / "report.html"
    write_atomically(path, html.page("mambar analyze: " + ", ".join(analysis.results), *content))
    return path


def _warning(analysis: Analysis) -> html.Html:
    names = analysis.random_weights
    if not names:
        return html.Html("")
    text = f"Random weights, never trained: {', '.join(names)}. The figures show untrained features."
    return html.element("p", text, class_="warning")


def _tiles(analysis: Analysis) -> dict[str, object]:
    tiles: dict[str, object] = {}
    for name, found in analysis.results.items():
        last = found.outliers[0].layers[-1]
        tiles[f"{name}: maximum / median norm, last layer"] = f"{last.ratio:.1f}×"
        tiles[f"{name}: outliers in the last layer"] = f"{last.share:.2%}"
    images = next(iter(analysis.results.values())).norms.num_images
    return tiles | {"images measured": f"{images:,}"}


Save = Callable[[str, "Figure"], None]


def _charts(name: str, sheet: ChartGrid, save: Save) -> html.Html:
    """Saves the charts as one figure; returns them one by one with their label."""
    if not sheet.panels:
        return html.Html("")
    save(name, draw_chart_grid(sheet))
    pictures = [
        html.svg_image(svg(draw_chart(sheet, number)), description=f"{name}, chart {number + 1}")
        for number in range(len(sheet.panels))
    ]
    return html.figure(html.element("div", *pictures, class_="charts"), caption=sheet.label.line())


def gallery_images(analysis: Analysis) -> list[GalleryImage]:
    """The gallery: for every image the feature map, then the norm maps of the shown layers."""
    options, first = analysis.options, next(iter(analysis.results.values()))
    metric, small_is_bright = METRIC_NAMES[options.metric], options.metric == "l2"
    vectors = listed(GLOBAL_VECTORS.get(found.vector, found.vector) for found in analysis.results.values())
    shown = []
    for place, (name, image) in enumerate(analysis.gallery.images.items()):
        maps = {model: found.feature_map[place].numpy() for model, found in analysis.results.items()}
        feature = MapRow(
            name=f"Feature map, {_last_layer(analysis)}",
            quantity=f"{metric} (bright: similar)",
            maps=maps,
            small_is_bright=small_is_bright,
        )
        data = f"{analysis.gallery.name}: {name}"
        registers = []
        for model, found in analysis.results.items():
            if found.register_maps is not None and found.register_maps.shape[1] > 1:
                by_name = dict(zip(found.register_names, found.register_maps[place].numpy(), strict=True))
                title = f"{model}: {metric} of each register to the image tokens"
                layer = _last_layer(analysis, model)
                label = analysis.label([model], tensor=options.map_tensor, layer=layer, metric=metric, data=data)
                row = replace(feature, name=title, maps=by_name)
                registers.append(RegisterMaps(model=model, row=row, label=label))
        label = analysis.label(
            tensor=options.tensor,
            layer=_layer_text(analysis),
            metric=f"norms: L2; feature map: {metric} to {vectors}, {TENSORS[options.map_tensor]}",
            data=data,
        )
        rows = [feature, *_norm_rows(analysis, place)]
        rows += [] if options.cam is None else [_activation_row(analysis, place)]
        pixels = first.analyzed.pixels(image).numpy()
        shown.append(GalleryImage(name=name, image=pixels, rows=rows, registers=registers, label=label))
    return shown


def _activation_row(analysis: Analysis, place: int) -> MapRow:
    maps, names = {}, []
    for model, found in analysis.results.items():
        maps[model] = None if found.activation_maps is None else found.activation_maps[place].numpy()
        if found.activation_labels is not None:
            label, classes = int(found.activation_labels[place]), found.analyzed.classes
            names.append(str(label) if classes is None else classes[label].split(",")[0])
    name = f"{analysis.options.cam}: {' / '.join(dict.fromkeys(names)) or 'no classifier'}"
    return MapRow(name=name, quantity="class activation", maps=maps)


def _norm_rows(analysis: Analysis, place: int) -> list[MapRow]:
    rows = []
    for layers in analysis.layer_columns():
        maps = {
            model: found.gallery_norms[layers[model], place].numpy() if model in layers else None
            for model, found in analysis.results.items()
        }
        title = f"Norm, {layers_text(layers.values())}"
        scale = norm_scale(analysis.options.scale, [each.max() for each in maps.values() if each is not None])
        rows.append(MapRow(name=title, quantity="L2 norm", maps=maps, scale=scale))
    return rows


def _layer_text(analysis: Analysis) -> str:
    texts = []
    for name, chosen in analysis.layers().items():
        count = analysis.results[name].analyzed.model.num_layers
        texts.append(listed([*map(str, chosen[:-1]), layer_name(chosen[-1], count)]))
    return " / ".join(dict.fromkeys(texts))


def _last_layer(analysis: Analysis, model: str | None = None) -> str:
    """The number of the last layer of one model, or of all of them."""
    counts = {name: found.analyzed.model.num_layers for name, found in analysis.results.items()}
    if model is not None:
        return layer_name(counts[model] - 1, counts[model])
    return layers_text(count - 1 for count in counts.values())


def _gallery(analysis: Analysis, save: Save) -> html.Html:
    style = MapStyle(colormap=analysis.options.colormap, resampling=analysis.options.resampling)
    explanation = (
        "Each square is one image token. Norm: L2 norm of the token. Feature map: its similarity to the global "
        f"vector, {METRIC_NAMES[analysis.options.metric]}; bright tokens are similar. The maps of one quantity share "
        "one color scale."
    )
    blocks = []
    for number, shown in enumerate(gallery_images(analysis)):
        save(f"gallery-{number:02d}", draw_gallery(shown, style))
        for registers in shown.registers:
            place = list(analysis.results).index(registers.model)
            name = f"registers-{number:02d}-{'ab'[place] if place < 2 else place}"
            save(name, draw_registers(shown.image, registers, style))
        blocks.append(gallery_html(shown, style))
    return html.section("Gallery", html.element("p", explanation), *blocks)


def _norms(analysis: Analysis, save: Save) -> html.Html:
    label = analysis.label(tensor=analysis.options.tensor, metric="L2 norm of each token")
    layers = analysis.layers()
    by_layer = _charts("norms-by-layer", norm_charts(analysis.results, replace(label, layer="all")), save)
    some = replace(label, layer=_layer_text(analysis))
    shapes = _charts(
        "norm-distributions",
        distribution_charts(
            {name: found.norms for name, found in analysis.results.items()},
            analysis.layer_columns(),
            some,
            registers={name: found.registers_label for name, found in analysis.results.items()},
        ),
        save,
    )
    rows = [
        (name, layer, *(f"{value:.4g}" for value in _numbers(found, layer)))
        for name, found in analysis.results.items()
        for layer in layers[name]
    ]
    head = ("model", "layer", "mode", "median", "99 %", "maximum", "registers or class token, median")
    return html.section("Norms", by_layer, shapes, html.table(head, rows))


def _numbers(found: AnalysisResult, layer: int) -> tuple[float, ...]:
    patches = found.norms.patches[found.norms.layers.index(layer)]
    registers = found.norms.registers[found.norms.layers.index(layer)]
    return patches.mode, patches.median, patches.quantile(0.99), patches.maximum, registers.median


def _outliers(analysis: Analysis, save: Save) -> html.Html:
    label = analysis.label(tensor=analysis.options.tensor, layer="all", metric="share of image tokens")
    charts = _charts("outliers", outlier_charts(analysis.results, label), save)
    return html.section("Outliers", charts, outlier_table(analysis.results, analysis.layers()))


def _registers(analysis: Analysis, save: Save) -> html.Html:
    several = {name: found for name, found in analysis.results.items() if len(found.register_names) > 1}
    if not several:
        return html.Html("")
    metric = "cosine between registers, mean over the gallery"
    label = analysis.label(several, tensor=analysis.options.map_tensor, layer="last", metric=metric)
    sheet = similarity_charts(several, label)
    return html.section("Registers", _charts("register-similarity", sheet, save), register_table(analysis.results))


def _probes(analysis: Analysis, save: Save) -> html.Html:
    parts: list[object] = []
    if any(found.probes for found in analysis.results.values()):
        label = analysis.label(
            tensor=f"tokens after the final norm, ranked by the norm of the {TENSORS[analysis.options.tensor]}",
            layer="last",
            metric="cross-validated top-1 accuracy with 95 % intervals",
        )
        parts.append(_charts("probes", probe_charts(analysis.results, label), save))
    parts += [probe_table(analysis.results), local_table(analysis.results)]
    return html.section("Probes", *parts)


def _ground_truth(analysis: Analysis, save: Save) -> html.Html:
    parts: list[object] = []
    if any(found.ground_truth for found in analysis.results.values()):
        first = next(found.ground_truth[0] for found in analysis.results.values() if found.ground_truth)
        metric = f"outliers: {first.rule}; objects: {first.objects}"
        label = analysis.label(tensor=analysis.options.tensor, layer="all", metric=metric)
        parts.append(_charts("ground-truth", ground_truth_charts(analysis.results, label), save))
    return html.section("Comparison with ground truth", *parts, ground_truth_tables(analysis.results))


def _discovery(analysis: Analysis, save: Save) -> html.Html:
    pictures = []
    for number, (name, found) in enumerate(analysis.results.items()):
        if found.discovery is not None:
            options, layer = found.discovery.options, str(analysis.layers()[name][-1])
            label = analysis.label([name], tensor=options.tensor, layer=layer, metric=f"LOST: {options.text()}")
            figure = draw_object_boxes(found.discovery.shown, label)
            save(f"objects-{number}", figure)
            pictures.append(html.figure(html.svg_image(svg(figure), description="boxes found"), caption=label.line()))
    return html.section("Object discovery", *pictures, discovery_table(analysis.results)) if pictures else html.Html("")


def _choices(analysis: Analysis) -> dict[str, object]:
    choices: dict[str, object] = {
        **asdict(analysis.options),
        "data": analysis.data,
        "gallery of": analysis.gallery.name,
    }
    for name, found in analysis.results.items():
        choices[f"{name}: input"] = size_text(found.analyzed.preprocessing.size, found.analyzed.trained_size)
        choices[f"{name}: patches"] = " × ".join(str(side) for side in found.analyzed.grid)
        choices[f"{name}: global vector"] = GLOBAL_VECTORS.get(found.vector, found.vector)
        choices[f"{name}: images"] = found.norms.num_images
    return choices
