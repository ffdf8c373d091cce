"""The claims of the cards, measured: from an experiment or a task to a line of evidence."""

from __future__ import annotations

import importlib
import importlib.util
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from etude import __version__
from etude.core import Card, EtudeError, load, require
from etude.lab.ledger import Ledger
from etude.lab.plan import make_plan
from etude.lab.row import Row, Run, fingerprint
from etude.lab.run import run_plan
from etude.lab.score import margin_of
from etude.lab.trial import machine, now
from etude.lab.verdict import judge
from etude.tasks.base import METRICS, Pair

__all__ = ["Finding", "experiment_of", "verify", "write_evidence"]

SEEDS = {"S": 5, "M": 5, "L": 3}
Progress = Callable[[int, int, str], object]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of evidence: a comparison that the claim names, over paired seeds.

    `verdict` is of the claim: it holds where ours is better, does not hold at this scale where
    it is worse or tied, and is undecided otherwise.
    """

    method: str
    metric: str
    better: str
    data: str
    setting: str
    baseline_name: str
    ours_mean: float
    baseline_mean: float
    difference: float
    low: float
    high: float
    label: str
    verdict: Literal["holds", "does not hold at this scale", "undecided"]
    seeds: int
    seeds_needed: int | None
    headline: bool
    version: str
    machine: str
    at: str
    seconds: float


def experiment_of(card: Card) -> Callable[[int], list[Pair]] | None:
    """The card's own experiment, ``measure(seed)``, or None where a task measures the claim."""
    name = f"etude.experiments.{card.family}.{card.slug}"
    package = f"etude.experiments.{card.family}"
    if importlib.util.find_spec(package) is None or importlib.util.find_spec(name) is None:
        return None
    measure: Callable[[int], list[Pair]] = importlib.import_module(name).measure
    return measure


