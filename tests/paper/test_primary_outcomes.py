"""Verdicts of the register study, from values alone."""

import json

import pytest

from mambar.paper.primary_outcomes import PRIMARY, compare, primary_files, verdicts


def values(difference, seeds=5):
    """Values of both networks: Vim has 2 + seed, Mamba-R `difference(outcome, seed)` more."""
    return {
        (row, outcome.column): {
            seed: 2.0 + seed + (difference(outcome, seed) if row == "Mamba-R" else 0.0) for seed in range(seeds)
        }
        for row in ("Vim", "Mamba-R")
        for outcome in PRIMARY
    }


def large(outcome, seed):
    return outcome.sign * (1.0 + 0.01 * seed)


def test_large_differences_support_or_contradict():
    assert set(verdicts(compare(values(large))).values()) == {"supported"}
    against = verdicts(compare(values(lambda outcome, seed: -large(outcome, seed))))
    assert set(against.values()) == {"contradicted"}


def test_noise_cannot_tell_and_opposite_outcomes_are_mixed():
    noise = (0.5, -0.4, 0.3, -0.6, 0.1)
    assert set(verdicts(compare(values(lambda outcome, seed: noise[seed]))).values()) == {"inconclusive"}
    found = verdicts(compare(values(lambda outcome, seed: large(outcome, seed) * (1, -1)["upper" in outcome.column])))
    assert found["H2"] == "mixed" and found["H1"] == "supported"


def test_fewer_seeds_are_incomplete():
    assert set(verdicts(compare(values(large, seeds=4))).values()) == {"incomplete"}


def test_an_undefined_pair_is_left_out_of_its_outcome_only():
    given = values(large)
    del given["Vim", "outliers on background, last layer, %"][3]
    found = {each.outcome.hypothesis: each for each in compare(given)}
    assert list(found["H4"].treated) == [0, 1, 2, 4] and found["H4"].difference.seeds == 4
    assert verdicts(compare(given))["H1"] == "supported"


def test_the_correction_counts_all_outcomes():
    noise = (0.5, -0.4, 0.3, -0.6, 0.1)
    found = compare(values(lambda outcome, seed: large(outcome, seed) if outcome.hypothesis == "H1" else noise[seed]))
    top1 = found[0]
    assert top1.corrected == pytest.approx(len(PRIMARY) * top1.difference.p_value)


def test_one_pair_has_a_difference_but_no_p_value():
    (row,) = (
        line for line in primary_files(values(large, seeds=1))["primary.md"].decode().splitlines() if "H1 |" in line
    )
    assert row == "| H1 | top-1, % | 2.00 | 3.00 | +1.00, one pair | – | – | 1 |"


def test_files_without_any_run():
    files = primary_files({})
    assert files["primary.md"].decode().count("*not run*") == len(PRIMARY)
    assert set(json.loads(files["primary.json"])["verdicts"].values()) == {"incomplete"}
