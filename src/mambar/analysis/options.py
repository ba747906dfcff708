"""The choices of an analysis, in one place: all of them are written into its report."""

from dataclasses import dataclass
from typing import Literal, get_args

from mambar.analysis.draw.color_maps import COLORMAPS, Resampling
from mambar.analysis.measure.feature_maps import Metric
from mambar.analysis.measure.probes import METHODS
from mambar.deprecated import ANALYSIS_FIELDS, accept_old_names
from mambar.errors import InputError
from mambar.models.protocol import TokenTensor


@accept_old_names(ANALYSIS_FIELDS)
@dataclass(frozen=True, kw_only=True)
class AnalysisOptions:
    """The choices of an analysis, all of them written into its report.

    tensor: whose norms. layers: shown in the gallery, from 0 (None: 4 of them, for 24 layers the paper's 7, 15, 19,
    23). vector, metric, map_tensor: what the feature map compares (see `analysis.feature_maps`). img_size: pixels
    (None: the model's own; for the built-in photographs 14 to 28 patches a side). num_images: most images for
    distributions, probes, ground truth; keep: most images whose maps are held. gallery: images shown. batch_size: None
    chooses by memory. scale: of the norm maps. probes: methods, () for none. added_registers: how many are
    tried without training, 0 for none.
    """

    tensor: TokenTensor = "residual"
    layers: tuple[int, ...] | None = None
    vector: str = "registers"
    metric: Metric = "l2"
    map_tensor: TokenTensor = "normed"
    img_size: int | tuple[int, int] | None = None
    num_images: int = 1000
    keep: int = 1000
    gallery: int = 6
    batch_size: int | None = None
    scale: Literal["linear", "log"] = "linear"
    resampling: Resampling = "nearest"
    colormap: str = "viridis"
    probes: tuple[str, ...] = ("ridge",)
    folds: int = 5
    added_registers: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        choices = {
            "tensor": get_args(TokenTensor),
            "map_tensor": get_args(TokenTensor),
            "metric": get_args(Metric),
            "scale": ("linear", "log"),
            "resampling": get_args(Resampling),
            "colormap": COLORMAPS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"{name}={getattr(self, name)!r} is not known; choose one of {', '.join(allowed)}.")
        for name in self.probes:
            if name not in METHODS:
                raise InputError(f"probes={name!r} is not known; choose from {', '.join(METHODS)}.")
        least = {"num_images": 1, "keep": 1, "gallery": 1, "folds": 2, "added_registers": 0}
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise InputError(f"{name}={getattr(self, name)} must be at least {lowest}.")


def default_layers(num_layers: int) -> tuple[int, ...]:
    """Four layers at a third, two thirds, five sixths and the end: 7, 15, 19, 23 of 24, as in the paper's figure."""
    ends = (num_layers / 3, 2 * num_layers / 3, 5 * num_layers / 6, num_layers)
    return tuple(sorted({max(0, round(end) - 1) for end in ends}))
