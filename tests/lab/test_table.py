"""The leaderboard: what fits, what is shown of what is unknown, and its JSON twin."""

import json
import math
import re

import numpy as np
import pytest
from rich.console import Console

from etude.lab import judge
from etude.lab.board import Board, Entry
from etude.lab.row import Run
from etude.lab.table import board_json, headline, leaderboard, notes, plain, seconds, size

SEEDS = (0, 1, 2, 3, 4)
NOISE = np.array([0.001, -0.001, 0.0005, 0.0, -0.0005])


def entry(method, shift, *, base=0.95, better="higher", spread=1.0, margin=0.005, **facts):
    """A line whose values are `base + shift`, judged against `base`; a shift of None fails."""
    lows = base + NOISE
    if shift is None:
        values, verdict = {}, None
    else:
        ours = base + shift + spread * NOISE[::-1]
        values = dict(zip(SEEDS, ours.tolist(), strict=True))
        verdict = judge(ours, lows, better=better, margin=margin)
    mean = float(np.mean(list(values.values()))) if values else None
    given = {
        "method": method, "title": method, "arm": "ours", "value": mean, "default_value": mean,
        "verdict": verdict, "default_verdict": verdict, "fit_s": 0.25, "infer_s": 0.01,
        "bytes": 3400, "failures": (), "values": values,
    }  # fmt: skip
    return Entry(**given | facts)


def board(*entries, better="higher", metric="accuracy", unit="share", margin=0.005, **facts):
    baseline = entry("logistic_regression", 0.0, arm="baseline", verdict=None)
    given = {
        "run": Run(id="0123456789ab", command="etude compare digits", spec={}, started="2025"),
        "task": "probe", "data": "digits", "n_rows": 1797, "metric": metric, "unit": unit,
        "better": better, "margin": margin, "baseline": "logistic_regression", "seeds": SEEDS,
        "entries": (*entries, baseline), "winner": entries[0].method, "skipped": {},
    }  # fmt: skip
    return Board(**given | facts)


