"""What holds for every method, written once and run over all cards."""

import ast
import importlib
import inspect
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch

import etude
from etude.core import FAMILIES, EtudeError, cards, check_names, get_state, load
from etude.core.index import PACKAGE, public_names
from etude.core.vocabulary import FACTS, TENSORS
from etude.lab.verify import experiment_of
from etude.papers.catalogue import papers
from etude.tasks import TASKS, arm_of, get_task, restore
from etude.tasks.base import METRICS, Dataset

TESTS = Path(__file__).parent
CARDS = list(cards().values())
each = pytest.mark.parametrize("card", CARDS, ids=lambda card: card.key)
on_tasks = pytest.mark.parametrize(
    "card", [c for c in CARDS if c.task in TASKS], ids=lambda card: card.key
)
ALLOWED = {"numpy", "torch", "scipy", "numba", "etude"}
LONGEST = 300


def source(card):
    return (PACKAGE / card.family / f"{card.slug}.py").read_text()


def calls(method):
    """The constructor (or the function itself) and the calls that a task wires."""
    names = ("forward", "fit", "logits", "score", "encode_documents", "encode_queries", "classify")
    found = [method] + [getattr(method, name) for name in names if hasattr(method, name)]
    return [call for call in found if inspect.isfunction(call) or inspect.isclass(call)]


def build(card, **changes):
    """The method with its card's example arguments."""
    method, arguments = load(card), {**card.example, **changes}
    asked = inspect.signature(method).parameters
    if "generator" in asked and "generator" not in arguments:
        arguments["generator"] = torch.Generator().manual_seed(0)
    if "class_counts" in asked:
        arguments["class_counts"] = torch.tensor(arguments["class_counts"])
    return method(**arguments)


def tensors(dim, n_classes, dtype):
    """Small inputs for every name of the vocabulary that a call may ask for."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    labels = torch.arange(12) % n_classes
    edges = scipy.sparse.random(20, 20, density=0.3, random_state=0, format="csr")
    return {
        "x": normal(12, dim), "features": normal(12, dim), "embeddings": normal(12, dim),
        "tokens": normal(12, 9, dim), "logits": normal(12, n_classes), "target": labels,
        "labels": labels, "positives": torch.nn.functional.one_hot(labels, n_classes).bool(),
        "scores": normal(12, n_classes), "vectors": normal(12, dim), "queries": normal(4, 5, dim),
        "documents": normal(12, 5, dim), "adjacency": ((edges + edges.T) > 0).astype(float),
        "layer_features": [normal(12, dim), normal(12, 3)],
        "cooccurrence": (normal(12, 12) > 0) * 3.0,
        "indices": torch.arange(12), "query_bank": normal(5, n_classes),
        "gallery_bank": normal(7, n_classes), "anchors": normal(5, dim),
        "ids": torch.arange(24).reshape(12, 2),
        "anchor": normal(12, dim), "positive": normal(12, dim),
    }  # fmt: skip


def toy(kind="images"):
    """Forty rows of each of five classes: small images with a class's own stripe."""
    generator = np.random.default_rng(0)
    y = np.arange(200) % 5
    images = generator.normal(0, 0.4, (200, 1, 8, 8))
    for k in range(5):
        images[y == k, 0, k + 1] += 2
    return Dataset(
        name="toy", x=images.reshape(200, -1).astype(np.float32), y=y,
        classes=tuple("abcde"), image_shape=(1, 8, 8), hash="toy",
    )  # fmt: skip


def test_there_are_methods():
    assert len(CARDS) >= 10


@each
def test_exports_are_true(card):
    module = importlib.import_module(card.module)
    family = importlib.import_module(f"etude.{card.family}")
    assert public_names(card)[0] == load(card).__name__
    for name in module.__all__:
        assert getattr(family, name) is getattr(module, name)
        assert getattr(module, name).__module__ == card.module
    assert set(module.__all__) <= set(family.__all__)


