"""Model cards for the Hugging Face hub: architecture, recipe, results and cost; what was not run is marked."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mambar.messages import printable
from mambar.models.complexity import complexity
from mambar.models.vision_mamba import VisionMamba
from mambar.version import __version__

NOT_RUN = "*not run*"

# Results that every card lists first, in this order.
_RESULTS = ("top-1", "top-5")
_MAX_CLASSES = 50


def model_card(
    model: VisionMamba,
    *,
    name: str,
    recipe: Mapping[str, Any] | None = None,
    data: str | None = None,
    results: Mapping[str, float | str | None] | None = None,
    norms: Sequence[tuple[int, float, float]] = (),
    licence: str | None = None,
) -> str:
    """A model card in Markdown with YAML front matter; markup in names and values is escaped.

    recipe: the resolved recipe of the run. results: name → value (a number is a fraction 0-1, printed in percent;
    None is *not run*). norms: (layer from 0, median, maximum) of the L2 norms of patch tokens.
    """
    parts = [
        _head(licence),
        f"# {escaped(name)}",
        _what(model),
        "## Use\n\n" + _use(name),
        "## Recipe\n\n" + (_json_block(recipe) if recipe else "Not recorded."),
        "## Data\n\n" + (escaped(data) if data else "Not recorded."),
        "## Results\n\n" + _results(results or {}),
        "## Cost\n\n" + _cost(model),
        "## Token norms\n\n" + _norms(norms),
        f"Written by mambar {__version__}.",
    ]
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """The text on one line, with Markdown and HTML markup escaped."""
    line = printable(text, replacement=" ").strip()
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*_{}\[\]()#+!|~$:-])", r"\\\1", line)
    return line.replace("://", "&#58;//")


def _head(licence: str | None) -> str:
    lines = ["---", "library_name: mambar", "pipeline_tag: image-classification"]
    if licence is not None:
        # A JSON string is a YAML string.
        lines.append(f"license: {json.dumps(licence)}")
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in ("mambar", "vision-mamba", "registers", "timm")), "---"])


def _what(model: VisionMamba) -> str:
    config = model.config
    height, width = config.size
    lines = [
        f"A vision Mamba with register tokens (Mamba-R, [arXiv 2405.14858](https://arxiv.org/abs/2405.14858)): "
        f"{config.depth} blocks of width {config.embed_dim}, {config.num_registers} registers placed "
        f"`{config.placement}`, read by the head `{config.head}`; images of {height}x{width} pixels in patches of "
        f"{config.patch_size}."
    ]
    if model.classes:
        shown = ", ".join(escaped(each) for each in model.classes[:_MAX_CLASSES])
        more = len(model.classes) - _MAX_CLASSES
        lines.append(f"{len(model.classes)} classes: {shown}{f' and {more} more' if more > 0 else ''}.")
    else:
        lines.append(f"{config.num_classes} classes without names." if config.num_classes else "No classifier.")
    if model.preprocessing is not None:
        seen = model.preprocessing
        lines.append(
            f"Images are resized ({seen.interpolation}), the central {seen.crop_pct:.1%} is kept, and normalized with "
            f"mean {_numbers(seen.mean)} and standard deviation {_numbers(seen.std)}."
        )
    lines.append(
        "Transparent pixels are blended with white, and 16-bit images are reduced to their high byte. Pipelines of "
        "transformers convert such images differently; give them the tensor of `mambar.data.read_image(PATH)`."
    )
    return "\n\n".join(lines)


def _use(name: str) -> str:
    repository = re.sub(r"[^\w.-]", "-", name)
    return (
        "```python\nimport timm, mambar.hub.timm_register\n\n"
        f'model = timm.create_model("hf-hub:OWNER/{repository}", pretrained=True)\n```\n\n'
        f'or `mambar.load("OWNER/{repository}")`.'
    )


def _json_block(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, indent=2, ensure_ascii=True, default=str)
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}json\n{text}\n{fence}"


def _results(results: Mapping[str, float | str | None]) -> str:
    names = [*_RESULTS, *(name for name in results if name not in _RESULTS)]
    return _table(("", "measured"), [(escaped(name), _value(results.get(name))) for name in names])


def _value(value: float | str | None) -> str:
    if value is None:
        return NOT_RUN
    return escaped(value) if isinstance(value, str) else f"{value:.2%}"


def _cost(model: VisionMamba) -> str:
    cost = complexity(model.config)
    rows = [
        ("parameters", f"{cost.parameters:,}"),
        ("tokens per image", str(cost.length)),
        ("multiply-adds of projections", f"{cost.linear_macs / 1e9:.2f} G"),
        ("operations of the scans", f"{cost.scan_flops / 1e9:.2f} G"),
    ]
    return "For one image, computed from the configuration.\n\n" + _table(("", "count"), rows)


def _norms(norms: Sequence[tuple[int, float, float]]) -> str:
    if not norms:
        return NOT_RUN
    rows = [(str(layer), f"{median:.1f}", f"{most:.1f}") for layer, median, most in norms]
    return "L2 norms of the patch tokens in the residual stream.\n\n" + _table(
        ("after block", "median", "maximum"), rows
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
