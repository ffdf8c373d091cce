"""The start: nothing is loaded before the site answers, and nothing is left for first readers."""

import json
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from chromium import running_site
from trying import wait_for

CODE = """
import json, sys, threading
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from numba.core.dispatcher import Dispatcher
from site_set_up import site_client
from etude.papers.finder import Finder
from etude.papers.search import kernels
from etude.site import facts, index

def loaded(site):
    loops = {n: len(f.signatures) for n, f in vars(kernels).items() if isinstance(f, Dispatcher)}
    templates = sorted(name for _, name in site.templates.cache.keys())
    modules = {name.partition(".")[0] for name in sys.modules} | set(sys.modules)
    return loops, templates, modules, facts.verdict_of.cache_info().misses

with site_client(Path(sys.argv[2])) as client:
    site = client.app.state.site
    asked, real = [], Finder.sync
    Finder.sync = lambda self, tell=None: asked.append(site.answers.is_set()) or real(self, tell)
    with index.in_step(site):
        (thread,) = [t for t in threading.enumerate() if t.name == "etude-index"]
        thread.join(0.5)
        waits = thread.is_alive() and index.progress(site) is not None and not asked
        early = loaded(site)
        site.answers.set()
        thread.join(200)
        ready = not thread.is_alive() and index.progress(site) is None
    before = loaded(site)
    paths = ("/", "/papers/2405.19504", "/papers?q=graph+embeddings", "/methods",
             "/papers?q=%22neural+network%22+-x&runnable=yes", "/papers/trending", "/about")
    codes = [client.get(path).status_code for path in paths]
    after = loaded(site)
heavy = ("torch", "numba", "scipy", "numpy", "tokenizers", "etude.papers", "etude.lab")
print(json.dumps({
    "waits": waits, "asked": asked, "ready": ready, "codes": codes, "early": sum(early[0].values()),
    "loops": [before[0], after[0]], "templates": [before[1], after[1]],
    "verdicts": [before[3], after[3]],
    "new": sorted(m for m in after[2] - before[2] if m.startswith(heavy)),
    "torch": "torch" in after[2],
}))
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What a process of its own had loaded, before and after its first readers."""
    folder = tmp_path_factory.mktemp("warm")
    facts = {"HOME": str(folder), "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(Path(__file__).parent), str(folder)],
        capture_output=True, text=True, timeout=280, env=facts,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.timeout(300)
def test_nothing_is_loaded_before_the_site_answers(seen) -> None:
    assert seen["waits"]
    assert seen["asked"]
    assert all(seen["asked"])
    assert seen["early"] == 0


@pytest.mark.timeout(300)
def test_first_readers_load_nothing(seen) -> None:
    assert seen["ready"]
    assert set(seen["codes"]) == {200}
    assert seen["new"] == []
    for name in ("loops", "templates", "verdicts"):
        before, after = seen[name]
        assert before, name
        assert before == after, name


@pytest.mark.timeout(300)
def test_a_search_loads_no_torch(seen) -> None:
    assert not seen["torch"]


@pytest.mark.timeout(280)
def test_the_command_says_when_it_answers_and_makes_the_index(tmp_path) -> None:
    (tmp_path / "site").mkdir()
    with running_site(tmp_path) as address, httpx2.Client(base_url=address, timeout=100) as client:
        assert client.get("/").status_code == 200
        query = {"q": "graph embeddings"}
        wait_for(lambda: client.get("/papers.json", params=query).status_code == 200, 200)
        assert client.get("/papers.json", params=query).json()["papers"]