@pytest.mark.parametrize("family", sorted({card.family for card in CARDS}))
def test_a_family_exports_its_modules_and_nothing_else(family):
    module = importlib.import_module(f"etude.{family}")
    names = [name for c in CARDS if c.family == family for name in public_names(c)]
    assert len(names) == len(set(names)), "two modules export one name"
    assert sorted(module.__all__) == sorted(names)


@each
def test_card_is_complete_and_its_paper_in_the_catalogue(card):
    paper = {p.slug: p for p in papers()}[card.slug]
    assert (paper.family, paper.title, paper.year) == (card.family, card.title, card.year)
    assert paper.arxiv == card.arxiv
    assert card.metric in METRICS
    assert METRICS[card.metric].better == card.better
    measure = experiment_of(card)
    assert card.task in TASKS or card.task == "experiment"
    assert measure is not None or (card.task in TASKS and card.data)
    if measure is None:
        assert card.baseline in get_task(card.task).baselines
        assert card.metric in get_task(card.task).metrics


@each
def test_docstring_has_the_equation_and_the_source(card):
    doc = ast.get_docstring(ast.parse(source(card)))
    assert "(1)" in doc
    assert "Source:" in doc
    assert not card.arxiv or card.arxiv in doc
    public = [getattr(importlib.import_module(card.module), n) for n in public_names(card)]
    assert all(inspect.getdoc(thing) for thing in public)


@each
def test_names_come_from_the_vocabulary(card):
    for call in calls(load(card)):
        check_names(call)


def test_a_name_outside_the_vocabulary_is_an_error_that_says_so():
    def outside(wibble):
        return wibble

    def synonym(logits, *, num_classes=3):
        return logits, num_classes

    def open_ended(logits, **options):
        return logits, options

    with pytest.raises(EtudeError, match=r"wibble\): not in the vocabulary"):
        check_names(outside)
    with pytest.raises(EtudeError, match="calls this 'n_classes'"):
        check_names(synonym)
    with pytest.raises(EtudeError, match="open"):
        check_names(open_ended)
    assert not set(FACTS) & set(TENSORS)


@each
def test_the_file_is_short_and_imports_only_what_a_family_may(card):
    text = source(card)
    assert text.count("\n") <= LONGEST
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "."]
        else:
            continue
        for name in names:
            if name.startswith("etude"):
                assert name.startswith("etude.core"), f"imports {name}"
            assert name.split(".")[0] in ALLOWED or name.split(".")[0] in _standard(), name


def _standard():
    import sys

    return sys.stdlib_module_names


@each
def test_a_test_file_exists_and_asserts(card):
    text = (TESTS / card.family / f"test_{card.slug}.py").read_text()
    tests = [
        node for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test")
    ]  # fmt: skip
    assert len(tests) >= 5
    for test in tests:
        body = ast.unparse(test)
        # A helper of the file that asserts counts where a test calls it.
        assert any(word in body for word in ("assert", "raises", "gradcheck", "check_")), test.name
    assert "match=" in text, "no refusal is tested by its message"


@each
def test_the_constructor_stores_and_refuses(card):
    method = load(card)
    if not inspect.isclass(method):
        pytest.skip("a function has no constructor")
    built = build(card)
    for name, parameter in inspect.signature(method).parameters.items():
        value = card.example.get(name, parameter.default)
        if name in FACTS or not isinstance(value, bool | int | float | str):
            continue
        assert getattr(built, name) == value, f"{name} is not stored as given"
        if isinstance(value, float):
            with pytest.raises(EtudeError):
                build(card, **{name: math.nan})
        elif isinstance(value, int) and not isinstance(value, bool):
            with pytest.raises(EtudeError):
                build(card, **{name: -1})
        elif isinstance(value, str):
            with pytest.raises(EtudeError):
                build(card, **{name: "no such choice"})


