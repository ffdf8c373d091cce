"""Trials over HTTP: who may start one, and what the form refuses."""

import asyncio
import io
import re
import zipfile
from dataclasses import replace

import httpx2
import numpy as np
import pytest
from trying import HOSTILE, JSON, PAPER, client, send, table

from etude.core import cards
from etude.site import process, trials
from etude.site.app import make_app
from etude.site.settings import Settings
from etude.site.worker import uploads_of

# Who may start one


def test_off_by_default(settings, quick) -> None:
    assert Settings().allow_trials is False
    with client(replace(settings, allow_trials=False)) as site:
        page = site.get(f"/papers/{PAPER}/try")
        assert "--allow-trials" in page.text
        assert 'name="seeds"' not in page.text
        for answer in (
            site.post(f"/papers/{PAPER}/try", data={"data": "iris", "seeds": "2"}, headers=JSON),
            send(site, table(), headers=JSON),
        ):
            assert answer.status_code == 403
            assert "etude site --allow-trials" in answer.json()["error"]["message"]
        assert site.get("/runs.json").json() == {"runs": []}
    assert not uploads_of(settings).exists()


def test_a_kept_page_is_not_reused_when_trials_are_switched_on(settings, quick) -> None:
    path = f"/papers/{PAPER}/try"
    with client(replace(settings, allow_trials=False)) as site:
        kept = {"if-none-match": site.get(path).headers["etag"]}
        assert site.get(path, headers=kept).status_code == 304
    with client(settings) as site:
        answer = site.get(path, headers=kept)
        assert (answer.status_code, 'name="seeds"' in answer.text) == (200, True)


@pytest.mark.parametrize(
    ("host", "base", "more"),
    [
        ("10.0.0.7", "http://127.0.0.1:8000", {}),
        ("127.0.0.1", "http://192.168.0.9:8000", {}),
        ("127.0.0.1", "http://127.0.0.1:8000", {"x-forwarded-for": "10.0.0.7"}),
    ],
)
def test_from_elsewhere_nothing_starts_without_a_token(settings, quick, host, base, more) -> None:
    with client(settings, host, base) as site:
        answer = site.post(
            f"/papers/{PAPER}/try", data={"data": "iris", "seeds": "2"}, headers=JSON | more
        )
        assert answer.status_code == 403
        assert "ETUDE_TOKEN" in answer.json()["error"]["message"]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_from_this_machine_none_is_needed(settings, quick, host) -> None:
    with client(settings, host, "http://localhost:8000") as site:
        answer = site.post(f"/papers/{PAPER}/try", data={"data": "iris", "seeds": "2"})
        assert answer.status_code == 303
        assert re.fullmatch(r"/runs/[0-9a-f]{16}", answer.headers["location"])


def test_the_token_is_wanted_in_the_form_or_the_header(settings, quick) -> None:
    with client(replace(settings, token="tök en"), "10.0.0.7") as site:
        assert 'name="token"' in site.get(f"/papers/{PAPER}/try").text
        words = {"data": "iris", "seeds": "2"}
        for wrong in ({}, {"token": ""}, {"token": "tök"}, {"token": "tök en2"}):
            answer = site.post(f"/papers/{PAPER}/try", data=words | wrong)
            assert answer.status_code == 403, wrong
        assert (
            site.post(f"/papers/{PAPER}/try", data=words | {"token": "tök en"}).status_code == 303
        )
    with client(replace(settings, token="abc"), "10.0.0.7") as site:
        for given, status in (("Bearer abd", 403), ("Basic abc", 403), ("bearer abc", 303)):
            headers = {"authorization": given}
            answer = site.post(f"/papers/{PAPER}/try", data=words, headers=headers)
            assert answer.status_code == status, given
        assert site.get("/runs.json").json()["runs"][0]["data"] == "iris"


def test_a_form_from_another_site_is_refused(settings, quick) -> None:
    with client(settings) as site:
        headers = {"sec-fetch-site": "cross-site"}
        assert send(site, table(), headers=headers).status_code == 403
        stopping = site.post("/runs/" + "0" * 16 + "/stop", headers=headers)
        assert stopping.status_code == 403


