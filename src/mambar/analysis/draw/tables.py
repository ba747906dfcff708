"""The tables of an analysis report, one function a table; a part that was not run says so and why."""

import math
from collections.abc import Mapping, Sequence

from mambar.analysis.analyze_model import Study
from mambar.analysis.draw import html as report
from mambar.analysis.measure.probes import difference

Studies = Mapping[str, Study]


def not_run(studies: Studies, part: str) -> report.Html:
    """One line a model that lacks the part, with the reason."""
    lines = [
        report.element("p", f"Not run for {name}: {found.not_run[part]}.", class_="note")
        for name, found in studies.items()
        if part in found.not_run
    ]
    return report.join(lines)


def _percent(value: float, digits: int = 1) -> str:
    # A number and its sign stay on one line.
    return "–" if not math.isfinite(value) else f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def _times(value: float) -> str:
    return "–" if not math.isfinite(value) else f"{_number(value)}×"


def _number(value: float, digits: int = 3) -> str:
    if not math.isfinite(value):
        return "none" if value == math.inf else "–"
    return f"{value:.{digits}g}"


def outlier_table(studies: Studies, layers: Mapping[str, Sequence[int]]) -> report.Html:
    """Outliers of the shown layers by every rule."""
    rows = [
        (
            name,
            statistics.rule,
            row.layer,
            _number(row.threshold),
            _percent(row.share, 2),
            _number(row.outlier_mean),
            _number(row.rest_mean),
            _percent(row.recurrence),
            _percent(row.persistence),
        )
        for name, found in studies.items()
        for statistics in found.outliers
        for row in statistics.layers
        if row.layer in layers[name]
    ]
    head = ("model", "rule", "layer", "threshold", "share", "mean norm", "others", "same place", "next layer")
    note = (
        "Same place: the chance that an outlier of one image is an outlier at the same place in another (equal to the "
        "share where places are random). Next layer: the share that stays an outlier in the layer behind it."
    )
    return report.join([report.table(head, rows), report.element("p", note, class_="note")])


def register_table(studies: Studies) -> report.Html:
    """Which registers see the same places."""
    rows = []
    for name, found in studies.items():
        if found.register_groups is None or len(found.register_groups) < 2:
            continue
        groups: dict[int, list[int]] = {}
        for register, group in enumerate(found.register_groups.tolist()):
            groups.setdefault(group, []).append(register)
        rows += [(name, group, ", ".join(map(str, members))) for group, members in groups.items()]
    note = "Groups: registers whose maps correlate over the tokens of the gallery (average linkage, best silhouette)."
    return report.join([report.table(("model", "group", "registers"), rows), report.element("p", note, class_="note")])


def probe_table(studies: Studies) -> report.Html:
    """Pooling probes, and their difference from the pool of all image tokens on the same images."""
    rows = []
    for name, found in studies.items():
        every = {result.method: result for result in found.probes if result.name == "all image tokens"}
        for result in found.probes:
            apart, low, high = difference(result, every[result.method])
            beside = (
                "" if result is every[result.method] else f"{100 * apart:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
            )
            interval = f"{100 * result.low:.1f} to {100 * result.high:.1f}"
            rows.append((name, result.method, result.name, _percent(result.accuracy), interval, beside))
    missing = not_run(studies, "pooling probes")
    if not rows:
        return missing
    head = ("model", "probe", "pooled from", "top-1", "95 %", "against all (95 %)")
    count = max(result.num_images for found in studies.values() for result in found.probes)
    note = (
        f"Linear probes on frozen features of {count:,} images, cross-validated; the penalty is chosen inside each "
        "training part. The paper reports such a comparison for Vim-B on ImageNet without its protocol."
    )
    parts = [report.element("h3", "Pooling probes"), report.table(head, rows), report.element("p", note, class_="note")]
    return report.join([*parts, missing])


def local_table(studies: Studies) -> report.Html:
    """Place and pixels read from normal and from outlier tokens."""
    rows = [
        (
            name,
            group.group,
            f"{group.num_tokens:,}",
            _percent(group.position_accuracy),
            f"{100 * group.position_low:.1f} to {100 * group.position_high:.1f}",
            _number(group.position_distance),
            _number(group.pixel_error),
            _percent(group.explained),
        )
        for name, found in studies.items()
        if found.local is not None
        for group in found.local.groups
    ]
    missing = not_run(studies, "local probes")
    if not rows:
        return missing
    local = next(found.local for found in studies.values() if found.local is not None)
    head = ("model", "tokens", "number", "place right", "95 %", "off by, patches", "pixel error", "pixels explained")
    note = (
        f"Ridge regressions from tokens of the last layer to their place (chance {100 * local.chance:.1f} %) and "
        f"their pixels (normalised units), tried on the images that were not fitted. Outliers: {local.rule}."
    )
    parts = [report.element("h3", "Local probes"), report.table(head, rows), report.element("p", note, class_="note")]
    return report.join([*parts, missing])


def truth_tables(studies: Studies) -> report.Html:
    """Norms and maps against masks."""
    rows = []
    for name, found in studies.items():
        for statistics in found.truth:
            row = statistics.layers[-1]
            correlation = f"{row.entropy_correlation:+.2f} ({row.entropy_low:+.2f} to {row.entropy_high:+.2f})"
            auc = f"{row.auc:.3f} ({row.auc_low:.3f} to {row.auc_high:.3f})"
            shares = (_percent(row.outlier_background), _percent(row.background), _times(row.lift))
            rows.append((name, statistics.rule, row.layer, f"{row.outliers:,}", *shares, auc, correlation))
    missing = not_run(studies, "truth")
    if not rows:
        return missing
    head = ("model", "rule", "layer", "outliers", "in background", "all tokens", "lift", "AUC (95 %)", "entropy (95 %)")
    note = (
        "AUC: of the norm as a detector of background patches, mean over images. Entropy: rank correlation of norm "
        "and the entropy of the patch's grey values, mean over images; below 0: long tokens lie on plain patches."
    )
    maps = [
        (name, row.name, f"{row.otsu_iou:.3f}", f"{row.best_iou:.3f}", f"{row.everything_iou:.3f}", row.num_images)
        for name, found in studies.items()
        for row in found.map_truth
    ]
    map_head = ("model", "map", "IoU (Otsu)", "IoU (best)", "IoU of everything", "images")
    map_note = (
        "Maps of the last layer against the objects. Otsu: at a threshold that knows no truth; best: at the best "
        "threshold of each image; everything: if every token were called an object."
    )
    return report.join(
        [
            report.table(head, rows),
            report.element("p", note, class_="note"),
            report.table(map_head, maps),
            report.element("p", map_note, class_="note"),
            missing,
        ]
    )


def added_table(studies: Studies) -> report.Html:
    """Norms and accuracy with registers that were added at test time."""
    rows = [
        (
            name,
            row.name,
            _percent(row.top1),
            _number(row.median),
            _number(row.maximum),
            _times(row.ratio),
            _percent(row.outlier_share, 2),
            _number(row.register_median),
        )
        for name, found in studies.items()
        for row in found.added
    ]
    missing = report.join([not_run(studies, "added registers"), not_run(studies, "moving activations")])
    if not rows:
        return missing
    head = ("model", "registers", "top-1", "median norm", "maximum", "ratio", "outliers", "register median")
    return report.join([report.table(head, rows), missing])
