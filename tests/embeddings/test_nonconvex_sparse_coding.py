"""Thresholds, penalties and the coder against grids, loops, limits and the released code.

Released code: rentzi/sparseRegularizers at 5ab4607, generativeModels.py. The class Thresholding
with step 0.1 at X below, lam = 0.4 (for soft, hard and half its threshold lam * step); then
SparseModel and runModelSim: 40 patches numpy default_rng(0).normal(size=(40, 6)) in two batches of
20, first dictionary default_rng(1).normal(size=(6, 9)), lam 0.4, steps 0.1 and 0.02 held constant
(and the methods whose names are spelled with a Greek letter made known under the Latin one): the
first row of the dictionary, the sum of all its entries, the share of active units, the mean
squared error of each batch before its dictionary step. Ours were equal to 1e-14.
"""

import math

import numpy as np
import pytest

from etude.core import EtudeError
from etude.embeddings import (
    SparseCoder,
    cel0_penalty,
    cel0_threshold,
    half_threshold,
    hard_threshold,
    soft_threshold,
    whiten_patches,
)

X = np.array([-1.3, -0.6, -0.25, -0.05, 0.0, 0.1, 0.3, 0.5, 0.9, 2.0])
RELEASED = {
    cel0_threshold: [
        -1.3, -0.567285867666676, -0.17839697877778712, 0.0, 0.0, 0.011730312111120463,
        0.23395253433334268, 0.4561747565555649, 0.9, 2.0,
    ],
    half_threshold: [
        -1.291199581777152, -0.5869472972949881, -0.22910800727052932, 0.0, 0.0, 0.0,
        0.2811401351899508, 0.4856504560234489, 0.8893964250552074, 1.9929163766309097,
    ],
    hard_threshold: [-1.3, -0.6, -0.25, 0.0, 0.0, 0.0, 0.3, 0.5, 0.9, 2.0],
    soft_threshold: [-1.26, -0.56, -0.21, -0.01, 0.0, 0.06, 0.26, 0.46, 0.86, 1.96],
}  # fmt: skip
RELEASED_RUNS = {
    "cel0": (
        [0.22824003946899007, 0.3318326206620691, 0.40751657560602084], -0.5653200408127412,
        0.2111111111111111, [0.3568680390917091, 0.3681725446519863],
    ),
    "soft": (
        [0.2652318117516048, 0.34478246670086654, 0.4408471678078117], -0.5132701871632337,
        0.5027777777777778, [0.3246276767845483, 0.3384079872491547],
    ),
}  # fmt: skip
PENALTIES = {  # what (3) to (6) say each rule belongs to, at lam = 1
    "soft": np.abs,
    "hard": lambda u: 0.5 * (u != 0),
    "half": lambda u: 0.5 * np.sqrt(np.abs(u)),
    "cel0": lambda u: cel0_penalty(u, 1.0),
}
RULES = {
    "soft": soft_threshold, "hard": hard_threshold, "half": half_threshold, "cel0": cel0_threshold,
}  # fmt: skip


