"""Everything that is asked of one model, as arrays: norms, outliers, maps, probes, ground truth, added registers."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mambar.analysis.analyzed_model import AnalyzedModel
from mambar.analysis.images import NamedImages, Reader, masks_and_pixels, stack_images
from mambar.analysis.measure.collect import CollectedNorms, Progress, collect_norms, model_device
from mambar.analysis.measure.feature_maps import feature_maps
from mambar.analysis.measure.ground_truth import (
    GroundTruthStatistics,
    MapGroundTruth,
    background_share,
    ground_truth_statistics,
    local_entropy,
    map_ground_truth,
)
from mambar.analysis.measure.local_probes import LocalProbes, local_probes, local_tokens
from mambar.analysis.measure.norms import eval_mode, token_norms
from mambar.analysis.measure.outliers import MedianDeviation, OutlierStatistics, default_rules, outlier_statistics
from mambar.analysis.measure.probes import ProbeResult, pool_features, probe_all
from mambar.analysis.measure.register_maps import cluster_registers, map_similarity, register_maps, register_similarity
from mambar.analysis.measure.register_neurons import (
    AddedRegistersResult,
    evaluate_added_registers,
    find_register_neurons,
    register_variants,
)
from mambar.analysis.options import AnalysisOptions
from mambar.data import ImageDataset
from mambar.errors import InputError
from mambar.models.protocol import TokenModel
from mambar.models.vision_mamba import VisionMamba
from mambar.nn import RegisterHead

logger = logging.getLogger("mambar.analysis.analyze_model")

# The tokens of one batch, all layers together, are kept below this many bytes.
_BATCH_BYTES = 256 * 2**20
# Probes of single tokens and of added registers need no more images than this, nor more bytes of them.
_FEW_IMAGES, _FEW_BYTES = 256, 128 * 2**20


@dataclass(frozen=True, kw_only=True, eq=False)
class AnalysisResult:
    """What was found in one model. `not_run` names each part that was left out, with the reason.

    gallery_norms: (layers, images, rows, cols) of the shown images, all layers; feature_map and register_maps: of the
    last layer; register_similarity: mean cosine between registers; register_groups: which see the same places.
    """

    analyzed: AnalyzedModel
    norms: CollectedNorms
    outliers: list[OutlierStatistics]
    gallery_norms: Float[Tensor, "layers images rows cols"]
    vector: str
    feature_map: Float[Tensor, "images rows cols"]
    register_maps: Float[Tensor, "images registers rows cols"] | None
    register_similarity: Float[Tensor, "registers registers"] | None
    register_groups: Int64[Tensor, "registers"] | None
    probes: list[ProbeResult] = field(default_factory=list)
    local: LocalProbes | None = None
    ground_truth: list[GroundTruthStatistics] = field(default_factory=list)
    map_ground_truth: list[MapGroundTruth] = field(default_factory=list)
    added: list[AddedRegistersResult] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)


ProgressCallback = Callable[[str, int], None]


def batch_size_for(analyzed: AnalyzedModel, options: AnalysisOptions) -> int:
    """As many images as keep the tokens of all layers below 256 MiB, at most 64."""
    if options.batch_size is not None:
        return options.batch_size
    rows, cols = analyzed.grid
    one = analyzed.model.num_layers * rows * cols * analyzed.model.embed_dim * 4
    return max(1, min(64, _BATCH_BYTES // max(one, 1)))


def analyze_model(
    analyzed: AnalyzedModel,
    dataset: ImageDataset,
    gallery: NamedImages,
    options: AnalysisOptions,
    *,
    workers: int = 0,
    progress: ProgressCallback | None = None,
) -> AnalysisResult:
    """Asks one model everything. `dataset` is what statistics are taken of, `gallery` what is shown.

    Probes need labels, ground truth needs masks, added registers need a Vision Mamba with outliers: a skipped part says
    why in `not_run`. `progress` is called with the part and the number of images done.
    """

    def told(part: str) -> Progress:
        return lambda done: progress(part, done) if progress else None

    reader = Reader(
        analyzed=analyzed,
        dataset=dataset,
        batch_size=batch_size_for(analyzed, options),
        workers=workers,
        limit=options.num_images,
    )
    norms = collect_norms(
        analyzed.model,
        reader.images(),
        tensor=options.tensor,
        keep=options.max_maps,
        seed=options.seed,
        progress=told("norms"),
    )
    kept = [reader.indices[place] for place in norms.kept]
    not_run: dict[str, str] = {}
    probes, local = _probe(reader, options, not_run, told("probes"))
    ground_truth, maps = _ground_truth(reader, kept, norms, options, not_run)
    return AnalysisResult(
        analyzed=analyzed,
        norms=norms,
        outliers=[outlier_statistics(norms.maps, rule=rule, layers=norms.layers) for rule in default_rules()],
        probes=probes,
        local=local,
        ground_truth=ground_truth,
        map_ground_truth=maps,
        added=_added(reader, options, not_run),
        not_run=not_run,
        **_gallery(analyzed, gallery, options),
    )


def has_registers(model: TokenModel, images: Float[Tensor, "batch channels height width"]) -> bool:
    """Whether the model has registers or a class token."""
    with eval_mode(model):
        return model.tokens(images[:1], [0])[0].registers.shape[1] > 0


def supported_vector(model: TokenModel, images: Float[Tensor, "batch channels height width"], asked: str) -> str:
    """The global vector asked for, or the nearest thing the model has: patches without registers, first for head."""
    if not has_registers(model, images):
        return "patches"
    read_out = model.head.read_out if isinstance(model, VisionMamba) else None
    return "first" if asked == "head" and not isinstance(read_out, RegisterHead) else asked


def _gallery(analyzed: AnalyzedModel, gallery: NamedImages, options: AnalysisOptions) -> dict[str, Any]:
    model = analyzed.model
    images = stack_images(analyzed, gallery).to(model_device(model))
    vector = supported_vector(model, images, options.vector)
    found: dict[str, Any] = {
        "gallery_norms": token_norms(model, images, tensor=options.tensor).cpu(),
        "vector": vector,
        "feature_map": feature_maps(
            model, images, [-1], vector=vector, metric=options.metric, tensor=options.map_tensor
        )[0].cpu(),
        "register_maps": None,
        "register_similarity": None,
        "register_groups": None,
    }
    if has_registers(model, images):
        maps = register_maps(model, images, [-1], metric=options.metric, tensor=options.map_tensor)[0].cpu()
        similarity = register_similarity(model, images, [-1], tensor=options.map_tensor)[0].cpu()
        groups = cluster_registers(map_similarity(maps))
        found |= {"register_maps": maps, "register_similarity": similarity, "register_groups": groups}
    return found


def _subset(reader: Reader, options: AnalysisOptions) -> Reader:
    """A reader of as many images as parts need that hold all of them at once."""
    analyzed = reader.analyzed
    height, width = analyzed.preprocessing.size
    rows, cols = analyzed.grid
    one = 4 * max(len(analyzed.preprocessing.mean) * height * width, rows * cols * analyzed.model.embed_dim)
    return replace(reader, limit=max(8, min(options.num_images, _FEW_IMAGES, _FEW_BYTES // one)))


def _probe(
    reader: Reader, options: AnalysisOptions, not_run: dict[str, str], progress: Progress
) -> tuple[list[ProbeResult], LocalProbes | None]:
    few = _subset(reader, options)
    local = None
    if min(len(reader.indices), len(few.dataset)) < 8:
        not_run["local probes"] = f"{len(reader.indices)} images are too few; 8 or more are needed"
    else:
        tokens = local_tokens(reader.analyzed.model, few.images(), ranking=options.tensor)
        local = local_probes(tokens, seed=options.seed, layer=reader.analyzed.model.num_layers - 1)
    classes = len(reader.dataset.classes)
    if not options.probes:
        not_run["pooling probes"] = "not asked for"
    elif classes < 2:
        not_run["pooling probes"] = "the images have no classes; give data with labels"
    elif len(reader.indices) < 2 * options.folds or len(reader.indices) < 2 * classes:
        not_run["pooling probes"] = f"{len(reader.indices)} images are too few for {classes} classes"
    else:
        pooled = pool_features(reader.analyzed.model, reader.labeled(), ranking=options.tensor, progress=progress)
        return (
            probe_all(pooled, methods=options.probes, folds=options.folds, seed=options.seed),
            local,
        )
    return [], local


def _ground_truth(
    reader: Reader,
    kept: list[int],
    norms: CollectedNorms,
    options: AnalysisOptions,
    not_run: dict[str, str],
) -> tuple[list[GroundTruthStatistics], list[MapGroundTruth]]:
    background, entropy, read = [], [], []
    few = _subset(reader, options).limit or 0
    analyzed = reader.analyzed
    for mask, pixels in masks_and_pixels(analyzed, reader.dataset, kept):
        background.append(background_share(mask, analyzed.model.patch_size))
        entropy.append(local_entropy(pixels, analyzed.model.patch_size))
        if len(read) < few:
            read.append(analyzed.preprocessing.normalize(pixels))
    if len(background) < len(kept):
        not_run["ground truth"] = "the images have no masks; give data that has them, such as shapes"
        return [], []
    plain, bits = torch.cat(background), torch.cat(entropy)
    statistics = [
        ground_truth_statistics(norms.maps, background=plain, entropy=bits, rule=rule, layers=norms.layers)
        for rule in default_rules()
    ]
    return statistics, _map_ground_truth(analyzed, torch.cat(read), plain[: len(read)], norms, options)


def _map_ground_truth(
    analyzed: AnalyzedModel,
    images: Float[Tensor, "batch channels height width"],
    background: Float[Tensor, "batch rows cols"],
    norms: CollectedNorms,
    options: AnalysisOptions,
) -> list[MapGroundTruth]:
    """Norms, the feature map and every register map of the last layer against the objects of the same images."""
    model, device = analyzed.model, model_device(analyzed.model)
    # Small is near for a distance: its sign is turned, so that large means alike.
    sign = -1.0 if options.metric == "l2" else 1.0
    features, registers = [], []
    for part in images.split(batch_size_for(analyzed, options)):
        given = part.to(device)
        vector = supported_vector(model, given, options.vector)
        near = feature_maps(model, given, [-1], vector=vector, metric=options.metric, tensor=options.map_tensor)
        features.append(sign * near[0].cpu())
        if has_registers(model, given):
            seen = register_maps(model, given, [-1], metric=options.metric, tensor=options.map_tensor)
            registers.append(sign * seen[0].cpu())
    found = [
        map_ground_truth("norm, last layer", norms.maps[-1, : len(images)], background),
        map_ground_truth("feature map, alike", torch.cat(features), background),
        map_ground_truth("feature map, unlike", -torch.cat(features), background),
    ]
    if registers:
        every = torch.cat(registers)
        found += [map_ground_truth(f"register {place}", every[:, place], background) for place in range(every.shape[1])]
    return found


def _added(reader: Reader, options: AnalysisOptions, not_run: dict[str, str]) -> list[AddedRegistersResult]:
    model = reader.analyzed.model
    if not options.test_time_registers:
        not_run["added registers"] = "not asked for"
        return []
    if not isinstance(model, VisionMamba):
        not_run["added registers"] = "only a Vision Mamba can be given registers without training"
        return []
    if reader.analyzed.random_weights:
        not_run["added registers"] = "the weights are random"
        return []
    few = _subset(reader, options)
    classes = reader.analyzed.classes
    comparable = classes is not None and tuple(classes) == tuple(reader.dataset.classes)
    batches = [(images, labels if comparable else labels * 0 - 1) for images, labels in few.labeled()]
    try:
        neurons = find_register_neurons(model, (images for images, _ in batches), rule=MedianDeviation())
    except InputError as error:
        neurons = None
        not_run["moving activations"] = str(error).rstrip(".")
    return evaluate_added_registers(register_variants(model, neurons, options.test_time_registers), batches)
