"""Token norms by layer of Vim and Mamba-R (arXiv 2405.14858: maps and distributions of norms).

    mambar reproduce figure_norms --budget small data=PATH

The published values were read off the project page's figure (within 5 %). The paper does not name the tensor; here it
is the residual stream. The figure's layers 7, 15, 19, 23 count from 0; 23 is the last of 24.
"""

from typing import Final

from mambar.paper.claim import Claim, Result
from mambar.paper.context import Context
from mambar.paper.pair import analysed_pair, one_result

TITLE: Final = "Norms of image tokens by layer (residual stream)"
_SOURCE: Final = "project page of arXiv 2405.14858, read off the figure by eye"
_SEEN: Final = {
    "Vim": {7: (25, 68), 15: (85, 365), 19: (190, 710), 23: (950, 4700)},
    "Mamba-R": {7: (15, 28), 15: (32, 70), 19: (105, 290), 23: (170, 640)},
}

CLAIMS: Final = tuple(
    Claim(
        row=f"{network}, layer {layer} of 24",
        column=column,
        value=float(value),
        version="project page",
        source=_SOURCE,
        known="by eye",
    )
    for network, layers in _SEEN.items()
    for layer, pair in layers.items()
    for column, value in zip(("most common norm", "largest norm"), pair, strict=True)
)


def measure(context: Context) -> list[Result]:
    """The most common and the largest norm of every layer of both networks."""
    analysis = analysed_pair(context, probes=(), num_images=64 if context.budget == "smoke" else 1000)
    results = []
    for network, result in analysis.items():
        depth = len(result.norms.patches)
        for layer, found in enumerate(result.norms.patches):
            row = f"{network}, layer {layer} of {depth}"
            results.append(one_result(context, row, "most common norm", float(found.mode)))
            results.append(one_result(context, row, "largest norm", float(found.maximum)))
    return results
