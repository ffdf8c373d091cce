"""Shared set-up of the site's tests: an empty database of one's own, SQLite or PostgreSQL."""

import os
import uuid

import pytest

SERVER = os.environ.get("ETUDE_TEST_POSTGRES", "")


@pytest.fixture(autouse=True)
def own_papers(tmp_path, monkeypatch):
    """Every test has papers of its own, never the user's, and no mail server from outside."""
    monkeypatch.setenv("ETUDE_PAPERS", str(tmp_path / "papers.sqlite"))
    for name in ("ETUDE_SMTP", "ETUDE_MAIL_FROM", "ETUDE_SECRET", "ETUDE_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database(request, tmp_path):
    """An empty database's URL; on PostgreSQL a schema that is dropped afterwards."""
    if request.param == "sqlite":
        yield str(tmp_path / "papers.sqlite")
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
