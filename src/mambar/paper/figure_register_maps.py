"""Register maps: distance of each image token to each register (arXiv 2405.14858, the register figure).

    mambar reproduce figure_register_maps --budget small data=PATH

The paper publishes no number for this figure. Measured: the similarity of the registers.
"""

from typing import Final

from mambar.paper.claim import Claim, Result
from mambar.paper.context import Context
from mambar.paper.pair import analysed_pair, one_result

TITLE: Final = "Register maps of Mamba-R"
CLAIMS: Final[tuple[Claim, ...]] = ()


def measure(context: Context) -> list[Result]:
    """The mean cosine between two registers, and the number of clusters of their maps."""
    analysis = analysed_pair(context, probes=(), num_images=64 if context.budget == "smoke" else 1000)
    result = analysis["Mamba-R"]
    results = []
    similarity = result.register_similarity
    if similarity is not None and similarity.shape[0] > 1:
        count = similarity.shape[0]
        others = (similarity.sum() - similarity.diagonal().sum()) / (count * (count - 1))
        results.append(one_result(context, "Mamba-R", "mean cosine between registers", float(others)))
    if result.register_groups is not None:
        groups = float(len(result.register_groups.unique()))
        results.append(one_result(context, "Mamba-R", "groups of registers", groups))
    return results
