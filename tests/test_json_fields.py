from dataclasses import dataclass

import pytest

from mambar.errors import InputError
from mambar.json_fields import from_json_fields, to_json_fields


@dataclass(frozen=True, kw_only=True)
class Sizes:
    side: int = 1
    layers: tuple[int, ...] | None = None


def test_tuples_become_lists_and_are_restored():
    sizes = Sizes(layers=(1, 2))
    assert to_json_fields(sizes) == {"side": 1, "layers": [1, 2]}
    assert from_json_fields(Sizes, to_json_fields(sizes), what="sizes") == sizes


def test_an_unknown_field_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match="sizes has no field 'layer'; did you mean 'layers'"):
        from_json_fields(Sizes, {"layer": [1]}, what="sizes")
    with pytest.raises(InputError, match="it has side, layers"):
        from_json_fields(Sizes, {"zzz": 1}, what="sizes")
