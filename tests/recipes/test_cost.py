import pytest

from mambar.errors import InputError
from mambar.recipes.cost import cost
from mambar.recipes.index import recipe


def test_base_is_about_230_epochs_at_224():
    """REFERENCE §5 derives the same."""
    found = cost(recipe("mambar_base"))
    assert found.epochs_at_224 == pytest.approx(230, abs=2)
    assert found.steps == 400 * (1_281_167 // 256 * 256 // 1024) + 20 * (1_281_167 // 512)
    assert found.hours is None and "give images a second" in found.line()


def test_hours_follow_the_speed_and_the_sequence_length():
    slow = cost(recipe("mambar_base"), images_per_second=1000.0)
    fast = cost(recipe("mambar_base"), images_per_second=2000.0)
    assert slow.hours == pytest.approx(2 * fast.hours)
    assert "hours" in slow.line()


def test_data_of_unknown_size_needs_a_number():
    with pytest.raises(InputError, match="data=images"):
        cost(recipe("folder"))
    assert cost(recipe("folder"), num_images=320).steps == 500
