"""What the tests of trials share: a site's client, a table, sending it, and processes watched."""

import time
from pathlib import Path

import numpy as np
from fastapi.testclient import TestClient

from etude.site.app import make_app
from etude.site.settings import Settings

PAPER = "2302.02334"  # a naive Bayes probe: the cheapest method
JSON = {"accept": "application/json"}
HOSTILE = '<img src=x onerror="alert(1)">'


def settings_in(folder) -> Settings:
    return Settings(
        database=str(folder / "papers.sqlite"), ledger=str(folder / "ledger.sqlite"),
        folder=folder / "site", allow_trials=True, secret="s" * 32,
    )  # fmt: skip


def client(settings, host: str = "127.0.0.1", base: str = "http://127.0.0.1:8000"):
    made = TestClient(
        make_app(settings), base_url=base, client=(host, 5), follow_redirects=False,
        headers={"accept": "text/html"},
    )  # fmt: skip
    return made


def table(name: str = "kind", n: int = 40) -> bytes:
    rng = np.random.default_rng(0)
    rows = (f"{v:.3f},{'uv'[i % 2]}" for i, v in enumerate(rng.normal(size=n)))
    return (f'size,"{name.replace(chr(34), chr(34) * 2)}"\n' + "\n".join(rows) + "\n").encode()


def send(site, content: bytes, name: str = "a.csv", headers=None, **words):
    file = {"file": (name, content, "application/octet-stream")}
    return site.post(f"/papers/{PAPER}/try", data=words, files=file, headers=headers or {})


def wait_for(found, seconds: float = 120):
    """What `found` gives once it gives something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = found()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError("it did not come")


def is_there(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def gone_in(pid: int, seconds: float = 15) -> bool:
    end = time.monotonic() + seconds
    while is_there(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not is_there(pid)
