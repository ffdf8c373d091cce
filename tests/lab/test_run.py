"""Runs: resume after a kill, two processes on one ledger, failures as rows, jobs, budget."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import numpy as np
import pytest

from etude.core import EtudeError
from etude.lab import compare, try_method
from etude.lab.execute import batches, units
from etude.lab.ledger import Ledger
from etude.lab.plan import Plan, configurations, make_plan
from etude.lab.run import board_of, keep, run_plan
from etude.lab.score import best_knobs, margin_of
from etude.tasks import arm_of, get_task
from etude.tasks.base import Arm

COMMAND = [
    sys.executable, "-m", "etude", "compare", "wine", "--methods", "naive_bayes_probe",
    "--seeds", "4", "--tune", "3", "--json",
]  # fmt: skip


def start(tmp_path):
    environment = {**os.environ, "ETUDE_LEDGER": str(tmp_path / "l.sqlite")}
    pipe = subprocess.PIPE
    return subprocess.Popen(COMMAND, env=environment, cwd=tmp_path, stdout=pipe, stderr=pipe)


def rows_of(tmp_path):
    book = Ledger(str(tmp_path / "l.sqlite"))
    return [row for run in book.runs() for row in book.rows(run.id)]


def key(row):
    return (row.method, row.split, row.seed, row.metric, row.setting, row.config_hash)


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    process = start(tmp_path)
    deadline = time.monotonic() + 120
    while not (tmp_path / "l.sqlite").exists() or len(rows_of(tmp_path)) < 20:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    process.stderr.close()
    before = {key(row): asdict(row) for row in rows_of(tmp_path)}
    again = start(tmp_path)
    _out, err = again.communicate(timeout=240)
    assert again.returncode == 0, err
    after = rows_of(tmp_path)
    keys = [key(row) for row in after]
    assert len(keys) == len(set(keys)), "measured twice"
    final = {key(row): asdict(row) for row in after}
    assert all(final[k] == row for k, row in before.items()), "lost or changed"
    assert len(final) > len(before)
    assert {(r.method, r.seed) for r in after if r.setting == "tuned"} == {
        (m, s) for m in ("logistic_regression", "heads.naive_bayes_probe") for s in range(4)
    }


def test_two_processes_on_one_ledger_both_finish(tmp_path):
    processes = [start(tmp_path) for _ in range(2)]
    for process in processes:
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
    keys = [key(row) for row in rows_of(tmp_path)]
    assert len(keys) == len(set(keys))


def test_equal_commands_measure_once_and_fresh_measures_again():
    first = compare("wine", methods=["naive_bayes_probe"], seeds=2, tune=1)
    again = compare("wine", methods=["naive_bayes_probe"], seeds=2, tune=1)
    rows = Ledger().rows(first.run.id)
    assert again.entries == first.entries
    fresh = compare("wine", methods=["naive_bayes_probe"], seeds=2, tune=1, fresh=True)
    assert fresh.run.id == first.run.id
    assert len(Ledger().rows(first.run.id)) == len(rows)
    assert [e.values for e in fresh.entries] == [e.values for e in first.entries]
    assert board_of("latest").winner == first.winner


def test_more_seeds_measure_only_the_new_ones():
    options = {"methods": ["naive_bayes_probe"], "tune": 1}
    two = compare("wine", **options, seeds=2)
    before = Ledger().rows(two.run.id)
    three = compare("wine", **options, seeds=3)
    rows = Ledger().rows(three.run.id)
    assert three.run.id == two.run.id
    assert rows[: len(before)] == before
    assert {row.seed for row in rows[len(before) :]} == {2}
    again = compare("wine", **options, seeds=2)
    assert [e.values for e in again.entries] == [e.values for e in two.entries]


def test_both_arms_have_as_many_configurations_and_the_test_part_is_opened_once():
    board = compare("wine", methods=["naive_bayes_probe"], seeds=2, tune=2)
    rows = Ledger().rows(board.run.id)
    for name in ("logistic_regression", "heads.naive_bayes_probe"):
        arm = arm_of(get_task("probe"), name)
        for seed in range(2):
            mine = [r for r in rows if (r.method, r.seed, r.metric) == (name, seed, "accuracy")]
            tried = {r.config_hash for r in mine if r.split == "validation"}
            tested = {r.config_hash for r in mine if r.split == "test"}
            assert len(tried) == min(2, len(configurations(arm, 2)))
            assert len(tested) <= 2  # the default's and the best one's
            best = max((r for r in mine if r.split == "validation"), key=lambda r: r.value)
            tuned = next(r for r in mine if r.setting == "tuned")
            same = [
                r for r in mine if r.split == "validation" and r.config_hash == tuned.config_hash
            ]
            assert same[0].value == best.value


def test_jobs_give_the_same_values_as_one_process():
    options = {"methods": ["naive_bayes_probe"], "seeds": 2, "tune": 1}
    one = compare("wine", **options)
    two = compare("wine", **options, jobs=2, fresh=True)
    assert [e.values for e in two.entries] == [e.values for e in one.entries]


@pytest.mark.timeout(400)
def test_ray_gives_the_same_values_as_one_process(monkeypatch):
    pytest.importorskip("ray", reason="the extra etude[ray] is not installed")
    options = {"methods": ["naive_bayes_probe"], "seeds": 2, "tune": 1}
    one = compare("wine", **options)
    two = compare("wine", **options, on="ray", fresh=True)
    assert [e.values for e in two.entries] == [e.values for e in one.entries]


def test_arms_whose_rate_decides_take_turns_in_one_worker():
    shares, rates = (
        make_plan("wine", methods=None, task="encode", seeds=2, settings=settings)[0]
        for settings in ((), ("recall=0.9",))
    )
    assert batches(shares) == [[unit] for unit in units(shares)]
    assert [len(batch) for batch in batches(rates)] == [len(units(rates)) // 2] * 2
    assert [{seed for seed, _ in batch} for batch in batches(rates)] == [{0}, {1}]
    assert [unit for batch in batches(rates) for unit in batch] == units(rates)


@pytest.mark.timeout(400)
def test_a_comparison_of_indexes_on_ray_keeps_every_arm():
    pytest.importorskip("ray", reason="the extra etude[ray] is not installed")
    settings = {"task": "encode", "settings": ("recall=0.9",), "seeds": 2, "tune": 1}
    board = compare("wine", **settings, on="ray")
    rows = Ledger().rows(board.run.id)
    assert {row.seed for row in rows} == {0, 1}
    assert {row.method for row in rows} == {*board.run.spec["methods"], board.run.spec["baseline"]}


def test_a_cluster_that_does_not_answer_is_one_line(monkeypatch):
    ray = pytest.importorskip("ray", reason="the extra etude[ray] is not installed")

    def timeout(**_):
        raise ConnectionError("ray client connection timeout")

    monkeypatch.setattr(ray, "init", timeout)
    with pytest.raises(EtudeError, match=r"ray://10\.0\.0\.5:10001 does not answer; start a"):
        compare("wine", methods=["naive_bayes_probe"], seeds=1, on="ray://10.0.0.5:10001")


def _out_of_memory(*_, **__):
    import ray

    raise ray.exceptions.OutOfMemoryError("2 worker(s) were killed. Memory on the node was ...")


@pytest.mark.timeout(400)
def test_a_lost_worker_is_one_line(monkeypatch):
    ray = pytest.importorskip("ray", reason="the extra etude[ray] is not installed")
    monkeypatch.setattr(ray, "wait", _out_of_memory)
    with pytest.raises(EtudeError, match=r"Ray lost a worker: 2 worker\(s\) were killed; give the"):
        compare("wine", methods=["naive_bayes_probe"], seeds=1, on="ray")


def test_failures_are_rows_and_deny_a_verdict(monkeypatch):
    from etude.heads import GaussianNBProbe

    fit = GaussianNBProbe.fit
    calls = []

    def sometimes(self, features, target):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of luck")
        return fit(self, features, target)

    monkeypatch.setattr(GaussianNBProbe, "fit", sometimes)
    board = try_method("naive_bayes_probe", "wine", seeds=3, tune=1)
    ours = next(entry for entry in board.entries if entry.arm == "ours")
    assert ours.verdict is None
    assert ours.failures == ("seed 1: failed: RuntimeError: out of luck",)
    assert board.winner == "logistic_regression"
    failed = [row for row in Ledger().rows(board.run.id) if row.value is None]
    assert {row.seed for row in failed} == {1}
    assert all(row.status.startswith("failed") for row in failed)


def test_configurations_start_with_the_default_and_do_not_repeat():
    arm = Arm("a", "A", object, {"p": (1, 2, 3), "q": ("x", "y")})
    found = configurations(arm, 100)
    assert found[0] == {"p": 1, "q": "x"}
    assert len(found) == 6 == len({tuple(c.items()) for c in found})
    assert configurations(arm, 3) == found[:3]
    assert configurations(Arm("b", "B", object), 5) == [{}]


def test_plan_id_follows_content_not_place(tmp_path):
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(60, 4)).astype(np.float32), np.arange(60) % 3
    for name in ("a", "b"):
        np.savez(tmp_path / f"{name}.npz", x=x, y=y)
    plans = [make_plan(tmp_path / f"{name}.npz", methods=["naive_bayes_probe"])[0] for name in "ab"]
    assert plans[0].id == plans[1].id
    assert Plan.of(plans[0].spec()) == plans[0]
    other, _ = make_plan(tmp_path / "a.npz", methods=["naive_bayes_probe"], tune=2)
    assert other.id != plans[0].id


def test_margin_of_a_relative_metric_is_a_share_of_the_baseline():
    assert margin_of("accuracy", None, [0.5]) == 0.005
    assert margin_of("log_loss", None, [1.0, 3.0]) == pytest.approx(0.02)
    assert margin_of("log_loss", 0.3, [1.0]) == 0.3


def test_best_knobs_have_the_best_mean_over_seeds():
    board = compare("wine", methods=["naive_bayes_probe"], seeds=3, tune=3)
    rows = Ledger().rows(board.run.id)
    plan = Plan.of(board.run.spec)
    chosen = best_knobs(plan, rows, "logistic_regression")
    means = {}
    for row in rows:
        if (row.method, row.split, row.metric) == ("logistic_regression", "validation", "accuracy"):
            means.setdefault(row.params["C"], []).append(row.value)
    assert np.mean(means[chosen["C"]]) == max(np.mean(values) for values in means.values())


def test_one_seed_has_no_interval_and_can_be_kept(tmp_path):
    board = try_method("naive_bayes_probe", "wine", seeds=1, tune=1)
    keep(board.run.id, tmp_path / "kept", "naive_bayes_probe")
    card = (tmp_path / "kept" / "card.md").read_text()
    assert "interval: null" in card
    assert "interval unknown from one seed" in card


def test_a_budget_stops_training_by_the_clock():
    plan, data = make_plan("wine", methods=["comp_sum_loss"], seeds=1, tune=1, budget_s=0.4)
    board = run_plan(plan, data)
    assert all(0.3 < entry.fit_s < 3 for entry in board.entries)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 0}, "seeds must be"),
        ({"tune": 0}, "tune must be"),
        ({"budget_s": -1.0}, "budget must be"),
        ({"metric": "beauty"}, "metric must be one of accuracy"),
        ({"task": "dance"}, "task must be one of probe"),
        ({"methods": ["naive_bayes_prob"]}, "nearest are naive_bayes_probe"),
        ({"methods": ["rankme"]}, "etude verify rankme"),
        ({"methods": ["moment_probing"]}, "reads tokens"),
        ({"methods": ["comp_sum_loss"], "task": "probe"}, "answers the task 'train'"),
        ({"against": "magic"}, "no method is called 'magic'"),
        ({"on": "moon", "methods": ["naive_bayes_probe"]}, "on must be local, ray"),
        ({"jobs": 0, "methods": ["naive_bayes_probe"]}, "jobs must be"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(EtudeError, match=message):
        compare("wine", **options)
