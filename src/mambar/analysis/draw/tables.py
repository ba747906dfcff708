"""The tables of an analysis report, one function per table; a skipped part gives its reason."""

import math
from collections.abc import Mapping, Sequence

from mambar.analysis.analyze_model import AnalysisResult
from mambar.analysis.draw import html
from mambar.analysis.measure.probes import difference

Results = Mapping[str, AnalysisResult]
# One row: the cells by the names of their columns.
Row = Mapping[str, object]


def not_run(results: Results, part: str) -> html.Html:
    """One line for each model without the part, with the reason."""
    return html.join(
        html.element("p", f"Not run for {name}: {found.not_run[part]}.", class_="note")
        for name, found in results.items()
        if part in found.not_run
    )


def _table(rows: Sequence[Row], note: str) -> html.Html:
    """A table with a note; nothing without rows."""
    if not rows:
        return html.Html("")
    table = html.table(list(rows[0]), [list(row.values()) for row in rows])
    return html.join([table, html.element("p", note, class_="note")])


def _percent(value: float, digits: int = 1) -> str:
    return "–" if not math.isfinite(value) else f"{100 * value:.{digits}f} %"


def _interval(low: float, high: float) -> str:
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _times(value: float) -> str:
    return "–" if not math.isfinite(value) else f"{_number(value)}×"


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "none" if value == math.inf else "–"
    return f"{value:.3g}"


def outlier_table(results: Results, layers: Mapping[str, Sequence[int]]) -> html.Html:
    """Outliers of the shown layers by every rule."""
    rows = [
        {
            "model": name,
            "rule": statistics.rule,
            "layer": row.layer,
            "threshold": _number(row.threshold),
            "share": _percent(row.share, 2),
            "mean norm": _number(row.outlier_mean),
            "others": _number(row.rest_mean),
            "same position": _percent(row.recurrence),
            "next layer": _percent(row.persistence),
        }
        for name, found in results.items()
        for statistics in found.outliers
        for row in statistics.layers
        if row.layer in layers[name]
    ]
    note = (
        "Same position: probability that an outlier of one image is an outlier at the same position in another image "
        "(equal to the share for random positions). Next layer: the share that are outliers in the next layer too."
    )
    return _table(rows, note)


def register_table(results: Results) -> html.Html:
    """Clusters of registers with similar maps."""
    rows = []
    for name, found in results.items():
        if found.register_groups is None or len(found.register_groups) < 2:
            continue
        groups: dict[int, list[int]] = {}
        for register, group in enumerate(found.register_groups.tolist()):
            groups.setdefault(group, []).append(register)
        rows += [
            {"model": name, "group": group, "registers": ", ".join(map(str, members))}
            for group, members in groups.items()
        ]
    return _table(rows, "Groups: clusters of register maps by correlation (average linkage, best silhouette).")


def probe_table(results: Results) -> html.Html:
    """Pooling probes, and their difference from the pool of all image tokens on the same images."""
    rows = []
    for name, found in results.items():
        every = {result.method: result for result in found.probes if result.name == "all image tokens"}
        for result in found.probes:
            delta, low, high = (100 * value for value in difference(result, every[result.method]))
            is_reference = result is every[result.method]
            row = {
                "model": name,
                "probe": result.method,
                "pooled from": result.name,
                "top-1": _percent(result.accuracy),
                "95 %": _interval(result.low, result.high),
                "against all (95 %)": "" if is_reference else f"{delta:+.1f} ({low:+.1f} to {high:+.1f})",
            }
            rows.append(row)
    count = max((result.num_images for found in results.values() for result in found.probes), default=0)
    note = (
        f"Linear probes on frozen features of {count:,} images, cross-validated; the penalty is chosen inside each "
        "training part. The paper reports such a comparison for Vim-B on ImageNet without its protocol."
    )
    heading = [html.element("h3", "Pooling probes")] if rows else []
    return html.join([*heading, _table(rows, note), not_run(results, "pooling probes")])


