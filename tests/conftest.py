"""Shared set-up: few threads, a ledger of one's own, no look at the user's home."""

import os
import uuid

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

SERVER = os.environ.get("ETUDE_TEST_POSTGRES", "")


@pytest.fixture(autouse=True)
def own_ledger(tmp_path, monkeypatch):
    """Every test has a ledger of its own, never the user's."""
    monkeypatch.setenv("ETUDE_LEDGER", str(tmp_path / "ledger.sqlite"))


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database(request, tmp_path):
    """An empty database's URL: a file, and on PostgreSQL a schema that is dropped afterwards."""
    if request.param == "sqlite":
        yield str(tmp_path / "deep" / "fresh.sqlite")
        return
    if not SERVER:
        pytest.skip("ETUDE_TEST_POSTGRES names no PostgreSQL server")
    import psycopg

    schema = f"t{uuid.uuid4().hex}"
    with psycopg.connect(SERVER, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
        mark = "&" if "?" in SERVER else "?"
        yield f"{SERVER}{mark}options=-csearch_path%3D{schema}"
        connection.execute(f"DROP SCHEMA {schema} CASCADE")