def test_too_many_forms_are_refused(settings, quick, monkeypatch) -> None:
    monkeypatch.setattr(trials, "RATE", "2/hour")
    with client(settings) as site:
        codes = [
            site.post(f"/papers/{PAPER}/try", data={"seeds": "x"}).status_code for _ in range(3)
        ]
    assert codes == [422, 422, 429]


def test_a_full_queue_refuses_and_keeps_no_file(settings, quick) -> None:
    with client(replace(settings, trial_queue=1)) as site:
        assert send(site, table()).status_code == 303
        answer = send(site, table(), headers=JSON)
        assert answer.status_code == 503
        assert "1 trials wait" in answer.json()["error"]["message"]
    assert len(list(uploads_of(settings).iterdir())) == 1


# What the form refuses


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"data": "iris", "seeds": "1"}, "seeds must be a number from 2 to 10"),
        ({"data": "iris", "seeds": "11"}, "seeds must be"),
        ({"data": "iris", "seeds": "²"}, "seeds must be"),
        ({"data": "/etc/passwd", "seeds": "2"}, "data must be a file, or one of digits"),
        ({"data": "", "seeds": "2"}, "data must be"),
        ({"data": "iris", "seeds": "2", "target": "nope"}, "target must be 'class'"),
        ({"data": "iris", "seeds": "2", "target": "x" * 300}, "at most 200"),
        ({"data": "iris", "seeds": "2", "missing": "guess"}, "missing must be one of"),
    ],
)
def test_the_reason_stands_above_the_form(settings, quick, words, match) -> None:
    with client(settings) as site:
        page = site.post(f"/papers/{PAPER}/try", data=words)
        assert page.status_code == 422
        alert = page.text.partition('role="alert"')[2].partition("<form")[0]
        assert match in alert.replace("&#39;", "'")
        answer = site.post(f"/papers/{PAPER}/try", data=words, headers=JSON)
        assert answer.status_code == 422
        assert match in answer.json()["error"]["message"]
        assert site.get("/runs.json").json() == {"runs": []}


def test_what_was_chosen_stays_chosen_but_not_the_token(settings, quick) -> None:
    with client(replace(settings, token="the-token")) as site:
        words = {"data": "wine", "seeds": "99", "target": HOSTILE, "token": "the-token"}
        page = site.post(f"/papers/{PAPER}/try", data=words).text
        assert '<option value="wine" selected>' in page
        assert 'value="99"' in page
        assert "the-token" not in page
        assert HOSTILE not in page
        assert "&lt;img src=x" in page


def zipped(members) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return out.getvalue()


def npy(array) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "status", "match"),
    [
        ("a.npz", zipped([("x.npy", npy(np.zeros(1 << 21)))]), 422, "times its size"),
        ("a.npz", zipped([("../x.npy", npy(np.zeros(3)))]), 422, "plain names"),
        ("a.npz", zipped([("x.npy", npy(np.array([{}])))]), 422, "pickle"),
        ("a.npz", zipped([("x.npy", npy(np.zeros((9, 2))))]), 422, "an array y"),
        ("a.npz", b"a,b\n1,2\n", 422, "NPZ file as its name says"),
        ("a.pkl", b"\x80\x04", 422, "must end in"),
        ("a.csv", table() * 200, 413, "at most 0 MB"),
        ("a.csv", b"a,b\n1,2\n3,4\n", 422, "a.csv"),
        ("a.csv", b"a,b\n1,u\n2\n", 422, "a.csv: row 2 must have 2 cells"),
    ],
)
def test_bad_files_are_refused_and_deleted(settings, quick, name, content, status, match) -> None:
    with client(replace(settings, upload_bytes=30_000)) as site:
        answer = send(site, content, name, JSON, seeds="2")
        assert (answer.status_code, match in answer.json()["error"]["message"]) == (status, True)
        assert str(settings.folder) not in answer.text
        assert site.get("/runs.json").json() == {"runs": []}
    root = uploads_of(settings)
    assert not root.exists() or list(root.iterdir()) == []


