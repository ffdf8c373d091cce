"""Shared set-up: few threads, a ledger of one's own, no look at the user's home."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest


@pytest.fixture(autouse=True)
def own_ledger(tmp_path, monkeypatch):
    """Every test has a ledger of its own, never the user's."""
    monkeypatch.setenv("ETUDE_LEDGER", str(tmp_path / "ledger.sqlite"))
