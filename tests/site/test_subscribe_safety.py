"""Subscribing under attack: probing, rates, hostile fields, CSRF on every POST, secrets."""

import logging
import re
import threading
import time

import pytest
import time_machine
from fastapi.testclient import TestClient
from postbox import ADA, HTML, everyone, make_client, sign_up

from etude.core import EtudeError
from etude.site import subscribe
from etude.site.app import make_app
from etude.site.digest import readers_of
from etude.site.guard import sign
from etude.site.settings import Settings

DAY = 86_400


def test_an_address_cannot_be_probed(app, inbox, readers) -> None:
    """The same answer, statement by statement the same work, whatever is known of an address."""
    import sqlalchemy as sa

    def ask(host, address):
        found = []
        engine = readers.database._engine

        def note(connection, cursor, statement, *rest):
            found.append(statement)

        sa.event.listen(engine, "before_cursor_execute", note)
        count = len(inbox.mails)
        answer = make_client(app, host).post("/subscribe", data={"email": address})
        sa.event.remove(engine, "before_cursor_execute", note)
        headers = {k: v for k, v in answer.headers.items() if k != "date"}
        return (answer.status_code, headers, answer.text), found, len(inbox.mails) - count

    client = make_client(app)
    for name in ("known", "gone", "bounced"):
        sign_up(client, inbox, f"{name}@example.org")
    client.post("/subscribe", data={"email": "pending@example.org"})
    readers.unsubscribe(everyone(readers)["gone@example.org"].key)
    with readers.database.begin() as connection:
        table = sa.table("readers", sa.column("address"), sa.column("state"))
        connection.execute(
            sa.update(table).where(table.c.address == "bounced@example.org").values(state="stopped")
        )
    results = [
        ask(f"198.51.100.{i}", f"{name}@example.org")
        for i, name in enumerate(("unknown", "known", "gone", "bounced", "pending"))
    ]
    assert all(result == results[0] for result in results)
    assert results[0][2] == 1


def test_mails_to_one_address_are_limited_without_a_word(app, inbox) -> None:
    answers = [
        make_client(app, f"198.51.100.{i}").post("/subscribe", data={"email": address})
        for i, address in enumerate(
            [ADA, "ADA@example.org", "ada+x@example.org", "ada+y@example.org", "Ada@Example.org"]
        )
    ]
    assert {(a.status_code, a.text) for a in answers} == {(202, answers[0].text)}
    assert len(inbox.mails) == 3
    with time_machine.travel(time.time() + DAY + 60):
        make_client(app).post("/subscribe", data={"email": ADA})
    assert len(inbox.mails) == 4


def test_one_network_is_limited_over_a_restart(app, inbox, database, tmp_path) -> None:
    client = make_client(app)
    codes = [
        client.post("/subscribe", data={"email": f"a{i}@example.org"}).status_code
        for i in range(11)
    ]
    assert codes == [202] * 10 + [429]
    again = make_app(app.state.site.settings)
    refused = make_client(again).post("/subscribe", data={"email": "b@example.org"})
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 3601
    other = make_client(again, "192.0.2.2").post("/subscribe", data={"email": "b@example.org"})
    assert other.status_code == 202
    with time_machine.travel(time.time() + 3_660):
        assert (
            make_client(again).post("/subscribe", data={"email": "b@example.org"}).status_code
            == 202
        )
    readers_of(again.state.site).close()
    again.state.site.store.close()


def test_links_are_limited_too(client) -> None:
    codes = [client.get("/confirm/guess").status_code for _ in range(62)]
    assert codes == [400] * 60 + [429] * 2


