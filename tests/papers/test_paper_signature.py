"""Signatures read from source text, against what inspect says of the imported method."""

import inspect
import subprocess
import sys
from types import SimpleNamespace

import pytest

from etude.core import EtudeError, cards, load
from etude.papers import signature as module
from etude.papers.signature import signature


@pytest.mark.parametrize("key", list(cards()))
def test_names_agree_with_the_loaded_method(key: str) -> None:
    card = cards()[key]
    method = load(card)
    first = signature(card)[0]
    assert first.startswith(method.__name__ + "(")
    for name in inspect.signature(method).parameters:
        assert name in first
    assert "self" not in first
    for line in signature(card)[1:]:
        assert hasattr(method, line[1:].split("(")[0])


SOURCE = '''
__all__ = ["Thing", "plain", "Bare"]
class Thing:
    def __init__(self, dim: int, *, scale: float = 2.0) -> None: ...
    def fit(self, features: int) -> "Thing": ...
    @staticmethod
    def make(n: int) -> int: ...
    def _hidden(self) -> None: ...
def plain(x: int, *, k: int = 3) -> int: ...
class Bare: ...
'''  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "Thing",
            [
                "Thing(dim: int, *, scale: float=2.0)",
                ".fit(features: int) -> 'Thing'",
                ".make(n: int) -> int",
            ],
        ),
        ("plain", ["plain(x: int, *, k: int=3) -> int"]),
        ("Bare", ["Bare()"]),
    ],
)
def test_forms(tmp_path, monkeypatch, name, expected) -> None:
    (tmp_path / "heads").mkdir()
    (tmp_path / "heads" / "thing.py").write_text(SOURCE)
    card = SimpleNamespace(family="heads", slug="thing", key="heads.thing")
    monkeypatch.setattr(module, "PACKAGE", tmp_path)
    monkeypatch.setattr(module, "public_names", lambda _: [name])
    assert signature(card) == expected
    monkeypatch.setattr(module, "public_names", lambda _: ["Absent"])
    with pytest.raises(EtudeError, match="Absent of __all__ is not defined"):
        signature(card)


def test_no_torch_is_loaded() -> None:
    code = (
        "import sys; from etude.papers import paper_of; from etude.papers.about import about; "
        "about(paper_of('fast_rp')); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
