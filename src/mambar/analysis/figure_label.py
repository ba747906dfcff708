"""The label below a figure: tensor, layer, metric, model, data, seed and version."""

from dataclasses import asdict, dataclass

from mambar import messages
from mambar.version import __version__

TENSORS = {
    "residual": "residual stream",
    "mixer": "mixer output",
    "normed": "tokens after the final norm",
}


def printable(value: object) -> str:
    """`value` as text for a person: no control characters, direction marks or credentials in an address."""
    return messages.printable(value, replacement="\N{REPLACEMENT CHARACTER}")


@dataclass(frozen=True, kw_only=True)
class FigureLabel:
    """The choices behind one figure; a field that does not apply is None and is left out of the text."""

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

    def to_dict(self) -> dict[str, object]:
        """The label as a JSON object."""
        return asdict(self)


def layer_name(layer: int, num_layers: int) -> str:
    """`layer` counted from 0, with the number of layers, and "last" where it is the last one."""
    last = ", last" if layer == num_layers - 1 else ""
    return f"{layer} of 0–{num_layers - 1}{last}"
