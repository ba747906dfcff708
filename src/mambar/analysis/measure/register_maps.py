"""What each register sees: its map over the image, how alike registers are, and groups of them."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mambar.analysis.measure.feature_maps import Metric, compare
from mambar.analysis.measure.norms import eval_mode, layer_indices
from mambar.errors import InputError
from mambar.models.protocol import TokenModel, TokenTensor


def register_maps(
    model: TokenModel,
    images: Float[Tensor, "batch channels height width"],
    layers: Sequence[int] | None = None,
    *,
    metric: Metric = "cosine",
    tensor: TokenTensor = "normed",
) -> Float[Tensor, "layers batch registers rows cols"]:
    """How near each image token is to each register, layer by layer (l2: small is near; cosine, dot: large)."""
    with eval_mode(model):
        maps = []
        for tokens in model.tokens(images, layer_indices(model, layers), tensor=tensor):
            near = [compare(tokens.patches, register, metric) for register in tokens.registers.unbind(1)]
            if not near:
                raise InputError("Register maps need a model with registers or a class token; this one has none.")
            maps.append(torch.stack(near, dim=1).unflatten(2, tokens.grid))
    return torch.stack(maps)


def register_similarity(
    model: TokenModel,
    images: Float[Tensor, "batch channels height width"],
    layers: Sequence[int] | None = None,
    *,
    tensor: TokenTensor = "normed",
) -> Float[Tensor, "layers registers registers"]:
    """The cosine between registers, the mean over images, layer by layer."""
    with eval_mode(model):
        found = []
        for tokens in model.tokens(images, layer_indices(model, layers), tensor=tensor):
            unit = torch.nn.functional.normalize(tokens.registers.float(), dim=-1)
            found.append((unit @ unit.transpose(1, 2)).mean(0))
    return torch.stack(found)


def map_similarity(
    maps: Float[Tensor, "batch registers rows cols"],
) -> Float[Tensor, "registers registers"]:
    """The correlation over tokens between the maps of two registers, the mean over images.

    1: both see the same places. A map without any variation correlates with nothing (0, and 1 with itself).
    """
    flat = maps.flatten(2).double()
    unit = torch.nn.functional.normalize(flat - flat.mean(-1, keepdim=True), dim=-1, eps=1e-300)
    similarity = (unit @ unit.transpose(1, 2)).mean(0)
    similarity.fill_diagonal_(1.0)
    return similarity


def nearest_register(
    maps: Float[Tensor, "batch registers rows cols"], *, metric: Metric = "cosine"
) -> Int64[Tensor, "batch rows cols"]:
    """For each token the number of the register that is nearest to it."""
    return maps.argmin(1) if metric == "l2" else maps.argmax(1)


def cluster_registers(
    similarity: Float[Tensor, "registers registers"], *, num_clusters: int | None = None
) -> Int64[Tensor, "registers"]:
    """Groups of registers that see the same places: the group of each register, numbered in register order.

    Average linkage on 1 - similarity. Without `num_clusters` the number with the best mean silhouette is taken; fewer
    than 3 registers stay apart.
    """
    count = len(similarity)
    if num_clusters is not None and not 1 <= num_clusters <= count:
        raise InputError(f"num_clusters={num_clusters} must lie between 1 and the {count} registers.")
    distance = (1 - (similarity + similarity.T) / 2).clamp_min(0).double().cpu()
    groupings = _average_linkage(distance)
    if num_clusters is not None:
        return groupings[num_clusters]
    if count < 3:
        return groupings[count]
    return max((groupings[number] for number in range(2, count)), key=lambda labels: silhouette(distance, labels))


def _average_linkage(distance: Float[Tensor, "items items"]) -> dict[int, Int64[Tensor, "items"]]:
    """The grouping into each number of groups: the two nearest groups, by the mean of all pairs, join one by one."""
    groups = [[item] for item in range(len(distance))]
    found = {}
    while groups:
        labels = torch.zeros(len(distance), dtype=torch.int64)
        for number, members in enumerate(groups):
            labels[members] = number
        found[len(groups)] = labels
        if len(groups) == 1:
            break
        pairs = [(a, b) for b in range(len(groups)) for a in range(b)]
        near = [float(distance[groups[a]][:, groups[b]].mean()) for a, b in pairs]
        a, b = pairs[near.index(min(near))]
        # The joined group keeps the place of the earlier one, so groups stay in the order of their first register.
        groups[a] = sorted(groups[a] + groups.pop(b))
    return found


def silhouette(distance: Float[Tensor, "items items"], labels: Int64[Tensor, "items"]) -> float:
    """The mean silhouette (-1 to 1) of a grouping; an item that is alone in its group counts 0."""
    total = 0.0
    for item, own in enumerate(labels.tolist()):
        means = {group: distance[item, labels == group] for group in labels.unique().tolist()}
        inside = means.pop(own)
        if len(inside) > 1 and means:
            within = float(inside.sum()) / (len(inside) - 1)
            nearest = min(float(others.mean()) for others in means.values())
            total += (nearest - within) / max(nearest, within, 1e-300)
    return total / len(labels)
