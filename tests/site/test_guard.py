"""The guard: forged posts, large bodies, headers, tokens, the reader's cookie, rates."""

import datetime as dt
from types import SimpleNamespace

import pytest
import time_machine
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse
from fastapi.testclient import TestClient

from etude.core import EtudeError
from etude.site import settings as module
from etude.site.guard import HEADERS, Guard, address, limit, read, reader, sign
from etude.site.settings import Settings

NOW = dt.datetime(2026, 11, 24, 12, tzinfo=dt.UTC)


def make_site(tmp_path, **settings):
    return SimpleNamespace(settings=Settings(folder=tmp_path, **settings))


def make_client(site, **how):
    app = FastAPI()

    @app.api_route("/change", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
    @app.post("/unsubscribe/{token}")
    @app.post("/papers/{token}/try")
    async def change(token: str = "") -> str:
        return "done"

    @app.get("/own")
    async def own() -> PlainTextResponse:
        return PlainTextResponse("x", headers={"Content-Security-Policy": "default-src 'self'"})

    @app.get("/who")
    async def who(request: Request) -> str:
        return reader(site, request)

    @app.get("/often")
    async def often(request: Request) -> str:
        limit(site, request, "often", "3/minute")
        return "ok"

    app.add_middleware(Guard, site=site)
    return TestClient(app, base_url=how.pop("base_url", "http://127.0.0.1:8000"), **how)


@pytest.fixture
def site(tmp_path):
    return make_site(tmp_path)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://127.0.0.1:8000"}, 403),
        ({"Sec-Fetch-Site": ""}, 403),
        ({"Origin": "http://127.0.0.1:8000"}, 200),
        ({"Origin": "https://etude.example"}, 200),
        ({"Origin": "http://127.0.0.1:9000"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://etude.example.evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({}, 200),
    ],
)
def test_a_post_from_a_foreign_page_is_refused(tmp_path, method, headers, status) -> None:
    client = make_client(make_site(tmp_path, base_url="https://etude.example"))
    assert client.request(method, "/change", headers=headers).status_code == status
    assert client.get("/change", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200), ("[::1]:8000", 200), ("localhost", 200), ("box:80", 200),
        ("etude.example", 200), ("a.localhost", 200), ("rebound.evil.example:8000", 403),
        ("etude.example.evil.example", 403), ("", 403),
    ],
)  # fmt: skip
def test_a_foreign_name_for_this_machine_is_refused(tmp_path, host, status) -> None:
    client = make_client(make_site(tmp_path, base_url="https://etude.example"))
    headers = {"Host": host, "Sec-Fetch-Site": "same-origin"}
    assert client.post("/change", headers=headers).status_code == status


def test_only_the_one_click_path_takes_foreign_posts(site) -> None:
    client = make_client(site)
    headers = {"Sec-Fetch-Site": "cross-site", "Origin": "https://mail.example"}
    assert client.post("/unsubscribe/token", headers=headers).status_code == 200
    assert client.post("/papers/x/try", headers=headers).status_code == 403


def test_refusals_have_the_one_shape(site) -> None:
    client = make_client(site)
    refused = client.post("/change", headers={"Origin": "https://evil.example"})
    assert refused.json()["error"]["status"] == 403
    assert "another site" in refused.json()["error"]["message"]
    page = client.post("/change", headers={"Host": "<b>.evil.example", "Accept": "text/html"})
    assert page.headers["content-type"].startswith("text/html")
    assert "&lt;b&gt;" in page.text
    assert "<b>" not in page.text


def test_large_and_unmeasured_bodies_are_refused(site) -> None:
    client = make_client(site)
    assert client.post("/change", content=b"x" * 65_536).status_code == 200
    assert client.post("/change", content=b"x" * 65_537).status_code == 413
    assert client.post("/change", content=iter([b"x"])).status_code == 411
    assert client.post("/change", headers={"Content-Length": "many"}).status_code == 400
    assert client.post("/papers/x/try", content=b"x" * 65_537).status_code == 200


def test_a_zero_byte_in_the_address_is_refused(site) -> None:
    client = make_client(site)
    assert client.get("/change?a=%00").status_code == 400
    assert client.get("/%00").status_code == 400
    assert client.post("/unsubscribe/%00").status_code == 400
    assert client.get("/change?a=%2500").status_code == 200


def test_every_answer_has_the_headers(site) -> None:
    client = make_client(site)
    for answer in (client.get("/change"), client.get("/none"), client.post(
        "/change", headers={"Origin": "https://evil.example"}
    )):  # fmt: skip
        assert HEADERS.items() <= dict(answer.headers).items()
        assert "strict-transport-security" not in answer.headers
    assert client.get("/own").headers["content-security-policy"] == "default-src 'self'"
    assert "unsafe" not in HEADERS["content-security-policy"]


def test_over_https_the_browser_is_told_to_stay(tmp_path) -> None:
    client = make_client(make_site(tmp_path, base_url="https://etude.example"))
    answer = client.get("/who")
    assert "max-age" in answer.headers["strict-transport-security"]
    assert "; Secure" in answer.headers["set-cookie"]


def test_a_token_comes_back_whole(site) -> None:
    assert read(site, "confirm", sign(site, "confirm", ["é", 1]), 60) == ["é", 1]
    assert read(site, "confirm", sign(site, "confirm", {"a": None}), None) == {"a": None}