def _call(card, dtype):
    """Call the method's first call with what it asks for; (inputs, output)."""
    method = load(card)
    dim, n_classes = card.example.get("dim", 6), card.example.get("n_classes", 3)
    have = tensors(dim, n_classes, dtype)
    if inspect.isclass(method):
        built = build(card)
        if not hasattr(built, "forward"):
            pytest.skip("an estimator on arrays: the task checks below cover it")
        call, extra = built.to(dtype).forward, {}
    else:
        call, extra = method, dict(card.example)
    asked = inspect.signature(call).parameters
    inputs = {name: have[name] for name in asked if name in have and name not in extra}
    if not hasattr(call, "__self__"):  # functions take arrays
        inputs = {n: v.numpy() if hasattr(v, "numpy") else v for n, v in inputs.items()}
    return inputs, call(**inputs, **{n: v for n, v in extra.items() if n in asked})


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_same_result_input_untouched_dtype_kept(card, dtype):
    torch.manual_seed(0)
    inputs, first = _call(card, dtype)
    fresh = tensors(card.example.get("dim", 6), card.example.get("n_classes", 3), dtype)
    for name, value in inputs.items():
        if name not in ("adjacency", "layer_features"):
            np.testing.assert_array_equal(np.asarray(value), fresh[name].numpy())
    torch.manual_seed(0)
    _, second = _call(card, dtype)
    np.testing.assert_array_equal(_array(first), _array(second))
    if isinstance(first, torch.Tensor):
        assert first.dtype == dtype
        assert first.device == next(iter(inputs.values())).device
    assert np.isfinite(_array(first)).all()


def _array(value):
    return value.detach().numpy() if hasattr(value, "detach") else np.asarray(value)


@on_tasks
def test_on_its_task_the_same_seed_gives_the_same_and_the_state_round_trips(card):
    task, data = get_task(card.task), toy()
    arm = arm_of(task, card.key)
    knobs = {"n_steps": 5} if hasattr(arm.method, "forward") else {}
    before, split = data.x.copy(), task.split(data, 3)
    first = task.fit(arm, data, split, knobs, seed=3, budget_s=None)
    torch.rand(5)  # the global generator must not matter
    np.random.rand(5)
    second = task.fit(arm, data, split, knobs, seed=3, budget_s=None)
    answers = first.predict(data.x[split.test])
    np.testing.assert_array_equal(answers, second.predict(data.x[split.test]))
    np.testing.assert_array_equal(data.x, before)
    again = restore(first.config(), first.state())
    np.testing.assert_array_equal(answers, again.predict(data.x[split.test]))
    values = task.measure(first, data, split, "test")
    assert set(values) == set(task.metrics)
    assert all(math.isfinite(value) for value in values.values())
    assert get_state(first.parts.get("method", first.parts.get("objective"))) is not None


def test_import_rule_of_the_house():
    """core <- families, nets <- tasks <- lab <- experiments, papers <- site <- cli."""
    floors = {"core": 0, **dict.fromkeys(FAMILIES, 1), "nets": 1, "tasks": 2, "lab": 3}
    floors |= {"experiments": 4, "papers": 4, "site": 5, "cli": 6}
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0]
        if room not in floors:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("etude."):
                continue
            other = node.module.split(".")[1]
            if other == room:
                continue
            assert floors.get(other, 0) < floors[room] or (room, other) in ALLOWED_SIDEWAYS, (
                f"{path.relative_to(PACKAGE)} imports {node.module}"
            )


ALLOWED_SIDEWAYS = set()


def test_no_file_is_over_the_ceiling():
    long = [p.name for p in PACKAGE.rglob("*.py") if p.read_text().count("\n") > LONGEST]
    assert long == []


def test_importing_etude_and_asking_for_help_load_no_torch():
    import subprocess
    import sys

    code = (
        "import sys, etude, etude.core, etude.cli\n"
        "from click.testing import CliRunner\n"
        "assert CliRunner().invoke(etude.cli.cli, ['--help']).exit_code == 0\n"
        "etude.core.cards()\n"
        "heavy = {'torch', 'sklearn', 'polars', 'sqlalchemy', 'matplotlib', 'fastapi', 'scipy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert etude.__version__
