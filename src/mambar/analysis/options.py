"""The choices of an analysis, in one place: all of them are written into its report."""

from dataclasses import dataclass
from typing import Literal

from mambar.analysis.draw.color_maps import COLORMAPS, Resampling
from mambar.analysis.measure.class_activation import check_cam_method
from mambar.analysis.measure.feature_maps import DEFAULT_METRIC, Metric
from mambar.analysis.measure.object_discovery import LostOptions
from mambar.analysis.measure.probes import METHODS
from mambar.deprecated import ANALYSIS_FIELDS, ANALYSIS_VALUES, accept_old_names
from mambar.errors import InputError
from mambar.json_fields import check_choices
from mambar.models.protocol import TokenTensor


@accept_old_names(ANALYSIS_FIELDS, ANALYSIS_VALUES)
@dataclass(frozen=True, kw_only=True)
class AnalysisOptions:
    """The choices of an analysis, all of them written into its report."""

    # The tensor whose norms are measured: residual, mixer or normed.
    tensor: TokenTensor = "residual"
    # Layers of the gallery, from 0. None: four of them; for 24 layers the paper's 7, 15, 19 and 23.
    layers: tuple[int, ...] | None = None
    # What the feature map compares: a global vector with the patches of `map_tensor` (`measure.feature_maps`).
    vector: str = "register_mean"
    metric: Metric = DEFAULT_METRIC
    map_tensor: TokenTensor = "normed"
    # Pixels. None: the model's own size; for the built-in photographs 14 to 28 patches a side.
    img_size: int | tuple[int, int] | None = None
    # Maximum number of images for distributions, probes and ground truth.
    num_images: int = 1000
    # Maximum number of images whose maps are kept.
    max_maps: int = 1000
    # Number of images shown.
    gallery: int = 6
    # None: chosen by memory.
    batch_size: int | None = None
    # Color scale of norm maps; auto: log where the maxima of two models differ more than tenfold, else linear.
    scale: Literal["auto", "linear", "log"] = "auto"
    resampling: Resampling = "nearest"
    colormap: str = "viridis"
    # Methods of the probes; () for none.
    probes: tuple[str, ...] = ("ridge",)
    folds: int = 5
    # Number of registers added without training; 0 for none.
    test_time_registers: int = 4
    # Object discovery by LOST on the layers of the gallery; None: not run.
    discover: LostOptions | None = None
    # Class-activation maps of the gallery, a key of `CAM_METHODS`; None: not run.
    cam: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_choices(self, colormap=COLORMAPS)
        for name in self.probes:
            if name not in METHODS:
                raise InputError(f"probes={name!r} is not known; choose from {', '.join(METHODS)}.")
        if self.cam is not None:
            check_cam_method(self.cam)
        least = {"num_images": 1, "max_maps": 1, "gallery": 1, "folds": 2, "test_time_registers": 0}
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise InputError(f"{name}={getattr(self, name)} must be at least {lowest}.")


def default_layers(num_layers: int) -> tuple[int, ...]:
    """Four layers at a third, two thirds, five sixths and the end: 7, 15, 19, 23 of 24, as in the paper's figure."""
    ends = (num_layers / 3, 2 * num_layers / 3, 5 * num_layers / 6, num_layers)
    return tuple(sorted({max(0, round(end) - 1) for end in ends}))


def shown_layers(num_layers: int, options: AnalysisOptions) -> tuple[int, ...]:
    """The requested layers that the model has, or else its default layers."""
    asked = [layer % num_layers for layer in options.layers or () if -num_layers <= layer < num_layers]
    return tuple(dict.fromkeys(asked)) or default_layers(num_layers)