def test_a_forged_token_is_refused(tmp_path) -> None:
    site = make_site(tmp_path, secret="one" * 20)
    token = sign(site, "confirm", "a@b.example")
    for i in range(0, len(token), 3):
        changed = token[:i] + ("A" if token[i] != "A" else "Q") + token[i + 1 :]
        with pytest.raises(EtudeError, match="not one of this site"):
            read(site, "confirm", changed, 60)
    for other in ("", ".", "a.b.c", token[:-1], "é" * 10, "\0", token * 50):
        with pytest.raises(EtudeError, match="not one of this site"):
            read(site, "confirm", other, 60)
    with pytest.raises(EtudeError, match="not one of this site"):
        read(make_site(tmp_path, secret="two" * 20), "confirm", token, 60)


def test_a_token_of_another_purpose_is_refused(site) -> None:
    with pytest.raises(EtudeError, match="not one of this site"):
        read(site, "unsubscribe", sign(site, "confirm", 1), 60)


def test_a_token_expires(site) -> None:
    with time_machine.travel(NOW, tick=False) as clock:
        token = sign(site, "confirm", 1)
        clock.shift(60)
        assert read(site, "confirm", token, 60) == 1
        clock.shift(2)
        with pytest.raises(EtudeError, match="expired"):
            read(site, "confirm", token, 60)
        assert read(site, "confirm", token, None) == 1


def test_the_secret_is_kept_and_private(tmp_path) -> None:
    token = sign(make_site(tmp_path / "a"), "confirm", 1)
    assert read(make_site(tmp_path / "a", proxies=1), "confirm", token, 60) == 1
    with pytest.raises(EtudeError):
        read(make_site(tmp_path / "b"), "confirm", token, 60)
    assert (tmp_path / "a" / "secret").stat().st_mode & 0o077 == 0


def test_a_reader_keeps_the_name(site) -> None:
    client = make_client(site)
    first = client.get("/who")
    assert "HttpOnly" in first.headers["set-cookie"]
    assert "SameSite=Lax" in first.headers["set-cookie"]
    again = client.get("/who")
    assert again.json() == first.json()
    assert "set-cookie" not in again.headers
    assert make_client(site).get("/who").json() != first.json()


def test_a_forged_cookie_names_nobody(site) -> None:
    client = make_client(site)
    name = client.get("/who").json()
    other = make_client(site, cookies={"etude_reader": sign(site, "confirm", name)})
    assert other.get("/who").json() != name


def test_reading_pages_sets_no_cookie(site) -> None:
    assert "set-cookie" not in make_client(site).get("/change").headers


def test_a_rate_is_per_address_and_ends(site) -> None:
    with time_machine.travel(NOW, tick=False) as clock:
        client = make_client(site, client=("192.0.2.1", 1))
        assert [client.get("/often").status_code for _ in range(5)] == [200, 200, 200, 429, 429]
        assert 1 <= int(client.get("/often").headers["retry-after"]) <= 61
        assert make_client(site, client=("192.0.2.2", 1)).get("/often").status_code == 200
        clock.shift(61)
        assert client.get("/often").status_code == 200


def asked(client, *forwarded):
    headers = [(b"x-forwarded-for", value.encode()) for value in forwarded]
    return Request({"type": "http", "client": client, "headers": headers})


@pytest.mark.parametrize(
    ("proxies", "client", "forwarded", "expected"),
    [
        (0, "192.0.2.1", ["198.51.100.1"], "192.0.2.1"),
        (1, "127.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        (1, "127.0.0.1", ["203.0.113.9, 198.51.100.1"], "198.51.100.1"),
        (1, "127.0.0.1", ["203.0.113.9", "198.51.100.1"], "198.51.100.1"),
        (2, "127.0.0.1", ["203.0.113.9, 198.51.100.1, 10.0.0.1"], "198.51.100.1"),
        (2, "127.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        (1, "127.0.0.1", [], "127.0.0.1"),
        (0, "2001:db8:1:2:3:4:5:6", [], "2001:db8:1:2::/64"),
        (0, "::ffff:192.0.2.1", [], "192.0.2.1"),
        (1, "127.0.0.1", ["<script>" * 20], ("<script>" * 20)[:64]),
    ],
)
def test_the_address_is_what_trusted_hops_saw(tmp_path, proxies, client, forwarded, expected):
    site = make_site(tmp_path, proxies=proxies)
    assert address(site, asked((client, 1), *forwarded)) == expected


@pytest.mark.parametrize(
    "headers",
    [{"Host": "["}, {"Host": "[::1"}, {"Origin": "http://["}, {"Origin": "http://[x]:y/"}],
)
def test_an_address_that_cannot_be_read_is_refused(site, headers) -> None:
    answer = make_client(site).post("/change", headers=headers)
    assert answer.status_code == 403
    assert HEADERS.items() <= dict(answer.headers).items()


def test_a_secret_that_can_be_guessed_is_refused(tmp_path) -> None:
    with pytest.raises(EtudeError, match="ETUDE_SECRET must have at least 16") as caught:
        make_site(tmp_path, secret="geheim")
    assert "geheim" not in str(caught.value)


def test_a_secret_that_was_not_written_signs_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "WRITING_S", 0.05)
    (tmp_path / "secret").write_text("")
    with pytest.raises(EtudeError, match="holds no whole secret: delete it"):
        sign(make_site(tmp_path), "confirm", 1)


def test_a_secret_that_another_process_is_writing_is_waited_for(tmp_path, monkeypatch) -> None:
    path, looks = tmp_path / "secret", []
    path.write_text("")

    def write(seconds: float) -> None:
        looks.append(seconds)
        path.write_text("k" * 64)

    monkeypatch.setattr(module.time, "sleep", write)
    assert make_site(tmp_path).settings.key() == "k" * 64
    assert len(looks) == 1
