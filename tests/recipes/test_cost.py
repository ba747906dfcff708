import pytest

from mambar.errors import InputError
from mambar.recipes.cost import cost, stage_costs, training_images
from mambar.recipes.index import get_recipe


def test_base_is_about_230_epochs_at_224():
    """REFERENCE §5 derives the same."""
    found = cost(get_recipe("mambar_base"))
    assert found.epochs_at_224 == pytest.approx(230, abs=2)
    assert found.steps == 400 * (1_281_167 // 256 * 256 // 1024) + 20 * (1_281_167 // 512)
    assert found.hours is None and "need images/s" in found.line()


def test_hours_follow_the_speed_and_the_sequence_length():
    slow = cost(get_recipe("mambar_base"), images_per_second=1000.0)
    fast = cost(get_recipe("mambar_base"), images_per_second=2000.0)
    assert slow.hours == pytest.approx(2 * fast.hours)
    assert "hours" in slow.line()


def test_data_of_unknown_size_needs_a_number():
    with pytest.raises(InputError, match="data=images"):
        cost(get_recipe("folder"))
    assert cost(get_recipe("folder"), num_images=320).steps == 500


def test_stage_costs_sum_to_the_cost_and_data_options_are_used():
    parts = stage_costs(get_recipe("mambar_base"), images_per_second=1000.0)
    whole = cost(get_recipe("mambar_base"), images_per_second=1000.0)
    assert len(parts) == 3 and sum(part.steps for part in parts) == whole.steps
    assert sum(part.hours for part in parts) == pytest.approx(whole.hours)
    # An image of stage two has 208 tokens, one of stage one 76.
    assert parts[1].hours / parts[0].hours == pytest.approx(parts[1].images / parts[0].images * 208 / 76)
    assert training_images(get_recipe("digits").replace(**{"data_options.limit": 100})) == 100
    assert training_images(get_recipe("shapes").replace(**{"data_options.num_images": 640})) == 640
    assert training_images(get_recipe("folder")) is None
