"""What each register sees: its map over the image, how alike registers are, and groups of them."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mambar.analysis.feature_maps import Metric, compare
from mambar.analysis.norms import layer_indices, looking
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
    with looking(model):
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
    with looking(model):
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

    Average linkage on 1 - similarity. Without `num_clusters` the number with the best mean silhouette is taken.
    """
    from sklearn.cluster import AgglomerativeClustering
    from sklearn.metrics import silhouette_score

    count = len(similarity)
    if num_clusters is not None and not 1 <= num_clusters <= count:
        raise InputError(f"num_clusters={num_clusters} must lie between 1 and the {count} registers.")
    distance = (1 - (similarity + similarity.T) / 2).clamp_min(0).cpu().numpy()

    def groups(number: int) -> list[int]:
        method = AgglomerativeClustering(n_clusters=number, metric="precomputed", linkage="average")
        return _in_order_of_first(method.fit_predict(distance).tolist())

    if count < 3 or num_clusters == 1:
        return torch.tensor([0] * count if num_clusters == 1 else range(count))
    if num_clusters is not None:
        return torch.tensor(groups(num_clusters))
    candidates = [groups(number) for number in range(2, count)]
    scores = [silhouette_score(distance, labels, metric="precomputed") for labels in candidates]
    return torch.tensor(candidates[max(range(len(scores)), key=lambda place: scores[place])])


def _in_order_of_first(labels: Sequence[int]) -> list[int]:
    order = {label: place for place, label in enumerate(dict.fromkeys(labels))}
    return [order[label] for label in labels]
