"""Accuracy of probes on pooled tokens chosen by norm (arXiv 2405.14858, the pooling experiment on Vim-B).

    mambar reproduce figure_probes --budget small data=PATH

The paper's protocol is not published; here it is a cross-validated linear probe on frozen features.
"""

from typing import Final

from mambar.paper.claim import Result, claims
from mambar.paper.context import Context
from mambar.paper.pair import analysed_pair, one_result

TITLE: Final = "Accuracy from pooled tokens, last layer"
COLUMN: Final = "top-1, %"
CLAIMS: Final = claims(
    COLUMN,
    {"Vim: all local tokens": 81.1, "Vim: highest-norm 5 %": 81.0, "Vim: lowest-norm 80 %": 79.3},
    version="v1",
    source="arXiv 2405.14858v1",
)
_ROWS: Final = {"all image tokens": "all local tokens"}


def measure(context: Context) -> list[Result]:
    """The accuracy of every pool of both networks."""
    analysis = analysed_pair(context, probes=("ridge",), num_images=200 if context.budget == "smoke" else 5000)
    results = []
    for network, result in analysis.items():
        for found in result.probes:
            row = f"{network}: {_ROWS.get(found.name, found.name)}"
            note = f"{row}: 95 % interval {100 * found.low:.1f} to {100 * found.high:.1f}, {found.num_images} images"
            results.append(one_result(context, row, COLUMN, 100 * found.accuracy, note))
    return results
