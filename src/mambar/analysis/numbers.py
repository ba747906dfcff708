"""The results of an analysis, and their files: JSON for numbers, npz for arrays."""

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mambar.analysis.analyze_model import AnalysisResult
from mambar.analysis.figure_label import FigureLabel, listed, size_text
from mambar.analysis.images import NamedImages
from mambar.analysis.options import AnalysisOptions, shown_layers
from mambar.json_fields import finite
from mambar.version import __version__

FORMAT_VERSION = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Analysis:
    """The results of all models.

    Attributes:
        results: The results by model name.
        gallery: The images that are shown.
        data: Name of the dataset and number of images, for figures.
        options: The options of the analysis.
    """

    results: Mapping[str, AnalysisResult]
    gallery: NamedImages
    data: str
    options: AnalysisOptions

    @property
    def random_weights(self) -> list[str]:
        """The names of the models with random weights."""
        return [name for name, found in self.results.items() if found.analyzed.random_weights]

    def layers(self) -> dict[str, tuple[int, ...]]:
        """The layers that are shown, for each model."""
        return {
            name: shown_layers(found.analyzed.model.num_layers, self.options) for name, found in self.results.items()
        }

    def layer_columns(self) -> list[dict[str, int]]:
        """The shown layers, model by model, the last ones side by side; the first columns lack shallow models."""
        layers = self.layers()
        places = range(-max(map(len, layers.values())), 0)
        return [{name: chosen[place] for name, chosen in layers.items() if place >= -len(chosen)} for place in places]

    def label(self, names: Iterable[str] | None = None, **fields: Any) -> FigureLabel:
        """A figure's label: the fields that all figures have, for the models with these names, and `fields`."""
        models = {name: self.results[name].analyzed for name in (names or self.results)}
        shared: dict[str, Any] = {
            "model": listed(
                f"{name} (random weights)" if model.random_weights else name for name, model in models.items()
            ),
            "input": listed(size_text(model.preprocessing.size, model.trained_size) for model in models.values()),
            "data": self.data,
            "seed": self.options.seed,
        }
        return FigureLabel(**(shared | fields))


def numbers_json(analysis: Analysis) -> bytes:
    """All numbers as JSON; NaN and infinity are null."""
    models = {}
    for name, found in analysis.results.items():
        models[name] = {
            "random_weights": found.analyzed.random_weights,
            "preprocessing": found.analyzed.preprocessing.to_dict(),
            "num_images": found.norms.num_images,
            "layers": list(found.norms.layers),
            "tensor": found.norms.tensor,
            "norms": [layer.to_dict() for layer in found.norms.patches],
            "register_norms": [layer.to_dict() for layer in found.norms.registers],
            "outliers": [asdict(statistics) for statistics in found.outliers],
            "register_groups": None if found.register_groups is None else found.register_groups.tolist(),
            "pooling_probes": [result.to_dict() for result in found.probes],
            "local_probes": None if found.local is None else asdict(found.local),
            "ground_truth": [asdict(statistics) for statistics in found.ground_truth],
            "map_ground_truth": [asdict(result) for result in found.map_ground_truth],
            "object_discovery": [asdict(layer) for layer in found.discovery.layers] if found.discovery else None,
            "added_registers": [asdict(result) for result in found.added],
            "not_run": found.not_run,
        }
    content = {
        "format_version": FORMAT_VERSION,
        "mambar": __version__,
        "data": analysis.data,
        "options": asdict(analysis.options),
        "models": models,
    }
    text = json.dumps(finite(content), indent=2, ensure_ascii=True, allow_nan=False)
    return (text + "\n").encode()


def arrays_npz(analysis: Analysis) -> bytes:
    """The arrays as a compressed npz file: `model0_…`, `model1_…`, and the models' names in order."""
    arrays: dict[str, Any] = {}
    for number, found in enumerate(analysis.results.values()):
        given = {
            "norm_maps": found.norms.maps,
            "kept": np.asarray(found.norms.kept, dtype=np.int64),
            "register_norms": found.norms.register_norms,
            "mean_map": found.norms.mean_map,
            "histograms": np.stack([layer.counts for layer in found.norms.patches]),
            "gallery_norms": found.gallery_norms,
            "feature_map": found.feature_map,
            "register_maps": found.register_maps,
            "register_similarity": found.register_similarity,
            "activation_maps": found.activation_maps,
            "activation_labels": found.activation_labels,
        }
        for name, values in given.items():
            if values is not None:
                arrays[f"model{number}_{name}"] = np.asarray(values)
    arrays["models"] = np.asarray(list(analysis.results))
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()