def local_table(results: Results) -> html.Html:
    """Position and pixels predicted from normal and outlier tokens."""
    probes = {name: found.local for name, found in results.items() if found.local is not None}
    rows = [
        {
            "model": name,
            "tokens": group.group,
            "number": f"{group.num_tokens:,}",
            "position accuracy": _percent(group.position_accuracy),
            "95 %": _interval(group.position_low, group.position_high) if group.num_tokens else "–",
            "distance, patches": _number(group.position_distance),
            "pixel error": _number(group.pixel_error),
            "pixels explained": _percent(group.explained),
        }
        for name, local in probes.items()
        for group in local.groups
    ]
    missing = not_run(results, "local probes")
    if not probes:
        return missing
    first = next(iter(probes.values()))
    note = (
        f"Ridge regressions from tokens of the last layer to their position (chance {100 * first.chance:.1f} %) and "
        f"their pixels (normalized units), tested on held-out images. Outliers: {first.rule}."
    )
    return html.join([html.element("h3", "Local probes"), _table(rows, note), missing])


def ground_truth_tables(results: Results) -> html.Html:
    """Norms and maps against masks or boxes."""
    rows = []
    for name, found in results.items():
        for statistics in found.ground_truth:
            last = statistics.layers[-1]
            ends = (last.outlier_background_low, last.outlier_background_high)
            interval = f" ({100 * ends[0]:.1f} to {100 * ends[1]:.1f})" if math.isfinite(ends[0]) else ""
            entropy_interval = f"({last.entropy_low:+.2f} to {last.entropy_high:+.2f})"
            row = {
                "model": name,
                "rule": statistics.rule,
                "layer": last.layer,
                "outliers": f"{last.outliers:,}",
                "in background (95 %)": _percent(last.outlier_background) + interval,
                "all tokens": _percent(last.background),
                "lift": _times(last.lift),
                "AUC (95 %)": f"{last.auc:.3f} ({last.auc_low:.3f} to {last.auc_high:.3f})",
                "entropy (95 %)": f"{last.entropy_correlation:+.2f} {entropy_interval}",
            }
            rows.append(row)
    note = (
        "AUC: of the norm as a detector of background patches, mean over images. Entropy: rank correlation of norm "
        "and the entropy of the patch's gray values, mean; below 0: high-norm tokens are on uniform patches."
    )
    maps = [
        {
            "model": name,
            "map": row.name,
            "IoU (Otsu)": f"{row.otsu_iou:.3f}",
            "IoU (best)": f"{row.best_iou:.3f}",
            "IoU of everything": f"{row.everything_iou:.3f}",
            "images": row.num_images,
        }
        for name, found in results.items()
        for row in found.map_ground_truth
    ]
    map_note = (
        "Maps of the last layer against the objects. Otsu: at Otsu's threshold, without the masks; best: at the best "
        "threshold of each image; everything: every token predicted as object."
    )
    return html.join([_table(rows, note), _table(maps, map_note), not_run(results, "ground truth")])


def discovery_table(results: Results) -> html.Html:
    """CorLoc of LOST's boxes by layer, and of the box around the whole image."""
    found_by = {name: found.discovery for name, found in results.items() if found.discovery is not None}
    rows = [
        {
            "model": name,
            "layer": "whole image" if row.layer is None else row.layer,
            "CorLoc (95 %)": f"{_percent(row.corloc)} ({100 * row.low:.1f} to {100 * row.high:.1f})",
            "IoU, mean": _number(row.iou),
            "images": row.num_images,
        }
        for name, found in found_by.items()
        for row in found.layers
    ]
    chosen = "; ".join(dict.fromkeys(found.options.text() for found in found_by.values()))
    note = (
        f"LOST: {chosen}. CorLoc: share of images whose box has at least that IoU with one of the objects' boxes; "
        "whole image: the box around the image, which needs no model. Images without boxes or masks do not count."
    )
    return _table(rows, note)


def added_table(results: Results) -> html.Html:
    """Norms and accuracy with registers that were added at test time."""
    rows = [
        {
            "model": name,
            "registers": row.name,
            "top-1": _percent(row.top1),
            "median norm": _number(row.median),
            "maximum": _number(row.maximum),
            "ratio": _times(row.ratio),
            "outliers": _percent(row.outlier_share, 2),
            "register median": _number(row.register_median),
        }
        for name, found in results.items()
        for row in found.added
    ]
    note = (
        "Untrained tokens are added to the sequence. In the last row, the activations of the channels with the largest "
        "effect on outliers are moved from the patches to these tokens. The weights are unchanged."
    )
    skipped = (not_run(results, part) for part in ("added registers", "moving activations"))
    return html.join([_table(rows, note), *skipped])
