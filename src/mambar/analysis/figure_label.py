"""The label below a figure: tensor, layer, metric, model, data, seed and version."""

from collections.abc import Iterable
from dataclasses import dataclass

from mambar import messages
from mambar.version import __version__

TENSORS = {"residual": "residual stream", "mixer": "mixer output", "normed": "tokens after the final norm"}


def printable(value: object) -> str:
    """`value` as text without control characters, direction marks, or credentials in an address."""
    return messages.printable(value, replacement="\N{REPLACEMENT CHARACTER}")


@dataclass(frozen=True, kw_only=True)
class FigureLabel:
    """The settings of one figure; a field that is None is omitted from the text."""

    tensor: str | None = None
    layer: str | None = None
    metric: str | None = None
    model: str | None = None
    # Size of the model's input, as in "56 × 56 px".
    input: str | None = None
    data: str | None = None
    seed: int | None = None
    random_weights: bool = False
    version: str = __version__

    def line(self) -> str:
        """The label as one line of text, `name: value` joined by dots."""
        tensor = None if self.tensor is None else TENSORS.get(self.tensor, self.tensor)
        named = {
            "tensor": tensor,
            "layer": self.layer,
            "metric": self.metric,
            "model": self.model,
            "input": self.input,
            "data": self.data,
            "seed": self.seed,
        }
        parts = [f"{name}: {printable(value)}" for name, value in named.items() if value is not None]
        if self.random_weights:
            parts.append("random weights")
        return " · ".join([*parts, f"mambar {self.version}"])


def listed(names: Iterable[str]) -> str:
    """The different names as text: "a, b and c"."""
    *first, last = dict.fromkeys(names)
    return f"{', '.join(first)} and {last}" if first else last


def layers_text(layers: Iterable[int]) -> str:
    """The numbers of the different layers in their order as text: "layer 7" or "layers 3 and 1"."""
    numbers = dict.fromkeys(layers)
    return f"{'layer' if len(numbers) == 1 else 'layers'} {listed(map(str, numbers))}"


def size_text(size: tuple[int, int], trained_size: tuple[int, int] | None = None) -> str:
    """Height and width in pixels, as width × height, with the size of training if it is another one."""
    text = f"{size[1]} × {size[0]} px"
    return text if trained_size in (None, size) else f"{text} (trained at {size_text(trained_size)})"


def layer_name(layer: int, num_layers: int) -> str:
    """The layer and the range of layers, such as `23 of 0–23, last`."""
    last = ", last" if layer == num_layers - 1 else ""
    return f"{layer} of 0–{num_layers - 1}{last}"