def rendered(shown, width=80):
    console = Console(width=width, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(leaderboard(shown))
    return capture.get()


def signed(x):
    """The number as the table writes it, as a pattern; zero has no sign."""
    text = f"{x:+.4f}"
    return re.escape(text if float(text) else "0.0000")


LONG = "heads." + "a_method_whose_name_goes_on_and_on_for_longer_than_a_line_of_eighty_columns_has"
FULL = board(
    entry("heads.naive_bayes_probe", 0.02),
    entry("heads.equiangular_basis_vectors", 0.001, spread=0.1),
    entry("heads.moment_probing", 0.004, spread=9.0),
    entry("heads.comp_sum_loss", -0.03),
    entry(LONG, None, failures=("seed 0: singular matrix",) * 5),
    skipped={"graphs.fast_rp": "asks for adjacency; this task has dim, n_classes"},
)


@pytest.mark.parametrize("width", [80, 100, 200])
def test_no_line_is_wider_than_80_columns_and_no_number_is_cut(width):
    text = rendered(FULL, width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    for line in FULL.entries:
        if line.value is not None:
            assert f"{line.value:.4f}" in text
        if line.verdict is not None:
            v = line.verdict
            difference, low, high = (signed(x) for x in (v.difference, v.low, v.high))
            assert re.search(rf"{difference} +{low} to {high}", text)
    assert "…" not in text


def test_every_verdict_has_a_word_and_a_symbol_without_color():
    text = rendered(FULL)
    for mark in ("✓ better", "= tie", "? undecided", "✗ worse", "! failed", "baseline"):
        assert mark in text
    assert "\x1b" not in text


def test_color_repeats_the_symbols():
    console = Console(width=80, force_terminal=True, color_system="standard")
    with console.capture() as capture:
        console.print(leaderboard(FULL))
    assert "\x1b[32m✓ better" in capture.get()
    assert "\x1b[31m✗ worse" in capture.get()


def test_direction_is_marked():
    assert "accuracy ↑ higher is better" in rendered(FULL)
    lower = board(
        entry("losses.x", -0.2, better="lower"), better="lower", metric="log_loss", unit="nats"
    )
    text = rendered(lower)
    assert "log_loss ↓ lower is better" in text
    assert "✓ better" in text
    assert "x is better than logistic_regression on digits: log_loss -0.2" in headline(lower)


def test_footnotes_say_what_the_table_leaves_out():
    shown = board(
        entry("heads.moment_probing", 0.004, spread=9.0, default_value=0.9312,
              failures=("seed 3: it did\nnot converge",)),
        skipped={"graphs.fast_rp": "asks for adjacency"},
    )  # fmt: skip
    text = "\n".join(notes(shown))
    verdict = shown.entries[0].verdict
    assert "within ±0.005 counts as equal" in text
    assert "moment_probing: 0.9312 by default, 0.9540 tuned, by default ? undecided." in text
    assert "1 failure(s), the first: seed 3: it did?not converge" in text
    assert f"About {verdict.seeds_needed - 5} more seeds would decide it" in text
    assert "fast_rp not tried: asks for adjacency" in text
    for word in re.findall(r"\S+", text):
        assert word in rendered(shown)


def test_one_seed_shows_an_infinite_interval_and_valid_json():
    verdict = judge([0.97], [0.95])
    shown = board(entry("heads.x", 0.02, verdict=verdict, values={0: 0.97}), seeds=(0,))
    assert "-∞ to +∞" in rendered(shown)
    assert "? undecided" in rendered(shown)
    twin = board_json(shown)
    assert twin["entries"][0]["verdict"]["low"] is None
    assert json.loads(json.dumps(twin, allow_nan=False)) == twin
    assert "1 paired seed)" in twin["headline"]


def test_json_has_what_the_table_has():
    twin = board_json(FULL)
    assert [line["status"] for line in twin["entries"]] == [
        "better", "tie", "undecided", "worse", "failed", "baseline",
    ]  # fmt: skip
    assert twin["entries"][0]["verdict"]["difference"] == FULL.entries[0].verdict.difference
    assert twin["skipped"] == dict(FULL.skipped)
    assert twin["winner"] == "heads.naive_bayes_probe"
    assert twin["entries"][0]["values"]["0"] == FULL.entries[0].values[0]
    assert "Of 5 methods: 1 better, 1 tie, 1 worse, 1 undecided, 1 failed." in twin["headline"]


def test_holm_gives_different_levels_and_the_table_says_so():
    pairs = [judge(0.97 + NOISE, 0.95 + NOISE[::-1], level=level) for level in (0.025, 0.05)]
    shown = board(*(entry(f"heads.m{i}", 0.02, verdict=v) for i, v in enumerate(pairs)))
    assert "95 %  interval" not in rendered(shown)
    assert "Intervals of 95 % to 97.5 %: Holm's correction" in " ".join(notes(shown))
    assert "95 % interval" in rendered(board(entry("heads.x", 0.02)))


@pytest.mark.parametrize(
    ("unit", "base", "shown_unit", "figures"),
    [
        ("s", 0.5e-3, "µs", ("500.0", "550.0", "+50.00")),
        ("s", 0.95, "s", ("0.950", "1.045", "+0.0950")),
        ("bytes", 0.95e6, "MB", ("0.950", "1.045", "+0.0950")),
        ("1/s", 4.2e4, "k", ("42.00", "46.20", "+4.200")),
        ("documents", 123.4, "documents", ("123.4", "135.7", "+12.34")),
    ],
)
def test_units_are_scaled_once_for_the_whole_board(unit, base, shown_unit, figures):
    ours, theirs = base * (1.1 + NOISE), base * (1 + NOISE)
    first = entry("heads.x", 0, value=1.1 * base, default_value=1.1 * base,
                  verdict=judge(ours, theirs))  # fmt: skip
    second = entry("heads.y", 0, value=base, default_value=base, verdict=None)
    shown = board(
        first, second, metric="cost", unit=unit, margin=0.01 * base, entries=(first, second)
    )
    lines = rendered(shown).splitlines()
    assert shown_unit in lines[2].split()
    assert lines[3].split()[:3] == ["x", figures[1], figures[2]]
    assert lines[4].split()[:2] == ["y", figures[0]]
    assert max(map(len, lines)) <= 80


def test_differences_far_smaller_than_values_keep_their_digits():
    base = np.full(5, 2.0)
    verdict = judge(base + 1e-6 + 1e-7 * NOISE, base)
    shown = board(entry("heads.x", 0, value=2.0, verdict=verdict), unit="nats", metric="log_loss")
    assert "+1.0e-06" in rendered(shown)
    assert max(map(len, rendered(shown).splitlines())) <= 80


@pytest.mark.parametrize(
    ("shift", "spread", "words"),
    [
        (0.02, 1.0, "x is better than logistic_regression on digits: accuracy +0.0200 (95 % int"),
        (-0.02, 1.0, "x is worse than logistic_regression on digits: accuracy -0.0200 (95 % int"),
        (0.0, 1.0, "x and logistic_regression are equal in practice on digits"),
        (0.004, 9.0, "x against logistic_regression on digits is undecided"),
        (None, 1.0, "x failed on every seed; logistic_regression stays."),
    ],
)
def test_headline_of_one_method(shift, spread, words):
    shown = board(entry("heads.x", shift, spread=spread), winner="logistic_regression")
    assert headline(shown).startswith(words)


def test_headline_when_nothing_wins():
    shown = board(entry("a.x", -0.02), entry("a.y", 0.0), winner="logistic_regression")
    assert headline(shown) == (
        "No method was better than logistic_regression on digits: 1 tie, 1 worse."
    )


def test_hostile_names_neither_style_nor_move_the_cursor():
    evil = "[red]x[/red]\x1b[2J\nnew line"
    shown = board(entry("heads.x", 0.02), data=evil, skipped={"a.b": evil})
    text = rendered(shown)
    assert "[red]x[/red]?[2J?new line" in " ".join(text.split())
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 µs"), (3.2e-5, "32 µs"), (0.00096, "960 µs"), (0.85, "850 ms"), (1.24, "1.2 s"),
     (59.9, "60 s"), (90, "1.5 min"), (7200, "2.0 h")],
)  # fmt: skip
def test_seconds(value, text):
    assert seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (850, "850 B"), (3400, "3.4 kB"), (999_900, "1.0 MB"), (12_345_678, "12 MB"),
     (7.5e9, "7.5 GB"), (4e12, "4.0 TB")],
)  # fmt: skip
def test_size(value, text):
    assert size(value) == text


def test_plain_leaves_only_json_values():
    values = {1: np.float64(2.5), "a": (math.nan, math.inf), "b": np.int64(3), "c": {"d": set()}}
    assert plain(values) == {"1": 2.5, "a": [None, None], "b": 3, "c": {"d": "set()"}}
