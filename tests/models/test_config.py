"""Sizes, checked when made, and the published table."""

import pytest

import golden_cases
import mambar
from mambar.errors import InputError
from mambar.hub.convert import _names
from mambar.models import VARIANTS, VisionMambaConfig, complexity, variant

PUBLISHED = golden_cases.manifest()["models"]


def ours(name):
    return name.split("_bimambav2")[0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    sizes, config = PUBLISHED[name]["config"], variant(ours(name))
    assert (config.embed_dim, config.depth, config.d_inner, config.effective_dt_rank) == tuple(
        sizes[key] for key in ("embed_dim", "depth", "d_inner", "dt_rank")
    )
    assert (config.num_registers, config.register_reduction) == (sizes["num_registers"], sizes["reduce"])
    assert complexity(config).parameters == PUBLISHED[name]["num_parameters"]
    for size, count in PUBLISHED[name]["num_parameters_by_input_size"].items():
        assert complexity(config.replace(img_size=int(size))).parameters == count


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_names(name):
    listed = {key for key, _, _ in PUBLISHED[name]["state_dict"]}
    found = set(_names(variant(ours(name))).values())
    # Vim keeps the class token's position inside its one table.
    assert found - {"pos_embed_cls"} == listed - {"pos_embed_cls"}


def test_all_variants_are_in_the_manifest():
    assert {ours(name) for name in PUBLISHED} == set(VARIANTS)


def test_round_trip_and_replace():
    config = variant("mambar_base_patch16_224").replace(img_size=(224, 384), head="avg")
    assert VisionMambaConfig.from_dict(config.to_dict()) == config
    assert config.grid == (14, 24)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embed_dim": 0}, "embed_dim=0 must be a whole number of at least 1"),
        pytest.param({"depth": 2.5}, "depth=2.5 must be a whole number", marks=pytest.mark.wrong_shapes),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0 must be at least 0 and below 1"),
        ({"placement": "even"}, "choose one of evenly"),
        ({"head": "cls"}, "choose one of registers"),
        ({"img_size": 8}, "img_size=8 holds no patch of 16 pixels"),
        ({"register_reduction": 5}, "register_reduction=5 must divide embed_dim=192"),
    ],
)
def test_bad_values(fields, message):
    with pytest.raises(InputError, match=message):
        VisionMambaConfig(**fields)


def test_nearest_names():
    with pytest.raises(InputError, match="did you mean 'num_registers'"):
        VisionMambaConfig().replace(num_register=3)
    with pytest.raises(InputError, match="did you mean 'mambar_tiny_patch16_224'"):
        variant("mambar_tiny_patch16")


def test_but_is_the_deprecated_name_of_replace():
    config = VisionMambaConfig()
    with pytest.warns(DeprecationWarning, match=r"but\(\) is now replace\(\)"):
        assert config.but(depth=2) == config.replace(depth=2)


def test_a_deprecated_field_warns_at_the_line_of_the_caller():
    """Python shows warnings of this kind for the user's own code only."""
    for make in (
        lambda: VisionMambaConfig(dim=64),
        lambda: VisionMambaConfig().replace(dim=64),
        lambda: mambar.create_model("mambar_tiny_patch16_224", dim=64, depth=1).config,
    ):
        with pytest.warns(DeprecationWarning, match="dim= is now embed_dim=") as caught:
            assert make().embed_dim == 64
        assert [warning.filename for warning in caught] == [__file__]
