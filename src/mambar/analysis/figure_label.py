"""The label below a figure: tensor, layer, metric, model, data, seed and version."""

from dataclasses import dataclass

from mambar import messages
from mambar.version import __version__

TENSORS = {
    "residual": "residual stream",
    "mixer": "mixer output",
    "normed": "tokens after the final norm",
}


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
            "data": self.data,
            "seed": self.seed,
        }
        parts = [f"{name}: {printable(value)}" for name, value in named.items() if value is not None]
        if self.random_weights:
            parts.append("random weights")
        return " · ".join([*parts, f"mambar {self.version}"])


def layer_name(layer: int, num_layers: int) -> str:
    """The layer and the range of layers, such as `23 of 0–23, last`."""
    last = ", last" if layer == num_layers - 1 else ""
    return f"{layer} of 0–{num_layers - 1}{last}"
