"""The figures of arXiv 2405.14858, drawn from Vim and Mamba-R, and their numbers.

    mambar reproduce figure_norms --budget small data=PATH
    mambar reproduce figure_norms --budget small --runs VIM,MAMBAR
    mambar reproduce figure_probes --budget small data=PATH
    mambar reproduce figure_feature_maps --budget small data=PATH
    mambar reproduce figure_register_maps --budget small data=PATH

The published norms were read off the project page's figure (within 5 %). The paper does not name the tensor; here it is
the residual stream. The figure's layers 7, 15, 19, 23 count from 0; 23 is the last of 24. The paper's protocol of the
probes (the pooling experiment on Vim-B) is not published; here it is a cross-validated linear probe on frozen features.
No number is published for feature maps (distance of each image token to a global vector) and register maps (distance of
each image token to each register).

The figures are PNG and SVG files in `out`/BUDGET/NAME. With --runs they are drawn from two trained run folders.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mambar.analysis.draw.paper_figures import feature_map_figure, norm_figures, probe_figure, register_map_figure
from mambar.analysis.draw.plots import png, svg
from mambar.analysis.numbers import Analysis
from mambar.atomic_files import write_files
from mambar.paper.claim import Claim, Result, claims
from mambar.paper.context import Context
from mambar.paper.pair import analysed_pair, one_result

if TYPE_CHECKING:
    from matplotlib.figure import Figure as MatplotlibFigure

_SEEN: Final = {
    "Vim": {7: (25, 68), 15: (85, 365), 19: (190, 710), 23: (950, 4700)},
    "Mamba-R": {7: (15, 28), 15: (32, 70), 19: (105, 290), 23: (170, 640)},
}
_TOP1: Final = "top-1, %"
# Images in a figure, and pixels an inch of its PNG file.
_GALLERY, _DPI = 4, 300


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure with the names that the module of a table has: title, published cells, and what measures the cells."""

    TITLE: str
    CLAIMS: tuple[Claim, ...] = ()
    measure: Callable[[Context], list[Result]]


def _analyzed(context: Context, **options: Any) -> Analysis:
    count = 64 if context.budget == "smoke" else 1000
    return analysed_pair(context, probes=(), num_images=count, gallery=_GALLERY, **options)


def _save(context: Context, figures: "Mapping[str, MatplotlibFigure]") -> None:
    files = {}
    for name, figure in figures.items():
        files[f"{name}.png"] = png(figure, dpi=_DPI)
        files[f"{name}.svg"] = svg(figure)
    write_files(context.directory / context.name, files)


def _norms(context: Context) -> list[Result]:
    """The most common and the largest norm of every layer of both networks."""
    results = []
    analysis = _analyzed(context)
    _save(context, norm_figures(analysis))
    for network, result in analysis.results.items():
        depth = len(result.norms.patches)
        for layer, found in enumerate(result.norms.patches):
            row = f"{network}, layer {layer} of {depth}"
            results.append(one_result(context, row, "most common norm", float(found.mode)))
            results.append(one_result(context, row, "largest norm", float(found.maximum)))
    return results


def _probes(context: Context) -> list[Result]:
    """The accuracy of every pool of both networks."""
    analysis = analysed_pair(context, probes=("ridge",), num_images=200 if context.budget == "smoke" else 5000)
    results = []
    _save(context, {"probes": probe_figure(analysis)})
    for network, result in analysis.results.items():
        for found in result.probes:
            row = f"{network}: {'all local tokens' if found.name == 'all image tokens' else found.name}"
            note = f"{row}: 95 % interval {100 * found.low:.1f} to {100 * found.high:.1f}, {found.num_images} images"
            results.append(one_result(context, row, _TOP1, 100 * found.accuracy, note))
    return results


def _feature_maps(context: Context) -> list[Result]:
    """The ratio of the largest to the median norm in the last layer, and the IoU of the thresholded maps with masks."""
    results = []
    analysis = _analyzed(context, metric="l2")
    _save(context, {"maps": feature_map_figure(analysis)})
    for network, result in analysis.results.items():
        last = result.norms.patches[-1]
        results.append(one_result(context, network, "largest / median norm", float(last.maximum / last.median)))
        for truth in result.map_ground_truth:
            row = f"{network}: {truth.name}"
            results.append(one_result(context, row, "IoU with objects (Otsu)", float(truth.otsu_iou)))
    return results


def _register_maps(context: Context) -> list[Result]:
    """The mean cosine between two registers, and the number of clusters of their maps."""
    analysis = _analyzed(context)
    _save(context, {"maps": register_map_figure(analysis, "Mamba-R")})
    result, results = analysis.results["Mamba-R"], []
    similarity = result.register_similarity
    if similarity is not None and similarity.shape[0] > 1:
        count = similarity.shape[0]
        others = (similarity.sum() - similarity.diagonal().sum()) / (count * (count - 1))
        results.append(one_result(context, "Mamba-R", "mean cosine between registers", float(others)))
    if result.register_groups is not None:
        groups = float(len(result.register_groups.unique()))
        results.append(one_result(context, "Mamba-R", "groups of registers", groups))
    return results


FIGURES: Final = {
    "figure_norms": Figure(
        TITLE="Norms of image tokens by layer (residual stream)",
        CLAIMS=tuple(
            Claim(
                row=f"{network}, layer {layer} of 24",
                column=column,
                value=float(value),
                version="project page",
                source="project page of arXiv 2405.14858, read off the figure by eye",
                known="by eye",
            )
            for network, layers in _SEEN.items()
            for layer, pair in layers.items()
            for column, value in zip(("most common norm", "largest norm"), pair, strict=True)
        ),
        measure=_norms,
    ),
    "figure_probes": Figure(
        TITLE="Accuracy from pooled tokens, last layer",
        CLAIMS=claims(
            _TOP1,
            {"Vim: all local tokens": 81.1, "Vim: highest-norm 5 %": 81.0, "Vim: lowest-norm 80 %": 79.3},
            version="v1",
            source="arXiv 2405.14858v1",
        ),
        measure=_probes,
    ),
    "figure_feature_maps": Figure(
        TITLE="Feature maps (L2 distance to the head's features, last layer, after the final norm)",
        measure=_feature_maps,
    ),
    "figure_register_maps": Figure(TITLE="Register maps of Mamba-R", measure=_register_maps),
}
