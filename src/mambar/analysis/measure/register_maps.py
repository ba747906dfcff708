"""Register maps: similarity of each register to the image tokens, similarity between registers, and clusters."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mambar.analysis.measure.activations import capture_activations
from mambar.analysis.measure.feature_maps import DEFAULT_METRIC, Metric, compare
from mambar.errors import InputError
from mambar.models.protocol import Images, Layers, TokenModel, TokenTensor
from mambar.models.timm_vit import TimmViT
from mambar.nn import Tokens


def register_maps(
    model: TokenModel,
    images: Images,
    layers: Layers = None,
    *,
    metric: Metric = DEFAULT_METRIC,
    tensor: TokenTensor = "normed",
) -> Float[Tensor, "layers batch registers rows cols"]:
    """The metric between each image token and each register, layer by layer; for l2, smaller is more similar."""
    found = capture_activations(model, images, {tensor: layers})[tensor]
    return torch.stack([register_map(tokens, metric=metric) for tokens in found])


def register_map(tokens: Tokens, *, metric: Metric) -> Float[Tensor, "batch registers rows cols"]:
    """The maps of every register; see `register_maps`."""
    maps = [compare(tokens.patches, register, metric) for register in tokens.registers.unbind(1)]
    if not maps:
        raise InputError("Register maps need a model with registers or a class token; this one has none.")
    return torch.stack(maps, dim=1).unflatten(2, tokens.grid)


def register_similarity(
    model: TokenModel, images: Images, layers: Layers = None, *, tensor: TokenTensor = "normed"
) -> Float[Tensor, "layers registers registers"]:
    """The cosine similarity between registers, the mean over images, layer by layer."""
    found = capture_activations(model, images, {tensor: layers})[tensor]
    return torch.stack([mean_register_similarity(tokens) for tokens in found])


def register_names(model: TokenModel, count: int) -> tuple[str, ...]:
    """The name of each of `count` registers; the class token of a timm ViT is not called a register."""
    if isinstance(model, TimmViT):
        return model.register_names
    return tuple(f"register {place}" for place in range(count))


def registers_label(names: Sequence[str]) -> str:
    """One name for all registers: "registers", "class token", or "class token and registers"."""
    others = [name for name in names if not name.startswith("register")]
    return " and ".join([*others, *(["registers"] if len(others) < len(names) else [])])


def mean_register_similarity(tokens: Tokens) -> Float[Tensor, "registers registers"]:
    """The cosine similarity between registers, the mean over images."""
    unit = torch.nn.functional.normalize(tokens.registers.float(), dim=-1)
    return (unit @ unit.transpose(1, 2)).mean(0)


def map_similarity(maps: Float[Tensor, "batch registers rows cols"]) -> Float[Tensor, "registers registers"]:
    """The correlation over tokens between the maps of two registers, the mean over images.

    A constant map has correlation 0 with every other map and 1 with itself.
    """
    flat = maps.flatten(2).double()
    unit = torch.nn.functional.normalize(flat - flat.mean(-1, keepdim=True), dim=-1, eps=1e-300)
    similarity = (unit @ unit.transpose(1, 2)).mean(0)
    similarity.fill_diagonal_(1.0)
    return similarity


def cluster_registers(
    similarity: Float[Tensor, "registers registers"], *, num_clusters: int | None = None
) -> Int64[Tensor, "registers"]:
    """The cluster of each register, numbered by first register: average linkage on 1 - similarity.

    Without `num_clusters` the number with the best mean silhouette is chosen; fewer than 3 registers are not grouped.
    """
    from scipy.cluster.hierarchy import cut_tree, linkage
    from scipy.spatial.distance import squareform
    from sklearn.metrics import silhouette_score

    count = len(similarity)
    if num_clusters is not None and not 1 <= num_clusters <= count:
        raise InputError(f"num_clusters={num_clusters} must lie between 1 and the {count} registers.")
    if count < 2 or (num_clusters is None and count < 3):
        return torch.arange(count)
    distance = (1 - (similarity + similarity.T) / 2).clamp_min(0).double().fill_diagonal_(0).cpu().numpy()
    tree = linkage(squareform(distance, checks=False), method="average")
    numbers = range(2, count) if num_clusters is None else [num_clusters]
    groupings = [_by_first_member(cut_tree(tree, number)[:, 0]) for number in numbers]
    if num_clusters is None:
        groupings.sort(key=lambda labels: -silhouette_score(distance, labels, metric="precomputed"))
    return torch.from_numpy(groupings[0])


def _by_first_member(labels: Int64[np.ndarray, "items"]) -> Int64[np.ndarray, "items"]:
    """The same clusters, numbered in the order of their first members."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]