def verify(
    card: Card,
    *,
    seeds: int | None = None,
    ledger: str | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> list[Finding]:
    """Measure the claim of a card; every seed's values are rows of the ledger at once.

    Returns:
        The findings, the headline first.

    Raises:
        EtudeError: the data of the experiment is not here, or the card declares no data.
    """
    load(card)
    n_seeds = seeds or SEEDS[card.cost]
    tell = progress or (lambda *_: None)
    measure = experiment_of(card)
    if measure is None:
        return _by_task(card, n_seeds, ledger, fresh, tell)
    book = Ledger(ledger)
    spec = {"kind": "verify", "method": card.key, "claim": card.claim, "version": __version__}
    run = Run(
        id=fingerprint(spec), command=f"etude verify {card.slug} --seeds {n_seeds}", spec=spec,
        started=now(),
    )  # fmt: skip
    if fresh:
        book.delete(run.id)
    book.start(run)
    for seed in range(n_seeds):
        tell(seed, n_seeds, f"{card.key}, seed {seed}")
        rows = book.rows(run.id, method=card.key, seed=seed)
        if not rows:
            started = time.perf_counter()
            pairs = measure(seed)
            _check(card, pairs)
            book.add(_rows(run.id, card, seed, pairs, time.perf_counter() - started))
    tell(n_seeds, n_seeds, card.key)
    book.finish(run.id, "finished")
    rows = [row for row in book.rows(run.id) if row.seed < n_seeds]
    return _findings(card, rows)


def _check(card: Card, pairs: Sequence[Pair]) -> None:
    first = pairs[0]
    if (first.metric, first.baseline_name) != (card.metric, card.baseline):
        raise EtudeError(
            f"{card.key}: the experiment's first pair is {first.metric} against "
            f"{first.baseline_name}, the card claims {card.metric} against {card.baseline}"
        )


def _rows(run: str, card: Card, seed: int, pairs: Sequence[Pair], seconds: float) -> list[Row]:
    """Two rows a pair; the place in the list goes along, so that the headline stays first."""
    rows = []
    for place, pair in enumerate(pairs):
        params = {"place": place, "against": pair.baseline_name, "seconds": seconds}
        config = fingerprint([place, pair.metric, pair.baseline_name, pair.data, pair.setting])
        for arm, value, fit_s in (
            ("ours", pair.ours, pair.ours_s),
            ("baseline", pair.baseline, pair.baseline_s),
        ):
            rows.append(
                Row(
                    run=run, method=card.key, arm="ours" if arm == "ours" else "baseline",
                    task="experiment", data=pair.data, data_hash="", split="test", seed=seed,
                    metric=pair.metric, value=float(value), unit=METRICS[pair.metric].unit,
                    fit_s=fit_s, infer_s=0.0, bytes=0, status="ok", params=params,
                    setting=pair.setting, config_hash=config, version=__version__,
                    machine=machine(), at=now(),
                )
            )  # fmt: skip
    return rows


def _findings(card: Card, rows: Iterable[Row]) -> list[Finding]:
    groups: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((int(row.params["place"]), row.config_hash), []).append(row)
    found = []
    for place, (_, group) in enumerate(sorted(groups.items())):
        ours = {r.seed: float(r.value or 0) for r in group if r.arm == "ours"}
        baseline = {r.seed: float(r.value or 0) for r in group if r.arm == "baseline"}
        seeds = sorted(ours)
        found.append(
            _finding(
                card, group[0], str(group[0].params["against"]), place == 0,
                [ours[s] for s in seeds], [baseline[s] for s in seeds],
                sum({r.seed: float(r.params["seconds"]) for r in group}.values()),
            )
        )  # fmt: skip
    return found


def _finding(
    card: Card, row: Row, against: str, headline: bool, ours: Sequence[float],
    baseline: Sequence[float], seconds: float, overlap: float = 0.0,
) -> Finding:  # fmt: skip
    better = METRICS[row.metric].better
    verdict = judge(
        ours, baseline, better=better, margin=margin_of(row.metric, None, baseline),
        overlap=overlap,
    )  # fmt: skip
    claim: Literal["holds", "does not hold at this scale", "undecided"]
    if verdict.label == "better":
        claim = "holds"
    else:
        claim = "undecided" if verdict.label == "undecided" else "does not hold at this scale"
    return Finding(
        method=card.key, metric=row.metric, better=better, data=row.data, setting=row.setting,
        baseline_name=against, ours_mean=sum(ours) / len(ours),
        baseline_mean=sum(baseline) / len(baseline), difference=verdict.difference,
        low=verdict.low, high=verdict.high, label=verdict.label, verdict=claim,
        seeds=verdict.n_seeds, seeds_needed=verdict.seeds_needed, headline=headline,
        version=row.version, machine=row.machine, at=row.at, seconds=round(seconds, 1),
    )  # fmt: skip


def _by_task(
    card: Card, n_seeds: int, ledger: str | None, fresh: bool, progress: Progress
) -> list[Finding]:
    """The claim measured by the card's task, on each data set that the card names."""
    if not card.data:
        raise EtudeError(f"{card.key}: the card names no data, and there is no experiment")
    found = []
    for place, source in enumerate(card.data):
        plan, data = make_plan(
            source, methods=[card.key], task=card.task, against=card.baseline, seeds=n_seeds,
            metric=card.metric,
        )  # fmt: skip
        started = time.perf_counter()
        board = run_plan(plan, data, ledger=ledger, fresh=fresh, progress=progress)
        ours = next(e for e in board.entries if e.method == card.key)
        baseline = next(e for e in board.entries if e.method == plan.baseline)
        rows = Ledger(ledger).rows(plan.id, method=card.key)
        row = next(r for r in reversed(rows) if r.split == "test" and r.metric == card.metric)
        seeds = sorted(ours.differences)
        if len(seeds) < n_seeds:
            raise EtudeError(f"{card.key} failed on {source}: {'; '.join(ours.failures)}")
        found.append(
            _finding(
                card, row, card.baseline, place == 0, [ours.values[s] for s in seeds],
                [baseline.values[s] for s in seeds], time.perf_counter() - started, plan.overlap,
            )
        )  # fmt: skip
    return found


def write_evidence(findings: Sequence[Finding], folder: Path) -> Path:
    """Replace ``<family>.<slug>.jsonl`` in `folder` by these findings of one method.

    Raises:
        EtudeError: a single seed, which has no interval and is no evidence.
    """
    require(findings[0].seeds >= 2, "seeds", "at least 2 for evidence", findings[0].seeds)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{findings[0].method}.jsonl"
    lines = [
        json.dumps(asdict(finding), ensure_ascii=False, allow_nan=False) for finding in findings
    ]
    draft = path.with_suffix(".part")
    draft.write_text("\n".join(lines) + "\n", encoding="utf-8")
    draft.replace(path)
    return path
