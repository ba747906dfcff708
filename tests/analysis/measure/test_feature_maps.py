import pytest
import torch

from mambar.analysis.measure.feature_maps import compare, feature_maps, global_vector, reduced_tokens
from mambar.errors import InputError
from mambar.models import VisionMamba, VisionMambaConfig
from mambar.nn import Tokens
from op_inputs import without_shape_hook

PATCHES = torch.tensor([[[3.0, 4.0], [0.0, 2.0]]])
REGISTERS = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]]])
TOKENS = Tokens(patches=PATCHES, registers=REGISTERS, grid=(1, 2))


def test_metrics_by_hand():
    vector = torch.tensor([[0.0, 2.0]])
    assert compare(PATCHES, vector, "l2").tolist() == [[pytest.approx(13**0.5), 0.0]]
    assert compare(PATCHES, vector, "cosine").tolist() == [[pytest.approx(0.8), 1.0]]
    assert compare(PATCHES, vector, "dot").tolist() == [[8.0, 4.0]]


@pytest.mark.parametrize(
    ("name", "vector"),
    [("register_mean", [1.0, 1.0]), ("token", [1.0, 0.0]), ("avg", [1.5, 3.0]), ("register:2", [2.0, 2.0])],
)
def test_global_vectors(name, vector):
    assert global_vector(TOKENS, name).tolist() == [vector]


@pytest.mark.parametrize("name", ["register:3", "register:-1", "register:", "nothing"])
def test_unknown_vector_is_refused(name):
    with pytest.raises(InputError, match="register:0 to register:2"):
        global_vector(TOKENS, name)


def test_model_without_registers_offers_patches():
    bare = Tokens(patches=PATCHES, registers=REGISTERS[:, :0], grid=(1, 2))
    assert global_vector(bare, "avg").shape == (1, 2)
    with pytest.raises(InputError, match="Choose 'avg'"):
        global_vector(bare, "token")


@without_shape_hook
def test_unknown_metric_is_refused():
    with pytest.raises(InputError, match="metric='l1'"):
        compare(PATCHES, REGISTERS[:, 0], "l1")


def test_maps_of_known_tokens(fake_model):
    images = torch.ones(2, 3, 4, 6)
    maps = feature_maps(fake_model, images, [0, 2], vector="token", metric="l2", tensor="residual")
    assert maps.shape == (2, 2, 2, 3)
    # Layer 0: patch (3, 4, 0, 0), register (0, 0, 1, 0); layer 2 is three times as large.
    assert torch.allclose(maps[0], torch.tensor(26.0).sqrt()) and torch.allclose(maps[1], 3 * maps[0])


def test_head_vector_goes_through_the_reduce_layer():
    config = VisionMambaConfig(
        img_size=16, patch_size=8, embed_dim=8, depth=2, num_registers=2, register_reduction=2, num_classes=3
    )
    model = VisionMamba(config).eval()
    images = torch.rand(1, 3, 16, 16)
    tokens = model.tokens(images, [-1], tensor="normed")[0]
    reduce = model.head.read_out.reduce
    expected = (reduce(tokens.patches) - reduce(tokens.registers).mean(1, keepdim=True)).norm(dim=-1)
    assert torch.allclose(
        feature_maps(model, images, [-1], vector="head", metric="l2")[0].flatten(1), expected, atol=1e-6
    )


def test_head_vector_needs_a_register_head(fake_model):
    with pytest.raises(InputError, match="register head"):
        reduced_tokens(fake_model, TOKENS)


def test_old_names_of_vectors_are_accepted_with_a_warning(fake_model):
    images = torch.ones(1, 3, 4, 4)
    with pytest.warns(DeprecationWarning, match="vector='first' is now vector='token'"):
        old = feature_maps(fake_model, images, vector="first")
    assert torch.equal(old, feature_maps(fake_model, images, vector="token"))