@pytest.mark.parametrize(
    "fields",
    [
        {"email": "ada@example.org\r\nBcc: bob@example.org"}, {"email": "a@b.example,c@d.example"},
        {"email": "=?utf-8?q?=0D=0ABcc:_a?=@example.org"}, {"email": "' OR 1=1 --"},
        {"email": "<script>alert(1)</script>@x"}, {"email": "a\x00@example.org"}, {"email": ""},
        {"email": ADA, "frequency": "hourly'; DROP TABLE readers; --"},
        {"email": ADA, "query": "-a"}, {"email": ADA, "query": "()"},
    ],
)  # fmt: skip
def test_hostile_fields_are_refused(app, client, inbox, fields) -> None:
    answer = client.post("/subscribe", data=fields)
    assert answer.status_code in (400, 422)
    assert "<script>alert" not in answer.text
    told = make_client(app, Accept="application/json").post("/subscribe", data=fields)
    assert told.status_code in (400, 422)
    assert told.json()["error"]["message"]
    assert inbox.mails == []


@pytest.mark.parametrize(
    "query",
    ["<img src=x onerror=alert(1)>", "'; DROP TABLE readers; --", "{{ 7777*7777 }}", "é\u202e𝔞 \\"],
)
def test_hostile_searches_are_only_text(app, client, inbox, readers, query) -> None:
    sign_up(client, inbox, query=query)
    reader = everyone(readers)[ADA]
    page = client.get(f"/manage/{sign(app.state.site, 'manage', reader.key)}").text
    assert "<img" not in page
    assert "60481729" not in page
    # A stranger's words go to nobody's mailbox.
    assert "DROP" not in inbox.mails[0].as_string()
    assert "onerror" not in inbox.mails[0].as_string()


def test_the_mail_server_is_away_at_the_time_of_asking(app, client, inbox, readers) -> None:
    inbox.sender = "451 not now"
    assert client.post("/subscribe", data={"email": ADA}).status_code == 202
    assert inbox.mails == []
    inbox.sender = ""
    from etude.site.sending import send

    with time_machine.travel(time.time() + 61):
        assert send(app.state.site).confirmations == 1
        assert send(app.state.site).confirmations == 0
        assert client.post(inbox.link("confirm")).status_code == 200


def test_without_a_mail_server_the_page_says_so(database, tmp_path) -> None:
    app = make_app(Settings(database=database, folder=tmp_path / "silent"))
    client = TestClient(app, headers=HTML)
    assert "sends no mail" in client.get("/subscribe").text
    assert client.post("/subscribe", data={"email": ADA}).status_code == 503
    readers_of(app.state.site).close()
    app.state.site.store.close()


def test_private_pages_are_not_kept(app, client, inbox, readers) -> None:
    client.post("/subscribe", data={"email": ADA})
    for path in (inbox.link("confirm"), inbox.link("unsubscribe"), "/subscribe", "/confirm/x"):
        assert client.get(path).headers["cache-control"] == "no-store"


def test_old_requests_are_forgotten(client, readers, inbox) -> None:
    client.post("/subscribe", data={"email": "never@example.org"})
    assert readers.forget() == 0
    with time_machine.travel(time.time() + 31 * DAY):
        assert readers.forget() == 1


def test_no_network_address_is_kept_readable(app, client, readers, inbox) -> None:
    import sqlalchemy as sa

    client.post("/subscribe", data={"email": ADA})
    with readers.database.begin() as connection:
        rows = connection.execute(sa.text("SELECT network FROM readers_choices")).scalars().all()
    assert len(rows) == 1
    assert re.fullmatch("[0-9a-f]{32}", rows[0])


def test_the_password_of_the_mail_server_is_never_told(database, tmp_path, caplog, capsys) -> None:
    smtp = "smtp://etude:very-secret@127.0.0.1:9"
    app = make_app(
        Settings(database=database, folder=tmp_path / "site", smtp=smtp, secret="k" * 40)
    )
    site = app.state.site
    with caplog.at_level(logging.DEBUG):
        answer = TestClient(app, headers=HTML).post("/subscribe", data={"email": ADA})
    from etude.site.sending import send

    told = send(site).problem + answer.text + caplog.text + "".join(capsys.readouterr())
    assert "cannot be reached" in told
    assert "very-secret" not in told + repr(site.settings)
    assert "k" * 40 not in told + repr(site.settings)
    readers_of(site).close()
    site.store.close()


