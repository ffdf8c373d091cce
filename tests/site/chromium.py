"""A real browser for tests, and a real site in a process of its own."""

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update"]  # fmt: skip
FOUND = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")


@contextmanager
def browser():
    """Chromium; the test is skipped where there is none."""
    if not FOUND:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as play:
        made = play.chromium.launch(executable_path=FOUND, args=FLAGS)
        yield made
        made.close()


@contextmanager
def running_site(folder, *options, **environment):
    """``etude site`` on a free port; gives its address. It must end well by Ctrl-C."""
    command = [
        sys.executable, "-m", "etude", "site", "--port", "0", "--no-open",
        "--database", str(folder / "papers.sqlite"), "--ledger", str(folder / "ledger.sqlite"),
        "--folder", str(folder / "site"), *options,
    ]  # fmt: skip
    facts = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    site = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=facts
    )
    try:
        line = site.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, line + (site.stderr.read() if site.poll() is not None else "")
        yield found[0]
    finally:
        site.send_signal(signal.SIGINT)
        try:
            _, said = site.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            site.kill()
            raise
    assert site.returncode == 0, said
    assert "Traceback" not in said
