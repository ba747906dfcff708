"""Feature maps: how near each image token is to the global vector (arXiv 2405.14858, the first figures).

    mambar reproduce figure_feature_maps budget=small data=PATH

A picture has no published number; beside the report's pictures stands how far the largest token stands out, and,
where the data have masks, how well the map finds the object.
"""

from typing import Final

from mambar.paper.claim import Claim, Result
from mambar.paper.context import Context
from mambar.paper.pair import analysed_pair, one_result

TITLE: Final = "Feature maps (L2 distance to the head's features, last layer, after the final norm)"
CLAIMS: Final[tuple[Claim, ...]] = ()


def measure(context: Context) -> list[Result]:
    """The ratio of the largest to the median norm in the last layer, and the maps' scores against masks."""
    analysis = analysed_pair(context, probes=(), num_images=64 if context.budget == "smoke" else 1000)
    results = []
    for network, result in zip(("Vim", "Mamba-R"), analysis.results.values(), strict=True):
        last = result.norms.patches[-1]
        results.append(one_result(context, network, "largest / median norm", float(last.maximum / last.median)))
        for truth in result.map_ground_truth:
            results.append(
                one_result(context, f"{network}: {truth.name}", "IoU with objects (Otsu)", float(truth.otsu_iou))
            )
    return results