def posts(app):
    """Every (method, path) of the app that may change something, with its parameters filled."""
    found = set()

    def walk(routes, prefix=""):
        for route in routes:
            router = getattr(route, "original_router", None)  # what FastAPI keeps of an include
            inner = getattr(router or route, "routes", None)
            path = prefix + getattr(route, "path", "")
            if inner:
                walk(inner, path)
            for method in getattr(route, "methods", None) or ():
                if method not in ("GET", "HEAD", "OPTIONS"):
                    found.add((method, re.sub(r"\{[^}]*\}", "x", path)))

    walk(app.routes)
    for path, how in app.openapi()["paths"].items():
        for method in how:
            if method not in ("get", "head", "options"):
                found.add((method.upper(), re.sub(r"\{[^}]*\}", "x", path)))
    return sorted(found)


def test_every_post_from_a_foreign_page_is_refused(database, tmp_path, inbox) -> None:
    app = make_app(
        Settings(
            database=database, folder=tmp_path / "site", base_url="https://etude.example",
            smtp=f"smtp://127.0.0.1:{inbox.port}", allow_trials=True, token="t" * 20,
            ledger=str(tmp_path / "ledger.sqlite"),
        )
    )  # fmt: skip
    client = make_client(app)
    paths = posts(app)
    known = {path for _, path in paths}
    assert {"/subscribe", "/confirm/x", "/manage/x", "/unsubscribe/x", "/papers/x/vote",
            "/papers/x/try"} <= known  # fmt: skip
    foreign = [
        {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "same-site", "Origin": "https://evil.etude.example"},
        {"Origin": "https://evil.example"}, {"Origin": "null"},
    ]  # fmt: skip
    for method, path in paths:
        for headers in foreign:
            answer = client.request(method, path, headers=headers, data={"email": ADA})
            expected = 400 if path == "/unsubscribe/x" else 403
            assert answer.status_code == expected, (method, path, headers)
    assert inbox.mails == []
    readers_of(app.state.site).close()
    app.state.site.store.close()


def test_hostile_choices_are_refused_below_the_page(readers) -> None:
    with pytest.raises(EtudeError, match="daily or weekly"):
        readers.ask(ADA, "hourly", "", "net")
    with pytest.raises(EtudeError, match="on one line"):
        readers.ask(ADA, "daily", "a\nb", "net")


def test_a_mail_server_that_hangs_holds_one_thread(mailing_site, monkeypatch) -> None:
    """Those who come while it hangs go on, and what they asked for is looked at after it."""
    begun, go_on, looks = threading.Event(), threading.Event(), []

    def hang(site, *, digests):
        looks.append(digests)
        begun.set()
        assert go_on.wait(60)

    monkeypatch.setattr(subscribe, "send", hang)
    deliveries = subscribe.Deliveries(mailing_site)
    first = threading.Thread(target=deliveries.send)
    first.start()
    assert begun.wait(60)
    for _ in range(3):
        deliveries.send()
    assert looks == [False]
    go_on.set()
    first.join(60)
    assert looks == [False, False]
    deliveries.send()
    assert looks == [False] * 3


def test_the_link_of_the_first_mail_ends_it_years_later_too(client, readers, inbox) -> None:
    client.post("/subscribe", data={"email": "never@example.org"})
    void = inbox.link("unsubscribe")
    sign_up(client, inbox)
    link = inbox.link("unsubscribe")
    with time_machine.travel(time.time() + 400 * DAY):
        assert readers.forget() == 1  # the one that was never confirmed
        assert "was forgotten" in client.post(void).text
        assert list(everyone(readers)) == [ADA]
        assert "gets no more mail" in client.post(link).text
        assert everyone(readers) == {}
        assert readers.forget() == 1
