"""The primary outcomes of the register study, compared by seed (design: docs/findings/registers_design.md)."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal

from mambar.hub.config_file import json_bytes
from mambar.json_fields import finite
from mambar.paper.statistics import Paired, half_width, holm, paired

# (row, column) → seed → value.
Values = Mapping[tuple[str, str], Mapping[int, float]]
Verdict = Literal["supported", "contradicted", "mixed", "inconclusive", "incomplete"]

REFERENCE: Final = "Vim"
TREATED: Final = "Mamba-R"
PLANNED_SEEDS: Final = 5
_LEVEL: Final = 0.05


@dataclass(frozen=True)
class PrimaryOutcome:
    """A column of the table and the hypothesis that it tests.

    Attributes:
        column: The column.
        hypothesis: Number of the hypothesis.
        sign: 1 if the hypothesis says that Mamba-R has the larger value, else -1.
        log2: The difference is that of the logarithms.
    """

    column: str
    hypothesis: str
    sign: int
    log2: bool = False


PRIMARY: Final = (
    PrimaryOutcome("top-1, %", "H1", 1),
    PrimaryOutcome("outliers, last layer, % of tokens", "H2", -1),
    PrimaryOutcome("outliers, upper layers, % of tokens", "H2", -1),
    PrimaryOutcome("largest norm, last layer", "H3", -1, log2=True),
    PrimaryOutcome("outliers on background, last layer, %", "H4", -1),
    PrimaryOutcome("CorLoc of LOST, last layer, %", "H5", 1),
    PrimaryOutcome("linear accuracy of patches, %", "H5", 1),
    PrimaryOutcome("kNN accuracy of patches, %", "H5", 1),
    PrimaryOutcome("linear accuracy of registers, %", "H6", 1),
    PrimaryOutcome("kNN accuracy of registers, %", "H6", 1),
    PrimaryOutcome("position of all predicted, %", "H7", 1),
    PrimaryOutcome("pixels of all explained, %", "H7", 1),
)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A primary outcome of both networks.

    Attributes:
        outcome: The outcome.
        reference, treated: Its values, by common seed, before the logarithm.
        difference: Mamba-R - Vim, paired; None with fewer than two common seeds.
        corrected: P value after Holm's correction over all primary outcomes; 1 without a difference.
    """

    outcome: PrimaryOutcome
    reference: Mapping[int, float]
    treated: Mapping[int, float]
    difference: Paired | None
    corrected: float


def compare(values: Values) -> list[Comparison]:
    """Every primary outcome, with Holm's correction over all of them."""
    pairs, differences = [], []
    for outcome in PRIMARY:
        ours, theirs = (values.get((row, outcome.column), {}) for row in (TREATED, REFERENCE))
        common = [seed for seed in theirs if seed in ours]
        both = {seed: ours[seed] for seed in common}, {seed: theirs[seed] for seed in common}
        pairs.append(both)
        differences.append(paired(*(_scaled(outcome, part.values()) for part in both)))
    corrected = holm([1.0 if difference is None else difference.p_value for difference in differences])
    return [
        Comparison(outcome=outcome, treated=treated, reference=reference, difference=difference, corrected=p_value)
        for outcome, (treated, reference), difference, p_value in zip(
            PRIMARY, pairs, differences, corrected, strict=True
        )
    ]


def _scaled(outcome: PrimaryOutcome, values: Iterable[float]) -> list[float]:
    return [math.log2(value) if outcome.log2 else value for value in values]


def verdicts(comparisons: Sequence[Comparison]) -> dict[str, Verdict]:
    """Hypothesis → verdict; "incomplete" unless every seed of the plan is there for all outcomes but the fifth."""
    counts = [len(found.treated) for found in comparisons if found.outcome.hypothesis != "H4"]
    found: dict[str, Verdict] = {}
    for name in dict.fromkeys(outcome.hypothesis for outcome in PRIMARY):
        signs = {
            math.copysign(1, each.difference.mean) * each.outcome.sign
            for each in comparisons
            if each.outcome.hypothesis == name and each.difference is not None and each.corrected < _LEVEL
        }
        if min(counts) < PLANNED_SEEDS:
            found[name] = "incomplete"
        elif not signs:
            found[name] = "inconclusive"
        else:
            found[name] = "mixed" if len(signs) == 2 else "supported" if 1 in signs else "contradicted"
    return found


def primary_files(values: Values) -> dict[str, bytes]:
    """primary.json and primary.md: the comparisons and the verdicts."""
    comparisons = compare(values)
    decided = verdicts(comparisons)
    content = {
        "format_version": 1,
        "outcomes": [finite(asdict(each)) for each in comparisons],
        "verdicts": decided,
    }
    lines = [
        f"| hypothesis | outcome | {REFERENCE} | {TREATED} | difference | p | p, Holm | pairs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in comparisons:
        difference, unit = each.difference, " (log2)" if each.outcome.log2 else ""
        middle = ["–" if each.treated else "*not run*", "–"]
        if len(each.treated) == 1:
            (after,), (before,) = (_scaled(each.outcome, part.values()) for part in (each.treated, each.reference))
            middle[0] = f"{after - before:+.2f}{unit}, one pair"
        if difference is not None:
            middle = [f"{difference.mean:+.2f} ± {difference.half_width:.2f}{unit}", f"{difference.p_value:.3g}"]
        cells = [
            each.outcome.hypothesis,
            each.outcome.column,
            _mean(each.reference),
            _mean(each.treated),
            *middle,
            "–" if difference is None else f"{each.corrected:.3g}",
            str(len(each.treated)),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", *(f"* {name}: {verdict}" for name, verdict in decided.items()), ""]
    return {"primary.json": json_bytes(content), "primary.md": "\n".join(lines).encode()}


def _mean(values: Mapping[int, float]) -> str:
    if not values:
        return "–"
    width = half_width(list(values.values()))
    return f"{math.fsum(values.values()) / len(values):.2f}" + ("" if width is None else f" ± {width:.2f}")
