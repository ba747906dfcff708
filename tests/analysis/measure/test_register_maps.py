import pytest
import torch

from mambar.analysis.measure.register_maps import (
    cluster_registers,
    map_similarity,
    register_maps,
    register_names,
    register_similarity,
    registers_label,
)
from mambar.errors import InputError
from mambar.models.timm_vit import create_timm_vit


def test_maps_of_known_tokens(fake_model):
    images = torch.ones(2, 3, 4, 6)
    maps = register_maps(fake_model, images, [0, 2], metric="l2", tensor="residual")
    assert maps.shape == (2, 2, 2, 2, 3)
    # Layer 0: patch (3, 4, 0, 0) against registers (0, 0, 1, 0) and (0, 0, 2, 0).
    assert torch.allclose(maps[0, :, 0], torch.tensor(26.0).sqrt())
    assert torch.allclose(maps[0, :, 1], torch.tensor(29.0).sqrt())
    assert torch.allclose(register_similarity(fake_model, images, [0]), torch.ones(1, 2, 2))


def test_model_without_registers_is_refused(fake_model):
    fake_model.num_registers = 0
    with pytest.raises(InputError, match="none"):
        register_maps(fake_model, torch.ones(1, 3, 4, 4))


def maps():
    left, top = torch.zeros(4, 4), torch.zeros(4, 4)
    left[:, :2], top[:2] = 1.0, 1.0
    return torch.stack([left, top, 2 * left + 3, -top, torch.ones(4, 4)])[None]


def test_similarity_is_the_correlation_of_maps():
    expected = torch.eye(5, dtype=torch.float64)
    expected[0, 2] = expected[2, 0] = 1
    expected[1, 3] = expected[3, 1] = -1
    assert torch.allclose(map_similarity(maps()), expected, atol=1e-9)


def test_clusters_hold_registers_that_see_the_same():
    similarity = torch.tensor([[1.0, 0.9, 0.1, 0.0], [0.9, 1, 0, 0.1], [0.1, 0, 1, 0.8], [0, 0.1, 0.8, 1]])
    assert cluster_registers(similarity).tolist() == [0, 0, 1, 1]
    assert cluster_registers(similarity, num_clusters=2).tolist() == [0, 0, 1, 1]
    assert cluster_registers(similarity, num_clusters=1).tolist() == [0, 0, 0, 0]
    assert cluster_registers(similarity[:2, :2]).tolist() == [0, 1]
    with pytest.raises(InputError, match="between 1 and the 4"):
        cluster_registers(similarity, num_clusters=5)


def test_clusters_equal_those_of_scikit_learn_and_the_best_silhouette_is_chosen():
    from sklearn.cluster import AgglomerativeClustering
    from sklearn.metrics import adjusted_rand_score, silhouette_score

    points = torch.rand(12, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    distance = torch.cdist(points, points) / 2
    silhouettes = {}
    for number in range(2, 12):
        method = AgglomerativeClustering(n_clusters=number, metric="precomputed", linkage="average")
        expected = method.fit_predict(distance.numpy())
        found = cluster_registers(1 - distance, num_clusters=number)
        assert adjusted_rand_score(expected, found.numpy()) == 1.0
        silhouettes[number] = silhouette_score(distance.numpy(), found.numpy(), metric="precomputed")
        expected_silhouette = silhouette_score(distance.numpy(), expected, metric="precomputed")
        assert silhouettes[number] == pytest.approx(expected_silhouette)
    best = max(silhouettes, key=lambda number: silhouettes[number])
    assert torch.equal(cluster_registers(1 - distance), cluster_registers(1 - distance, num_clusters=best))


def test_the_class_token_of_a_vit_is_not_called_a_register(fake_model):
    vit = create_timm_vit("vit_tiny_patch16_224", pretrained=False, depth=1, embed_dim=16, num_heads=1, reg_tokens=2)
    names = register_names(vit, 3)
    assert names == ("class token", "register 0", "register 1")
    assert registers_label(names) == "class token and registers" and registers_label(names[:1]) == "class token"
    assert registers_label(register_names(fake_model, 2)) == "registers"