def test_a_large_body_is_cut_while_it_streams(settings, quick, monkeypatch) -> None:
    taken = []

    def pieces():
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\n'
        for _ in range(10_000):
            taken.append(1)
            yield b"1,2\n" * 250

    with client(replace(settings, upload_bytes=10_000)) as site:
        answer = site.post(
            f"/papers/{PAPER}/try", content=pieces(),
            headers={"content-type": "multipart/form-data; boundary=b"} | JSON,
        )  # fmt: skip
    assert answer.status_code == 413
    assert not uploads_of(settings).exists()


def test_a_file_that_breaks_the_reader_is_told(settings, quick, monkeypatch) -> None:
    def broken(*_, **__):
        raise process.BrokenLimitError("the trial took longer than 30 s")

    monkeypatch.setattr(process, "run", broken)
    with client(settings) as site:
        assert send(site, table(), headers=JSON).status_code == 422
    assert list(uploads_of(settings).iterdir()) == []


def test_what_cannot_be_tried_says_why(settings, quick) -> None:
    with client(settings) as site:
        key = next(k for k, card in cards().items() if card.task == "experiment")
        facts = trials.form_facts(site.app.state.site, "x", key)
        assert facts["is_experiment"]
        store = site.app.state.site.store
        paper = next(entry for entry in store.everything() if entry.slug == key)
        page = site.get(f"/papers/{paper.id}/try").text
        assert f"etude verify {facts['method']}" in page
        assert 'name="seeds"' not in page
        answer = site.post(f"/papers/{paper.id}/try", data={"data": "iris"}, headers=JSON)
        assert answer.status_code == 422
        assert "etude verify" in answer.json()["error"]["message"]
        none = next(e for e in store.everything() if e.slug not in cards())
        for name in (none.id, "9999.99999", "a%00b"):
            status = site.post(f"/papers/{name}/try", headers=JSON).status_code
            assert status in (400, 404), name
        assert trials.form_facts(site.app.state.site, "x", "") is None


@pytest.mark.parametrize("how", ["header", "field"])
def test_a_token_cannot_be_found_by_trying(settings, quick, monkeypatch, how) -> None:
    monkeypatch.setattr(trials, "RATE", "3/hour")
    with client(replace(settings, token="abc"), "10.0.0.7") as site:
        codes = []
        for guess in ("aba", "abb", "abd", "abc"):
            headers = {"authorization": f"Bearer {guess}"} if how == "header" else {}
            words = {"data": "iris", "seeds": "2"} | ({"token": guess} if how == "field" else {})
            answer = site.post(f"/papers/{PAPER}/try", data=words, headers=headers)
            codes.append(answer.status_code)
    assert codes == [403, 403, 403, 429]


def test_slow_forms_of_one_address_keep_no_other_out(settings, quick, monkeypatch) -> None:
    at_the_door, real = [], trials.address
    monkeypatch.setattr(
        trials, "address", lambda *facts: at_the_door.append(1) or real(*facts)
    )  # fmt: skip
    app = make_app(replace(settings, token="abc"))
    path, kind = f"/papers/{PAPER}/try", {"content-type": "multipart/form-data; boundary=b"}

    async def main() -> int:
        end = asyncio.Event()

        async def slow():
            yield b"--b\r\n"
            await end.wait()

        def of(host: str) -> httpx2.AsyncClient:
            way = httpx2.ASGITransport(app, client=(host, 5))
            return httpx2.AsyncClient(transport=way, base_url="http://127.0.0.1:8000")

        async with of("10.0.0.7") as many, of("10.0.0.8") as one:
            held = [
                asyncio.create_task(many.post(path, content=slow(), headers=kind))
                for _ in range(trials.AT_ONCE + 2)
            ]
            while len(at_the_door) < len(held):
                await asyncio.sleep(0.01)
            words = {"data": "iris", "seeds": "2", "token": "abc"}
            answer = await asyncio.wait_for(one.post(path, data=words), 60)
            end.set()
            await asyncio.gather(*held)
        return answer.status_code

    assert asyncio.run(main()) == 303
