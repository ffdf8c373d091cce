"""Subscribing at the site: double opt-in, one click, changing and ending it."""

import re
import time

import pytest
import time_machine
from fastapi.testclient import TestClient
from postbox import ADA, everyone, sign_up

from etude.site.guard import sign

DAY = 86_400


def test_from_the_form_to_the_last_mail(client, inbox, readers) -> None:
    page = client.get("/subscribe?q=graph+embeddings").text
    assert 'value="graph embeddings"' in page
    answer = client.post(
        "/subscribe", data={"email": ADA, "frequency": "weekly", "query": "graph embeddings"}
    )
    assert answer.status_code == 202
    assert "one is on its way" in answer.text
    assert everyone(readers) == {}
    mail = inbox.mails[0]
    assert (mail["To"], len(inbox.mails)) == (ADA, 1)
    link = inbox.link("confirm")
    page = client.get(link).text
    assert "graph embeddings" in page
    assert ADA not in page
    assert everyone(readers) == {}  # a GET confirms nothing
    assert "You are subscribed" in client.post(link).text
    reader = everyone(readers)[ADA]
    assert (reader.frequency, reader.query) == ("weekly", "graph embeddings")


def test_a_link_confirms_once(client, inbox, readers) -> None:
    link = sign_up(client, inbox)
    readers.unsubscribe(everyone(readers)[ADA].key)
    for answer in (client.post(link), client.get(link)):
        assert answer.status_code == 400
        assert "used already" in answer.text
    assert everyone(readers) == {}


def test_a_link_confirms_for_two_days(app, client, inbox, readers) -> None:
    client.post("/subscribe", data={"email": ADA})
    link, now = inbox.link("confirm"), time.time()
    with time_machine.travel(now + 2 * DAY + 60):
        assert client.post(link).status_code == 400
        assert "expired" in client.get(link).text
        assert everyone(readers) == {}
    with time_machine.travel(now + 2 * DAY - 60):
        assert client.post(link).status_code == 200


@pytest.mark.parametrize("page", ["confirm", "unsubscribe", "manage"])
def test_a_forged_or_misused_token_does_nothing(app, client, inbox, readers, page) -> None:
    sign_up(client, inbox)
    site, key = app.state.site, everyone(readers)[ADA].key
    client.post("/subscribe", data={"email": "bob@example.org"})
    token = inbox.link("confirm").rpartition("/")[2]
    wrong = ["x", "a.b.c", token[:-2] + "AA", "%00", "%2e%2e%2f", "é", "x" * 3000]
    purposes = {"confirm", "unsubscribe", "manage", "reader"} - {page}
    wrong += [sign(site, p, v) for p in purposes for v in (key, ["reader", key], token)]
    for one in wrong:
        for answer in (client.get(f"/{page}/{one}"), client.post(f"/{page}/{one}", data={
            "frequency": "daily"
        })):  # fmt: skip
            assert answer.status_code in (400, 404), one
    assert list(everyone(readers)) == [ADA]


def test_one_click_unsubscribes_and_a_get_never_does(app, client, inbox, readers) -> None:
    sign_up(client, inbox)
    site = app.state.site
    token = sign(site, "unsubscribe", ["reader", everyone(readers)[ADA].key])
    for method in ("GET", "HEAD", "OPTIONS"):
        client.request(method, f"/unsubscribe/{token}")
    assert "One-Click" in client.get(f"/unsubscribe/{token}").text
    assert list(everyone(readers)) == [ADA]
    # as a mailbox provider posts (RFC 8058): no cookie, no page it came from, from anywhere
    provider = TestClient(app, "https://etude.example", client=("203.0.113.9", 1))
    body = {"List-Unsubscribe": "One-Click"}
    headers = {"Sec-Fetch-Site": "cross-site", "Origin": "https://mail.example"}
    with time_machine.travel(time.time() + 3 * 365 * DAY):
        answers = [
            provider.post(f"/unsubscribe/{token}", data=body, headers=headers) for _ in range(2)
        ]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert everyone(readers) == {}


def test_the_link_in_the_header_is_the_one_that_works(app, client, inbox, readers) -> None:
    sign_up(client, inbox)
    from datetime import UTC, datetime

    from etude.papers.entry import Entry
    from etude.site.sending import send

    today = datetime.now(UTC).date().isoformat()
    app.state.site.store.add([Entry(title="A paper", date=today)])
    assert send(app.state.site).sent == 1
    header = inbox.mails[-1]["List-Unsubscribe"]
    assert client.post(re.fullmatch("<(.*)>", header)[1]).status_code == 200
    assert everyone(readers) == {}


def test_who_did_not_ask_can_make_the_request_void(client, inbox, readers) -> None:
    client.post("/subscribe", data={"email": ADA})
    assert client.post(inbox.link("unsubscribe")).status_code == 200
    assert client.post(inbox.link("confirm")).status_code == 400
    assert everyone(readers) == {}


def test_the_choice_is_changed_by_its_link(client, app, inbox, readers) -> None:
    sign_up(client, inbox)
    reader = everyone(readers)[ADA]
    link = f"/manage/{sign(app.state.site, 'manage', reader.key)}"
    assert "a…@example.org" in client.get(link).text
    answer = client.post(link, data={"frequency": "weekly", "query": "  ti:graph\r\n trees "})
    assert "Changed." in answer.text
    changed = everyone(readers)[ADA]
    assert (changed.frequency, changed.query) == ("weekly", "ti:graph trees")
    for fields in ({"frequency": "hourly"}, {"frequency": "daily", "query": "-only -minus"}):
        assert client.post(link, data=fields).status_code == 400
    assert client.post(link, data={"frequency": "daily", "query": "a" * 301}).status_code == 422
    assert everyone(readers)[ADA] == changed
    end = re.search(r'action="(/unsubscribe/[^"]+)"', client.get(link).text)[1]
    client.post(end)
    assert client.get(link).status_code == 400
    with time_machine.travel(time.time() + 181 * DAY):
        assert "expired" in client.get(link).text
