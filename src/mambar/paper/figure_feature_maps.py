"""Feature maps: distance of each image token to a global vector (arXiv 2405.14858, the first figures).

    mambar reproduce figure_feature_maps --budget small data=PATH

The paper publishes no number for this figure. Measured: the ratio of the largest to the median norm and, with masks,
the IoU of the thresholded map with the objects.
"""

from typing import Final

from mambar.paper.claim import Claim, Result
from mambar.paper.context import Context
from mambar.paper.pair import analysed_pair, one_result

TITLE: Final = "Feature maps (L2 distance to the head's features, last layer, after the final norm)"
CLAIMS: Final[tuple[Claim, ...]] = ()


def measure(context: Context) -> list[Result]:
    """The ratio of the largest to the median norm in the last layer, and the IoU of the maps with masks."""
    analysis = analysed_pair(context, probes=(), metric="l2", num_images=64 if context.budget == "smoke" else 1000)
    results = []
    for network, result in analysis.items():
        last = result.norms.patches[-1]
        results.append(one_result(context, network, "largest / median norm", float(last.maximum / last.median)))
        for truth in result.map_ground_truth:
            results.append(
                one_result(context, f"{network}: {truth.name}", "IoU with objects (Otsu)", float(truth.otsu_iou))
            )
    return results
