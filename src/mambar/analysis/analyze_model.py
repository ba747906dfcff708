"""All measurements of one model, as arrays: norms, outliers, maps, probes, ground truth, added registers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mambar.analysis.analyzed_model import AnalyzedModel
from mambar.analysis.images import NamedImages, masks_and_pixels
from mambar.analysis.measure.activations import capture_activations
from mambar.analysis.measure.class_activation import class_activation_maps
from mambar.analysis.measure.collect import CollectedNorms, ImageSample, NormCollector
from mambar.analysis.measure.feature_maps import feature_map, supported_vector
from mambar.analysis.measure.ground_truth import (
    GroundTruthStatistics,
    MapGroundTruth,
    background_share,
    ground_truth_by_rule,
    local_entropy,
    map_ground_truth,
)
from mambar.analysis.measure.local_probes import LocalProbes, LocalTokens, join_local, local_batch, local_probes
from mambar.analysis.measure.norms import norm_map
from mambar.analysis.measure.object_discovery import Discovery, discover_objects
from mambar.analysis.measure.outliers import MedianDeviation, OutlierStatistics, default_rules, outlier_statistics
from mambar.analysis.measure.probes import PooledFeatures, ProbeResult, join_pools, pool_batch, probe_all
from mambar.analysis.measure.register_maps import (
    cluster_registers,
    map_similarity,
    mean_register_similarity,
    register_map,
    register_names,
    registers_label,
)
from mambar.analysis.measure.register_neurons import (
    AddedRegistersResult,
    evaluate_added_registers,
    find_register_neurons,
    register_variants,
)
from mambar.analysis.options import AnalysisOptions, shown_layers
from mambar.data import Batch, ImageDataset, evaluation_batches
from mambar.deprecated import LOADER_ARGUMENTS, accept_old_names
from mambar.errors import InputError
from mambar.models.protocol import TokenTensor
from mambar.models.timm_vit import TimmViT
from mambar.models.vision_mamba import VisionMamba

# The tokens of one batch, all layers together, take at most this many bytes.
_BATCH_BYTES = 256 * 2**20
# Probes of single tokens and added registers use at most this many images, and at most this many bytes of them.
_SUBSET_IMAGES, _SUBSET_BYTES = 256, 128 * 2**20
_MIN_LOCAL_IMAGES = 8

ProgressCallback = Callable[[str, int], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class AnalysisResult:
    """All measurements of one model.

    Attributes:
        analyzed: The model.
        norms: Norm distributions of all images, maps of a sample.
        outliers: Outlier statistics for each rule.
        gallery_norms: Norm maps of the gallery images, all layers.
        vector: The global vector of the feature maps.
        feature_map: Feature maps of the gallery images, last layer.
        register_maps: Register maps of the gallery images, last layer; None without registers.
        register_similarity: Mean cosine similarity between registers, last layer; None without registers.
        register_groups: Cluster of each register by its maps; None without registers.
        probes: Pooling probes.
        local: Local probes.
        ground_truth: Outliers against masks, for each rule.
        map_ground_truth: IoU of the maps with the masks.
        added: Effect of registers added at test time.
        activation_maps: Class-activation maps (0-1) of the gallery images, by patch; None if not requested.
        activation_labels: The predicted class of each of these maps.
        discovery: Objects found by LOST; None if not requested.
        not_run: Reason for each part that was skipped.
    """

    analyzed: AnalyzedModel
    norms: CollectedNorms
    outliers: list[OutlierStatistics]
    gallery_norms: Float[Tensor, "layers images rows cols"]
    vector: str
    feature_map: Float[Tensor, "images rows cols"]
    register_maps: Float[Tensor, "images registers rows cols"] | None = None
    register_similarity: Float[Tensor, "registers registers"] | None = None
    register_groups: Int64[Tensor, "registers"] | None = None
    probes: list[ProbeResult] = field(default_factory=list)
    local: LocalProbes | None = None
    ground_truth: list[GroundTruthStatistics] = field(default_factory=list)
    map_ground_truth: list[MapGroundTruth] = field(default_factory=list)
    added: list[AddedRegistersResult] = field(default_factory=list)
    activation_maps: Float[Tensor, "images rows cols"] | None = None
    activation_labels: Int64[Tensor, "images"] | None = None
    discovery: Discovery | None = None
    not_run: dict[str, str] = field(default_factory=dict)

    @property
    def register_names(self) -> tuple[str, ...]:
        """The name of each register, such as "class token" for that of a ViT."""
        return register_names(self.analyzed.model, self.norms.register_norms.shape[-1])

    @property
    def registers_label(self) -> str:
        """One name for all registers."""
        return registers_label(self.register_names)


def batch_size_for(analyzed: AnalyzedModel, options: AnalysisOptions) -> int:
    """The batch size of the options, or the largest up to 64 whose tokens of all layers take at most 256 MiB."""
    if options.batch_size is not None:
        return options.batch_size
    rows, cols = analyzed.grid
    bytes_per_image = analyzed.model.num_layers * rows * cols * analyzed.model.embed_dim * 4
    return max(1, min(64, _BATCH_BYTES // max(bytes_per_image, 1)))


@accept_old_names(LOADER_ARGUMENTS)
def analyze_model(
    analyzed: AnalyzedModel,
    dataset: ImageDataset,
    gallery: NamedImages,
    options: AnalysisOptions,
    *,
    num_workers: int = 0,
    progress: ProgressCallback | None = None,
) -> AnalysisResult:
    """Runs every measurement on one model: statistics on `dataset`, maps to show on `gallery`.

    The model runs once on each batch of the dataset and once on the gallery. Only added registers need further forward
    passes, because they change the input sequence. Probes need labels, ground truth needs masks, added registers need
    a trained Vision Mamba; `not_run` gives the reason for a part that was skipped. `progress` receives the part and the
    number of images done.
    """
    measured = _DatasetPass(analyzed, dataset, options)
    batch_size = batch_size_for(analyzed, options)
    for batch in evaluation_batches(dataset, analyzed.preprocess, batch_size=batch_size, num_workers=num_workers):
        measured.add(batch.slice(0, options.num_images - len(measured.indices)))
        if progress is not None:
            progress("images", measured.norms.num_images)
        if len(measured.indices) == options.num_images:
            break
    if options.cam is not None and not isinstance(analyzed.model, VisionMamba | TimmViT):
        measured.not_run["activation maps"] = "the model is neither a Vision Mamba nor a ViT of timm"
    norms = measured.norms.result()
    ground_truth, map_ground_truth = measured.ground_truth(norms)
    discovery = None
    if options.discover is not None:
        discovery = discover_objects(
            analyzed,
            dataset,
            options.discover,
            shown_layers(analyzed.model.num_layers, options),
            num_images=options.num_images,
            num_shown=options.gallery,
            batch_size=batch_size,
            num_workers=num_workers,
        )
    return AnalysisResult(
        analyzed=analyzed,
        norms=norms,
        outliers=[outlier_statistics(norms.maps, rule=rule, layers=norms.layers) for rule in default_rules()],
        probes=measured.pooling_probes(),
        local=measured.local_probes(),
        ground_truth=ground_truth,
        map_ground_truth=map_ground_truth,
        added=measured.added_registers(),
        discovery=discovery,
        not_run=measured.not_run,
        **_gallery(analyzed, gallery, options),
    )


def _layers(options: AnalysisOptions) -> dict[TokenTensor, list[int] | None]:
    """The layers that are captured: all of the tensor of the norms, the last one of the other tensors."""
    return {"normed": [-1], options.map_tensor: [-1], options.tensor: None}


def _gallery(analyzed: AnalyzedModel, gallery: NamedImages, options: AnalysisOptions) -> dict[str, Any]:
    model = analyzed.model
    images = torch.stack([analyzed.preprocess(image) for image in gallery.images.values()])
    found = capture_activations(model, images, _layers(options))
    last = found[options.map_tensor][-1]
    vector = supported_vector(model, last, options.vector)
    results: dict[str, Any] = {
        "gallery_norms": torch.stack([norm_map(tokens) for tokens in found[options.tensor]]).cpu(),
        "vector": vector,
        "feature_map": feature_map(model, last, vector=vector, metric=options.metric).cpu(),
    }
    if options.cam is not None and isinstance(model, VisionMamba | TimmViT):
        maps, labels = class_activation_maps(model, images, method=options.cam)
        results["activation_maps"] = torch.nn.functional.adaptive_avg_pool2d(maps, last.grid)
        results["activation_labels"] = labels
    if last.registers.shape[1]:
        maps = register_map(last, metric=options.metric).cpu()
        results["register_maps"] = maps
        results["register_similarity"] = mean_register_similarity(last).cpu()
        results["register_groups"] = cluster_registers(map_similarity(maps))
    return results


class _DatasetPass:
    """The measurements of one pass over the dataset; each batch takes one forward pass."""

    def __init__(self, analyzed: AnalyzedModel, dataset: ImageDataset, options: AnalysisOptions) -> None:
        self.analyzed, self.dataset, self.model, self.options = analyzed, dataset, analyzed.model, options
        self.not_run: dict[str, str] = {}
        # Numbers of the images read; unreadable images are skipped.
        self.indices: list[int] = []
        # The number of images for the parts that hold all of their images in memory.
        height, width = analyzed.preprocessing.size
        rows, cols = analyzed.grid
        num_bytes = 4 * max(len(analyzed.preprocessing.mean) * height * width, rows * cols * self.model.embed_dim)
        most = min(options.num_images, _SUBSET_IMAGES, _SUBSET_BYTES // num_bytes)
        self.subset_size = max(_MIN_LOCAL_IMAGES, most)
        self.norms = NormCollector(
            range(self.model.num_layers), tensor=options.tensor, keep=options.max_maps, seed=options.seed
        )
        # Maps of the last layer, for the same images as the norm maps: the feature map, then every register's.
        self.maps = ImageSample(options.max_maps, options.seed)
        # Features of each batch; None if they are not needed.
        self.pools: list[PooledFeatures] | None = [] if options.probes and len(dataset.classes) >= 2 else None
        self.local: list[LocalTokens] = []
        # Images and labels of the subset, for the added registers.
        self.subset: list[tuple[Tensor, Tensor]] = []

    def add(self, batch: Batch) -> None:
        """Runs the model on one batch and adds it to every collector."""
        options, images, labels = self.options, batch.images, batch.labels
        left = self.subset_size - len(self.indices)
        if left > 0 and self._vision_mamba() is not None:
            self.subset.append((images[:left], labels[:left]))
        self.indices += batch.indices.tolist()
        found = capture_activations(self.model, images, _layers(options))
        self.norms.add(found[options.tensor])
        last, ranked, normed = (found[tensor][-1] for tensor in (options.map_tensor, options.tensor, "normed"))
        vector = supported_vector(self.model, last, options.vector)
        maps = [feature_map(self.model, last, vector=vector, metric=options.metric)[:, None]]
        if last.registers.shape[1]:
            maps.append(register_map(last, metric=options.metric))
        self.maps.add(torch.cat(maps, 1))
        if left > 0:
            self.local.append(local_batch(images[:left], normed, ranked, self.model.patch_size))
        if self.pools is not None:
            self.pools.append(pool_batch(normed, ranked, labels))

    def local_probes(self) -> LocalProbes | None:
        count = len(self.indices)
        if count < _MIN_LOCAL_IMAGES:
            self.not_run["local probes"] = f"{count} images are too few; {_MIN_LOCAL_IMAGES} or more are needed"
            return None
        return local_probes(join_local(self.local), seed=self.options.seed, layer=self.model.num_layers - 1)

    def pooling_probes(self) -> list[ProbeResult]:
        options, count, classes = self.options, len(self.indices), len(self.dataset.classes)
        if not options.probes:
            self.not_run["pooling probes"] = "not requested"
        elif self.pools is None:
            self.not_run["pooling probes"] = "the images have no classes; use data with labels"
        elif count < 2 * options.folds or count < 2 * classes:
            self.not_run["pooling probes"] = f"{count} images are too few for {classes} classes"
        else:
            return probe_all(join_pools(self.pools), methods=options.probes, folds=options.folds, seed=options.seed)
        return []

    def ground_truth(self, norms: CollectedNorms) -> tuple[list[GroundTruthStatistics], list[MapGroundTruth]]:
        """The sampled images' norms and maps against their masks."""
        kept = [self.indices[place] for place in norms.kept]
        shares, entropies = [], []
        for mask, pixels in masks_and_pixels(self.analyzed, self.dataset, kept):
            shares.append(background_share(mask, self.model.patch_size))
            entropies.append(local_entropy(pixels, self.model.patch_size))
        if len(shares) < len(kept):
            self.not_run["ground truth"] = "the images have no masks or boxes; use data with them, such as shapes"
            return [], []
        background, entropy = torch.cat(shares), torch.cat(entropies)
        given: dict[str, Any] = {"background": background, "entropy": entropy, "layers": norms.layers}
        given["objects"] = "boxes" if self.dataset[kept[0]].mask is None else "masks"
        statistics = ground_truth_by_rule(norms.maps, rules=default_rules(), **given)
        count = min(len(kept), self.subset_size)
        _, (scores,) = self.maps.result()
        # A distance is negated, so that large means similar for every metric.
        similar = (-scores if self.options.metric == "l2" else scores)[:count]
        named = {
            "norm, last layer": norms.maps[-1, :count],
            "feature map, similar": similar[:, 0],
            "feature map, dissimilar": -similar[:, 0],
            **{f"register {place}": each for place, each in enumerate(similar[:, 1:].unbind(1))},
        }
        return statistics, [map_ground_truth(name, each, background[:count]) for name, each in named.items()]

    def _vision_mamba(self) -> VisionMamba | None:
        """The model to which registers are added; None, with the reason in `not_run`, if they are not added."""
        model = self.model
        if not self.options.test_time_registers:
            self.not_run["added registers"] = "not requested"
        elif not isinstance(model, VisionMamba):
            self.not_run["added registers"] = "registers can be added to a Vision Mamba only"
        elif self.analyzed.random_weights:
            self.not_run["added registers"] = "the weights are random"
        else:
            return model
        return None

    def added_registers(self) -> list[AddedRegistersResult]:
        model, classes = self._vision_mamba(), self.analyzed.classes
        if model is None:
            return []
        comparable = classes is not None and tuple(classes) == tuple(self.dataset.classes)
        batches = [(images, labels if comparable else labels * 0 - 1) for images, labels in self.subset]
        try:
            neurons = find_register_neurons(model, (images for images, _ in batches), rule=MedianDeviation())
        except InputError as error:
            neurons = None
            self.not_run["moving activations"] = str(error).rstrip(".")
        return evaluate_added_registers(register_variants(model, neurons, self.options.test_time_registers), batches)
