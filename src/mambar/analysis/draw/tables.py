"""The tables of an analysis report, one function per table; a skipped part gives its reason."""

import math
from collections.abc import Mapping, Sequence

from mambar.analysis.analyze_model import AnalysisResult
from mambar.analysis.draw import html
from mambar.analysis.measure.probes import difference

Results = Mapping[str, AnalysisResult]


def not_run(results: Results, part: str) -> html.Html:
    """One line for each model without the part, with the reason."""
    lines = [
        html.element("p", f"Not run for {name}: {found.not_run[part]}.", class_="note")
        for name, found in results.items()
        if part in found.not_run
    ]
    return html.join(lines)


def _percent(value: float, digits: int = 1) -> str:
    # The non-breaking space keeps number and unit on one line.
    return "–" if not math.isfinite(value) else f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def _times(value: float) -> str:
    return "–" if not math.isfinite(value) else f"{_number(value)}×"


def _number(value: float, digits: int = 3) -> str:
    if not math.isfinite(value):
        return "none" if value == math.inf else "–"
    return f"{value:.{digits}g}"


def outlier_table(results: Results, layers: Mapping[str, Sequence[int]]) -> html.Html:
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
        for name, found in results.items()
        for statistics in found.outliers
        for row in statistics.layers
        if row.layer in layers[name]
    ]
    head = ("model", "rule", "layer", "threshold", "share", "mean norm", "others", "same position", "next layer")
    note = (
        "Same position: probability that an outlier of one image is an outlier at the same position in another image "
        "(equal to the share for random positions). Next layer: the share that are outliers in the next layer too."
    )
    return html.join([html.table(head, rows), html.element("p", note, class_="note")])


def register_table(results: Results) -> html.Html:
    """Clusters of registers with similar maps."""
    rows = []
    for name, found in results.items():
        if found.register_groups is None or len(found.register_groups) < 2:
            continue
        groups: dict[int, list[int]] = {}
        for register, group in enumerate(found.register_groups.tolist()):
            groups.setdefault(group, []).append(register)
        rows += [(name, group, ", ".join(map(str, members))) for group, members in groups.items()]
    note = "Groups: clusters of register maps by correlation over the gallery (average linkage, best silhouette)."
    return html.join([html.table(("model", "group", "registers"), rows), html.element("p", note, class_="note")])


def probe_table(results: Results) -> html.Html:
    """Pooling probes, and their difference from the pool of all image tokens on the same images."""
    rows = []
    for name, found in results.items():
        every = {result.method: result for result in found.probes if result.name == "all image tokens"}
        for result in found.probes:
            apart, low, high = difference(result, every[result.method])
            beside = (
                "" if result is every[result.method] else f"{100 * apart:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
            )
            interval = f"{100 * result.low:.1f} to {100 * result.high:.1f}"
            rows.append((name, result.method, result.name, _percent(result.accuracy), interval, beside))
    missing = not_run(results, "pooling probes")
    if not rows:
        return missing
    head = ("model", "probe", "pooled from", "top-1", "95 %", "against all (95 %)")
    count = max(result.num_images for found in results.values() for result in found.probes)
    note = (
        f"Linear probes on frozen features of {count:,} images, cross-validated; the penalty is chosen inside each "
        "training part. The paper reports such a comparison for Vim-B on ImageNet without its protocol."
    )
    parts = [html.element("h3", "Pooling probes"), html.table(head, rows), html.element("p", note, class_="note")]
    return html.join([*parts, missing])


def local_table(results: Results) -> html.Html:
    """Position and pixels predicted from normal and outlier tokens."""
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
        for name, found in results.items()
        if found.local is not None
        for group in found.local.groups
    ]
    missing = not_run(results, "local probes")
    if not rows:
        return missing
    local = next(found.local for found in results.values() if found.local is not None)
    head = (
        "model",
        "tokens",
        "number",
        "position accuracy",
        "95 %",
        "distance, patches",
        "pixel error",
        "pixels explained",
    )
    note = (
        f"Ridge regressions from tokens of the last layer to their position (chance {100 * local.chance:.1f} %) and "
        f"their pixels (normalized units), tested on held-out images. Outliers: {local.rule}."
    )
    parts = [html.element("h3", "Local probes"), html.table(head, rows), html.element("p", note, class_="note")]
    return html.join([*parts, missing])


def ground_truth_tables(results: Results) -> html.Html:
    """Norms and maps against masks."""
    rows = []
    for name, found in results.items():
        for statistics in found.ground_truth:
            row = statistics.layers[-1]
            correlation = f"{row.entropy_correlation:+.2f} ({row.entropy_low:+.2f} to {row.entropy_high:+.2f})"
            auc = f"{row.auc:.3f} ({row.auc_low:.3f} to {row.auc_high:.3f})"
            shares = (_percent(row.outlier_background), _percent(row.background), _times(row.lift))
            rows.append((name, statistics.rule, row.layer, f"{row.outliers:,}", *shares, auc, correlation))
    missing = not_run(results, "ground truth")
    if not rows:
        return missing
    head = ("model", "rule", "layer", "outliers", "in background", "all tokens", "lift", "AUC (95 %)", "entropy (95 %)")
    note = (
        "AUC: of the norm as a detector of background patches, mean over images. Entropy: rank correlation of norm "
        "and the entropy of the patch's gray values, mean; below 0: high-norm tokens are on uniform patches."
    )
    maps = [
        (name, row.name, f"{row.otsu_iou:.3f}", f"{row.best_iou:.3f}", f"{row.everything_iou:.3f}", row.num_images)
        for name, found in results.items()
        for row in found.map_ground_truth
    ]
    map_head = ("model", "map", "IoU (Otsu)", "IoU (best)", "IoU of everything", "images")
    map_note = (
        "Maps of the last layer against the objects. Otsu: at Otsu's threshold, without the masks; best: at the best "
        "threshold of each image; everything: every token predicted as object."
    )
    return html.join(
        [
            html.table(head, rows),
            html.element("p", note, class_="note"),
            html.table(map_head, maps),
            html.element("p", map_note, class_="note"),
            missing,
        ]
    )


def added_table(results: Results) -> html.Html:
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
        for name, found in results.items()
        for row in found.added
    ]
    missing = html.join([not_run(results, "added registers"), not_run(results, "moving activations")])
    if not rows:
        return missing
    head = ("model", "registers", "top-1", "median norm", "maximum", "ratio", "outliers", "register median")
    return html.join([html.table(head, rows), missing])
