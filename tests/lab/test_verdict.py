"""The comparer as a program that can be wrong: rates, symmetry, power, directions, Holm."""

import math

import numpy as np
import pytest
from scipy.stats import ttest_rel

from etude.core import EtudeError
from etude.lab import judge
from etude.lab.verdict import judge_all, power


def test_interval_is_students_t_on_the_differences():
    generator = np.random.default_rng(0)
    ours, baseline = generator.normal(1, 1, 7), generator.normal(0, 1, 7)
    verdict = judge(ours, baseline)
    oracle = ttest_rel(ours, baseline).confidence_interval(0.95)
    assert verdict.low == pytest.approx(oracle.low)
    assert verdict.high == pytest.approx(oracle.high)
    assert verdict.difference == pytest.approx((ours - baseline).mean())


def test_overlap_widens_by_nadeau_bengio():
    ours, baseline = [0.9, 0.92, 0.91, 0.95], [0.9, 0.9, 0.9, 0.91]
    plain, wide = judge(ours, baseline), judge(ours, baseline, overlap=1 / 3)
    ratio = (wide.high - wide.low) / (plain.high - plain.low)
    assert ratio == pytest.approx(math.sqrt((1 / 4 + 1 / 3) / (1 / 4)))


def test_a_against_its_equal_is_called_different_at_most_at_the_nominal_rate():
    generator = np.random.default_rng(1)
    called = 0
    for _ in range(1000):
        common = generator.normal(0, 1, 5)  # a seed is hard or easy for both arms
        ours, baseline = (common + generator.normal(0, 0.3, 5) for _ in range(2))
        called += judge(ours, baseline).label != "undecided"
    assert 0.03 <= called / 1000 <= 0.06 + 0.005  # 5 %, within the noise of 1,000 trials


def test_swapping_the_arms_flips_every_sign():
    generator = np.random.default_rng(2)
    flipped = {"better": "worse", "worse": "better", "tie": "tie", "undecided": "undecided"}
    seen = set()
    for margin in (0.0, 0.3, 2.0):
        for shift in (-2, 0, 2):
            ours, baseline = generator.normal(shift, 0.3, 5), generator.normal(0, 0.3, 5)
            one, other = judge(ours, baseline, margin=margin), judge(baseline, ours, margin=margin)
            assert other.label == flipped[one.label]
            assert other.difference == -one.difference
            assert (other.low, other.high) == (-one.high, -one.low)
            assert other.p_superior == pytest.approx(1 - one.p_superior)
            seen.add(one.label)
    assert {"better", "worse", "tie"} <= seen


@pytest.mark.parametrize(("effect", "sd", "n"), [(0.5, 0.4, 5), (0.3, 0.4, 10), (1.0, 0.6, 4)])
def test_a_planted_gain_is_found_with_the_predicted_power(effect, sd, n):
    generator = np.random.default_rng(3)
    trials = 1000
    differences = generator.normal(effect, sd, (trials, n))
    found = np.mean([judge(row, np.zeros(n)).label == "better" for row in differences])
    assert found == pytest.approx(power(effect, sd, n), abs=0.05)


def test_seeds_needed_would_decide_eight_times_in_ten():
    differences = np.array([0.5, -0.2, 0.3, 0.4, 0.1])
    verdict = judge(differences, np.zeros(5))
    assert verdict.label == "undecided"
    needed, sd = verdict.seeds_needed, differences.std(ddof=1)
    assert power(differences.mean(), sd, needed) >= 0.8 > power(differences.mean(), sd, needed - 1)


def test_lower_is_better_works_like_higher_is_better():
    generator = np.random.default_rng(4)
    for shift in (-1, -0.2, 0, 0.2, 1):
        ours, baseline = generator.normal(shift, 0.3, 6), generator.normal(0, 0.3, 6)
        lower = judge(ours, baseline, better="lower", margin=0.1)
        mirror = judge(-ours, -baseline, better="higher", margin=0.1)
        assert (lower.label, lower.p_superior) == (mirror.label, mirror.p_superior)
        assert lower.difference == -mirror.difference
        assert lower.seeds_needed == mirror.seeds_needed


def test_regions():
    zeros = np.zeros(5)
    assert judge(zeros + 1, zeros, margin=0.5).label == "better"
    assert judge(zeros + 0.4, zeros, margin=0.5).label == "tie"
    assert judge(zeros - 1, zeros, margin=0.5).label == "worse"
    assert judge(zeros, zeros).label == "tie"
    assert judge([0.1], [0.0]).label == "undecided"
    assert judge([0.1], [0.0]).seeds_needed is None


def test_holm_matches_the_step_down_of_p_values():
    generator = np.random.default_rng(5)
    for _ in range(50):
        pairs = {
            f"m{i}": (generator.normal(shift, 0.5, 5), np.zeros(5))
            for i, shift in enumerate(generator.uniform(0, 1.5, 4))
        }
        p = {name: ttest_rel(*values).pvalue for name, values in pairs.items()}
        rejected, order = set(), sorted(p, key=p.get)
        for k, name in enumerate(order):
            if p[name] > 0.05 / (4 - k):
                break
            rejected.add(name)
        verdicts = judge_all(pairs)
        assert {n for n, v in verdicts.items() if v.label != "undecided"} == rejected
        assert list(verdicts) == list(pairs)


def test_holm_errs_together_at_the_nominal_rate():
    generator = np.random.default_rng(6)
    wrong = 0
    for _ in range(300):
        pairs = {f"m{i}": (generator.normal(0, 1, 5), np.zeros(5)) for i in range(5)}
        wrong += any(v.label != "undecided" for v in judge_all(pairs).values())
    assert wrong / 300 <= 0.05 + 0.03


@pytest.mark.parametrize(
    ("ours", "baseline", "options", "message"),
    [
        ([1, 2], [1], {}, "baseline must be 2 values paired"),
        ([], [], {}, "ours must be a non-empty"),
        ([math.nan], [1], {}, "ours must be finite"),
        ([1], [math.inf], {}, "baseline must be finite"),
        ([1], [1], {"better": "more"}, "better must be"),
        ([1], [1], {"margin": -1}, "margin must be"),
        ([1], [1], {"overlap": -1}, "overlap must be"),
        ([1], [1], {"level": 1}, "level must be"),
    ],
)
def test_refusals(ours, baseline, options, message):
    with pytest.raises(EtudeError, match=message):
        judge(ours, baseline, **options)