@pytest.mark.parametrize("rule", RELEASED, ids=lambda rule: rule.__name__)
def test_same_as_the_released_thresholds(rule):
    np.testing.assert_allclose(rule(X, 0.4, 0.1), RELEASED[rule], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("penalty", RELEASED_RUNS)
def test_same_as_a_released_run(penalty):
    first, total, active, errors = RELEASED_RUNS[penalty]
    y = np.random.default_rng(0).normal(size=(40, 6))
    coder = SparseCoder(n_units=9, penalty=penalty, weight=0.4, step=0.1, lr=0.02)
    start = np.random.default_rng(1).normal(size=(6, 9))
    coder.dictionary_ = start / np.linalg.norm(start, axis=0)
    codes, found = [], []
    for batch in (y[:20], y[20:]):
        before = coder.dictionary_
        codes.append(coder.partial_fit(batch))
        found.append(((batch - codes[-1] @ before.T) ** 2).mean())
    np.testing.assert_allclose(found, errors, rtol=1e-12)
    assert (np.concatenate(codes) != 0).mean() == pytest.approx(active)
    # the release leaves the last dictionary as the step made it; its columns here have length 1
    raw = before + 0.02 * (batch - codes[-1] @ before.T).T @ codes[-1]
    np.testing.assert_allclose(raw[0, :3], first, rtol=1e-12)
    assert raw.sum() == pytest.approx(total, rel=1e-12)
    np.testing.assert_allclose(coder.dictionary_, raw / np.linalg.norm(raw, axis=0))


@pytest.mark.parametrize("step", [0.05, 0.4])
@pytest.mark.parametrize("name", ["soft", "hard", "half", "cel0"])
def test_each_rule_minimizes_its_own_penalty_on_a_grid(name, step):
    grid = np.linspace(-3, 3, 60_001)
    for x in np.random.default_rng(2).uniform(-2.5, 2.5, size=40):
        ours = RULES[name](np.array([x]), 1.0, step)[0]
        cost = 0.5 * (grid - x) ** 2 + step * PENALTIES[name](grid)
        mine = 0.5 * (ours - x) ** 2 + step * PENALTIES[name](np.array([ours]))[0]
        assert mine <= cost.min() + 1e-12


@pytest.mark.parametrize(("norm", "step"), [(0.5, 0.3), (1.5, 0.3), (2.0, 0.25), (2.0, 0.6)])
def test_cel0_for_any_column_on_a_grid(norm, step):
    grid = np.linspace(-4, 4, 80_001)
    for x in np.random.default_rng(3).uniform(-3.5, 3.5, size=30):
        ours = cel0_threshold(np.array([x]), 0.7, step, norm=norm)
        cost = 0.5 * (grid - x) ** 2 + step * cel0_penalty(grid, 0.7, norm=norm)
        mine = 0.5 * (ours - x) ** 2 + step * cel0_penalty(ours, 0.7, norm=norm)
        assert mine[0] <= cost.min() + 1e-12


def test_cel0_is_zero_below_and_the_identity_above():
    lam, step = 0.3, 0.2
    edge = math.sqrt(2 * lam)
    small, large = np.linspace(-edge, edge, 9) * step, np.array([-3 * edge, edge, 1.5 * edge])
    assert (np.abs(cel0_threshold(small, lam, step)) < 1e-15).all()
    np.testing.assert_allclose(cel0_threshold(large, lam, step), large, rtol=1e-12)


def test_cel0_lies_below_counting_and_touches_it_at_zero_and_far_out():
    u = np.linspace(-3, 3, 601)
    for lam, norm in ((0.3, 1.0), (1.0, 0.8)):
        count, ours = lam * (u != 0), cel0_penalty(u, lam, norm=norm)
        assert (ours <= count + 1e-12).all()
        far = (np.abs(u) >= math.sqrt(2 * lam) / norm) | (u == 0)
        np.testing.assert_allclose(ours[far], count[far], atol=1e-12)
        assert (ours[~far] < count[~far]).all()


def test_without_weight_every_rule_is_the_identity():
    for rule in RULES.values():
        np.testing.assert_allclose(rule(X, 0.0, 0.1), X, rtol=1e-12)


def problem(seed=0, n=30, size=8, units=16):
    rng = np.random.default_rng(seed)
    d = rng.normal(size=(size, units))
    return rng.normal(size=(n, size)), d / np.linalg.norm(d, axis=0)


@pytest.mark.parametrize("name", ["soft", "hard", "half", "cel0"])
def test_the_objective_never_rises(name):
    y, d = problem()
    step, lam = 0.9 / np.linalg.norm(d, 2) ** 2, 0.3
    coder = SparseCoder(n_units=16, penalty=name, weight=lam, step=step)
    coder.dictionary_ = d
    scale = {"soft": lam, "hard": lam, "half": lam, "cel0": 1.0}[name]
    of = (lambda u: cel0_penalty(u, lam)) if name == "cel0" else PENALTIES[name]
    codes, costs = np.zeros((30, 16)), []
    for _ in range(60):
        codes = coder._round(codes, y)
        costs.append(0.5 * ((y - codes @ d.T) ** 2).sum() + scale * of(codes).sum())
    assert (np.diff(costs) <= 1e-9).all()
    assert costs[-1] < costs[0] - 0.01


def test_at_rest_cel0_has_the_penalty_of_counting():
    y, d = problem(4)
    coder = SparseCoder(n_units=16, weight=0.2, step=0.1, tolerance=1e-7, max_rounds=50_000)
    coder.dictionary_ = d
    codes = coder.transform(y)
    assert 0.02 < (codes != 0).mean() < 0.6
    assert cel0_penalty(codes, 0.2).sum() == pytest.approx(0.2 * (codes != 0).sum(), rel=1e-6)


def test_soft_codes_are_those_of_an_independent_lasso():
    from sklearn.linear_model import Lasso

    y, d = problem(1)
    coder = SparseCoder(
        n_units=16, penalty="soft", weight=0.4, step=0.15, tolerance=1e-8, max_rounds=50_000
    )
    coder.dictionary_ = d
    lasso = Lasso(alpha=0.4 / 8, fit_intercept=False, tol=1e-12, max_iter=100_000)
    want = np.stack([lasso.fit(d, patch).coef_ for patch in y])
    np.testing.assert_allclose(coder.transform(y), want, atol=1e-5)


def test_rounds_end_where_every_code_stays_zero(monkeypatch):
    y, d = problem()
    rounds = []
    one = SparseCoder._round
    monkeypatch.setattr(SparseCoder, "_round", lambda *a: rounds.append(1) or one(*a))
    coder = SparseCoder(n_units=16, weight=1e6, max_rounds=50)
    coder.dictionary_ = d
    assert not coder.partial_fit(y).any()
    assert len(rounds) == 2  # and the one before the dictionary's step
    assert not coder.transform(y).any()
    assert len(rounds) == 3


def test_a_code_does_not_depend_on_its_company():
    y, d = problem(2)
    coder = SparseCoder(n_units=16, weight=0.1)
    coder.dictionary_ = d
    together = coder.transform(y)
    np.testing.assert_allclose(together[7:8], coder.transform(y[7:8]), rtol=1e-9)


def test_it_learns_the_dictionary_that_made_the_patches():
    rng = np.random.default_rng(5)
    true = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    codes = rng.choice([-1.0, 1.0], size=(600, 8)) * rng.uniform(1, 2, size=(600, 8))
    y = (codes * (rng.random((600, 8)) < 0.2)) @ true.T
    coder = SparseCoder(
        n_units=8, weight=0.1, step=0.2, lr=0.05, n_steps=60, batch_size=50, seed=1
    ).fit(y)
    alike = np.abs(true.T @ coder.dictionary_).max(axis=1)
    assert (alike > 0.98).mean() >= 0.75
    np.testing.assert_allclose(np.linalg.norm(coder.dictionary_, axis=0), 1.0)
    again = SparseCoder(
        n_units=8, weight=0.1, step=0.2, lr=0.05, n_steps=60, batch_size=50, seed=1
    ).fit(y)
    np.testing.assert_array_equal(coder.dictionary_, again.dictionary_)
    error = ((y - coder.reconstruct(coder.transform(y))) ** 2).sum() / (y**2).sum()
    assert error < 0.05


def test_every_patch_is_seen_once_before_any_twice_in_an_order_of_its_own(monkeypatch):
    y, _ = problem()
    seen = []
    monkeypatch.setattr(SparseCoder, "partial_fit", lambda self, batch: seen.append(batch))
    SparseCoder(n_units=16, n_steps=6, batch_size=10, seed=3).fit(y)
    places = [int(np.flatnonzero((y == row).all(axis=1))[0]) for row in np.concatenate(seen)]
    first, second = places[:30], places[30:]
    assert sorted(first) == sorted(second) == list(range(30))
    assert first != second
    assert first != list(range(30))


def test_single_precision_is_kept():
    y, _ = problem(3)
    coder = SparseCoder(n_units=16, weight=0.1, n_steps=2, batch_size=10).fit(y.astype("float32"))
    assert coder.dictionary_.dtype == coder.transform(y.astype("float32")).dtype == np.float32


def test_whitening_flattens_the_spectrum_that_falls_with_frequency():
    rng = np.random.default_rng(0)
    f = np.hypot(np.fft.fftfreq(64)[:, None] * 64, np.fft.fftfreq(64) * 64)
    f[0, 0] = 1
    images = np.fft.ifft2(np.fft.fft2(rng.normal(size=(2, 64, 64))) / f).real
    patches = whiten_patches(images, 4_000, size=2, seed=1)
    assert np.abs(patches.mean(axis=1)).max() < 1e-6
    whole = whiten_patches(images, 2, size=64, seed=1).astype(np.float64).reshape(-1, 64, 64)
    assert whole.var() == pytest.approx(0.1, rel=0.1)
    power = np.abs(np.fft.fft2(whole)) ** 2
    low, middle, high = (
        power[:, (f >= a) & (f < b)].mean() for a, b in ((2, 5), (8, 14), (31, 33))
    )
    assert 0.5 < low / middle < 2  # 1 / f in, flat out
    assert high < middle / 2  # and cut off beyond f_0 = 25.6
    again = whiten_patches(5 * images - 3, 4_000, size=2, seed=1)
    np.testing.assert_allclose(patches, again, atol=1e-5)


def test_whitened_patches_of_a_wide_image_by_the_equation():
    image = np.random.default_rng(1).normal(size=(8, 12))
    fy, fx = np.meshgrid(np.arange(-4, 4), np.arange(-6, 6), indexing="ij")
    f = np.sqrt(fx**2 + fy**2)
    spectrum = np.fft.fftshift(np.fft.fft2((image - image.mean()) / image.std()))
    spectrum *= f * np.exp(-((f / 3.2) ** 4))
    filtered = np.fft.ifft2(np.fft.ifftshift(spectrum)).real
    filtered *= math.sqrt(0.1 / filtered.var())
    windows = {
        (top, left): filtered[top : top + 6, left : left + 6]
        for top in range(3)
        for left in range(7)
    }
    want = {place: (w - w.mean()).ravel() for place, w in windows.items()}
    found = whiten_patches(image[None], 300, size=6)
    near = {min(want, key=lambda p, x=x: np.abs(want[p] - x).max()) for x in found}
    assert near == set(want)  # each place is drawn
    for x in found:
        assert min(np.abs(w - x).max() for w in want.values()) < 1e-6


def test_refusals():
    y, d = problem()
    with pytest.raises(EtudeError, match="penalty must be one of cel0"):
        SparseCoder(penalty="l1")
    with pytest.raises(EtudeError, match=r"step must be in 0\.\.1"):
        SparseCoder(step=1.0)
    with pytest.raises(EtudeError, match="n_units must be at least 1"):
        SparseCoder(n_units=0)
    coder = SparseCoder(n_units=16)
    coder.dictionary_ = d
    with pytest.raises(EtudeError, match=r"vectors must be \(N, 8\)"):
        coder.transform(y[:, :7])
    with pytest.raises(EtudeError, match="vectors must be finite"):
        coder.transform(np.full((2, 8), np.nan))
    with pytest.raises(EtudeError, match="images must be not flat"):
        whiten_patches(np.ones((1, 8, 8)), 3, size=4)
    with pytest.raises(EtudeError, match=r"size must be in 1\.\.8"):
        whiten_patches(np.random.default_rng(0).normal(size=(1, 8, 9)), 3, size=9)
    with pytest.raises(EtudeError, match="weight must be at least 0"):
        cel0_penalty(X, -1.0)
