"""What is known of a paper: the commands that try it, held to what the tasks can do."""

import json
import shlex
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from etude.cli.info import command as info
from etude.cli.try_ import command as trial
from etude.core import EtudeError, card_of, cards
from etude.papers.about import ADOPTED, commands
from etude.tasks import arm_of, get_task, task_of
from etude.tasks.base import Dataset


def tried(slug):
    """What `etude try SLUG ...` of the method's page is called with."""
    lines = commands(card_of(slug))
    assert lines[-1] == f"etude verify {slug}"
    assert lines[0].startswith(f"etude try {slug} ")
    context = trial.make_context("try", shlex.split(lines[0])[2:])
    assert context.params["method"] == slug
    return context.params


def texts(descriptions):
    """Sentences of six classes whose names are words."""
    schema = {"format": "table", "columns": [{"name": "t", "kind": "text", "width": 384}]}
    names = ("cat", "train", "soup", "rain", "tooth", "river")
    x = np.random.default_rng(0).normal(size=(120, 384)).astype(np.float32)
    return Dataset(
        name="things", x=x, y=np.arange(120) % 6, classes=names, schema=schema, hash="t",
        descriptions={name: ["a thing"] for name in names} if descriptions else None,
    )  # fmt: skip


def test_every_experiment_that_a_task_can_try_says_how_and_no_other():
    wired = set()
    for card in cards().values():
        if card.task != "experiment":
            assert commands(card)[0].startswith(f"etude try {card.slug} --data "), card.slug
            continue
        try:
            task_of(card.slug)
        except EtudeError:
            assert commands(card) == [f"etude verify {card.slug}"]
        else:
            wired.add(card.slug)
    assert wired == set(ADOPTED)
    assert len(wired) >= 5


@pytest.mark.parametrize("slug", ADOPTED)
def test_the_command_is_one_that_the_task_takes(slug):
    """Parsed by the command line itself, its settings read, and the method meets such a file."""
    given = tried(slug)
    task = get_task(task_of(slug), given["settings"])
    data = texts(descriptions=given["descriptions"] is not None)
    assert given["source"] == ("PAIRS.npz" if task.name == "match" else "FILE")
    if task.name == "match":
        data = replace(data, items=data.x)
    assert task.why_not(arm_of(task, slug), data) is None
    assert task.why_not(task.baselines[next(iter(task.baselines))], data) is None


def test_what_a_command_names_is_needed():
    """Without its phrases, its setting or its distances the task refuses the method."""
    described = arm_of(get_task("probe", ["zero_shot"]), "classify_by_description")
    assert "--descriptions" in get_task("probe").why_not(described, texts(descriptions=False))
    clustered = arm_of(get_task("probe"), "laplacian_transductive_clustering")
    assert "transductive" in get_task("probe").why_not(clustered, texts(descriptions=False))
    assert tried("loki_frechet_mean")["labels_metric"] == "DISTANCES.csv"


def test_the_page_shows_it():
    page = CliRunner().invoke(info, ["loki_frechet_mean"], catch_exceptions=False).stdout
    assert "etude try loki_frechet_mean --data FILE" in page
    found = CliRunner().invoke(info, ["tfup_cache", "--json"], catch_exceptions=False).stdout
    assert json.loads(found)["commands"] == [
        "etude try tfup_cache --data FILE --setting zero_shot", "etude verify tfup_cache",
    ]  # fmt: skip


def test_no_torch_is_loaded_for_it():
    code = (
        "import sys; from etude.papers import paper_of; from etude.papers.about import about; "
        "assert len(about(paper_of('loki_frechet_mean'))['commands']) == 2; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
