"""Everything that is asked of one model, as arrays: norms, outliers, maps, probes, truth, added registers."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mambar.analysis.analyzed_model import Subject
from mambar.analysis.images import Pictures, Reader, masks_and_pixels, stacked
from mambar.analysis.measure.collect import CollectedNorms, Progress, collect_norms, model_device
from mambar.analysis.measure.feature_maps import feature_maps
from mambar.analysis.measure.ground_truth import (
    MapTruth,
    TruthStatistics,
    background_share,
    local_entropy,
    map_truth,
    truth_statistics,
)
from mambar.analysis.measure.local_probes import LocalProbes, local_probes, local_tokens
from mambar.analysis.measure.norms import looking, token_norms
from mambar.analysis.measure.outliers import MedianDeviation, OutlierStatistics, default_rules, outlier_statistics
from mambar.analysis.measure.probes import ProbeResult, pool_features, probe_all
from mambar.analysis.measure.register_maps import cluster_registers, map_similarity, register_maps, register_similarity
from mambar.analysis.measure.register_neurons import (
    AddedRegistersResult,
    find_register_neurons,
    register_variants,
    try_registers,
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
class Study:
    """What was found in one model. `not_run` names each part that was left out, with the reason.

    gallery_norms: (layers, images, rows, cols) of the shown images, all layers; feature_map and register_maps: of the
    last layer; register_similarity: mean cosine between registers; register_groups: which see the same places.
    """

    subject: Subject
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
    truth: list[TruthStatistics] = field(default_factory=list)
    map_truth: list[MapTruth] = field(default_factory=list)
    added: list[AddedRegistersResult] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)


Report = Callable[[str, int], None]


def batch_size_for(subject: Subject, options: AnalysisOptions) -> int:
    """As many images as keep the tokens of all layers below 256 MiB, at most 64."""
    if options.batch_size is not None:
        return options.batch_size
    rows, cols = subject.grid
    one = subject.model.num_layers * rows * cols * subject.model.embed_dim * 4
    return max(1, min(64, _BATCH_BYTES // max(one, 1)))


def study(
    subject: Subject,
    dataset: ImageDataset,
    gallery: Pictures,
    options: AnalysisOptions,
    *,
    workers: int = 0,
    progress: Report | None = None,
) -> Study:
    """Asks one model everything. `dataset` is what statistics are taken of, `gallery` what is shown.

    Probes need labels, the truth masks, added registers a Vision Mamba with outliers: a part that cannot be run says
    why in `not_run`. `progress` is called with the part and the number of images done.
    """

    def told(part: str) -> Progress:
        return lambda done: progress(part, done) if progress else None

    reader = Reader(
        subject=subject,
        dataset=dataset,
        batch_size=batch_size_for(subject, options),
        workers=workers,
        limit=options.num_images,
    )
    norms = collect_norms(
        subject.model,
        reader.images(),
        tensor=options.tensor,
        keep=options.keep,
        seed=options.seed,
        progress=told("norms"),
    )
    kept = [reader.indices[place] for place in norms.kept]
    not_run: dict[str, str] = {}
    probes, local = _probe(reader, options, not_run, told("probes"))
    truth, maps = _truth(reader, kept, norms, options, not_run)
    return Study(
        subject=subject,
        norms=norms,
        outliers=[outlier_statistics(norms.maps, rule=rule, layers=norms.layers) for rule in default_rules()],
        probes=probes,
        local=local,
        truth=truth,
        map_truth=maps,
        added=_added(reader, options, not_run),
        not_run=not_run,
        **_gallery(subject, gallery, options),
    )


def has_registers(model: TokenModel, images: Float[Tensor, "batch channels height width"]) -> bool:
    """Whether the model has registers or a class token."""
    with looking(model):
        return model.tokens(images[:1], [0])[0].registers.shape[1] > 0


def fitting_vector(model: TokenModel, images: Float[Tensor, "batch channels height width"], asked: str) -> str:
    """The global vector asked for, or the nearest thing the model has: patches without registers, first for head."""
    if not has_registers(model, images):
        return "patches"
    read_out = model.head.read_out if isinstance(model, VisionMamba) else None
    return "first" if asked == "head" and not isinstance(read_out, RegisterHead) else asked


def _gallery(subject: Subject, gallery: Pictures, options: AnalysisOptions) -> dict[str, Any]:
    model = subject.model
    images = stacked(subject, gallery).to(model_device(model))
    vector = fitting_vector(model, images, options.vector)
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


def _few(reader: Reader, options: AnalysisOptions) -> Reader:
    """A reader of as many images as parts need that hold all of them at once."""
    subject = reader.subject
    height, width = subject.preprocessing.size
    rows, cols = subject.grid
    one = 4 * max(len(subject.preprocessing.mean) * height * width, rows * cols * subject.model.embed_dim)
    return replace(reader, limit=max(8, min(options.num_images, _FEW_IMAGES, _FEW_BYTES // one)))


def _probe(
    reader: Reader, options: AnalysisOptions, not_run: dict[str, str], progress: Progress
) -> tuple[list[ProbeResult], LocalProbes | None]:
    few = _few(reader, options)
    local = None
    if min(len(reader.indices), len(few.dataset)) < 8:
        not_run["local probes"] = f"{len(reader.indices)} images are too few; 8 or more are needed"
    else:
        tokens = local_tokens(reader.subject.model, few.images(), ranking=options.tensor)
        local = local_probes(tokens, seed=options.seed, layer=reader.subject.model.num_layers - 1)
    classes = len(reader.dataset.classes)
    if not options.probes:
        not_run["pooling probes"] = "not asked for"
    elif classes < 2:
        not_run["pooling probes"] = "the images have no classes; give data with labels"
    elif len(reader.indices) < 2 * options.folds or len(reader.indices) < 2 * classes:
        not_run["pooling probes"] = f"{len(reader.indices)} images are too few for {classes} classes"
    else:
        pooled = pool_features(reader.subject.model, reader.labelled(), ranking=options.tensor, progress=progress)
        return (
            probe_all(pooled, methods=options.probes, folds=options.folds, seed=options.seed),
            local,
        )
    return [], local


def _truth(
    reader: Reader,
    kept: list[int],
    norms: CollectedNorms,
    options: AnalysisOptions,
    not_run: dict[str, str],
) -> tuple[list[TruthStatistics], list[MapTruth]]:
    background, entropy, read = [], [], []
    few = _few(reader, options).limit or 0
    subject = reader.subject
    for mask, pixels in masks_and_pixels(subject, reader.dataset, kept):
        background.append(background_share(mask, subject.model.patch_size))
        entropy.append(local_entropy(pixels, subject.model.patch_size))
        if len(read) < few:
            read.append(subject.preprocessing.normalize(pixels))
    if len(background) < len(kept):
        not_run["truth"] = "the images have no masks; give data that has them, such as shapes"
        return [], []
    plain, bits = torch.cat(background), torch.cat(entropy)
    statistics = [
        truth_statistics(norms.maps, background=plain, entropy=bits, rule=rule, layers=norms.layers)
        for rule in default_rules()
    ]
    return statistics, _map_truth(subject, torch.cat(read), plain[: len(read)], norms, options)


def _map_truth(
    subject: Subject,
    images: Float[Tensor, "batch channels height width"],
    background: Float[Tensor, "batch rows cols"],
    norms: CollectedNorms,
    options: AnalysisOptions,
) -> list[MapTruth]:
    """Norms, the feature map and every register map of the last layer against the objects of the same images."""
    model, device = subject.model, model_device(subject.model)
    # Small is near for a distance: its sign is turned, so that large means alike.
    sign = -1.0 if options.metric == "l2" else 1.0
    features, registers = [], []
    for part in images.split(batch_size_for(subject, options)):
        given = part.to(device)
        vector = fitting_vector(model, given, options.vector)
        near = feature_maps(model, given, [-1], vector=vector, metric=options.metric, tensor=options.map_tensor)
        features.append(sign * near[0].cpu())
        if has_registers(model, given):
            seen = register_maps(model, given, [-1], metric=options.metric, tensor=options.map_tensor)
            registers.append(sign * seen[0].cpu())
    found = [
        map_truth("norm, last layer", norms.maps[-1, : len(images)], background),
        map_truth("feature map, alike", torch.cat(features), background),
        map_truth("feature map, unlike", -torch.cat(features), background),
    ]
    if registers:
        every = torch.cat(registers)
        found += [map_truth(f"register {place}", every[:, place], background) for place in range(every.shape[1])]
    return found


def _added(reader: Reader, options: AnalysisOptions, not_run: dict[str, str]) -> list[AddedRegistersResult]:
    model = reader.subject.model
    if not options.added_registers:
        not_run["added registers"] = "not asked for"
        return []
    if not isinstance(model, VisionMamba):
        not_run["added registers"] = "only a Vision Mamba can be given registers without training"
        return []
    if reader.subject.random_weights:
        not_run["added registers"] = "the weights are random"
        return []
    few = _few(reader, options)
    classes = reader.subject.classes
    comparable = classes is not None and tuple(classes) == tuple(reader.dataset.classes)
    batches = [(images, labels if comparable else labels * 0 - 1) for images, labels in few.labelled()]
    try:
        neurons = find_register_neurons(model, (images for images, _ in batches), rule=MedianDeviation())
    except InputError as error:
        neurons = None
        not_run["moving activations"] = str(error).rstrip(".")
    return try_registers(register_variants(model, neurons, options.added_registers), batches)
