"""Runs over HTTP: watched to the end, stopped, listed, and safe to look at."""

import asyncio
import io
import json
import os
from dataclasses import replace
from html.parser import HTMLParser

from trying import HOSTILE, JSON, PAPER, client, send, table, wait_for

from etude.site import runs, uploads
from etude.site.jobs import Job, Jobs
from etude.site.worker import uploads_of


def test_a_trial_from_the_form_to_the_report(settings) -> None:
    with client(settings) as site:
        started = send(site, table(HOSTILE), f"{HOSTILE}.csv", target=HOSTILE, seeds="2")
        page = started.headers["location"]
        waiting = site.get(page)
        assert '<noscript><meta http-equiv="refresh"' in waiting.text
        assert "<progress" in waiting.text
        with site.stream("GET", f"{page}/events") as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            lines = [line for line in stream.iter_lines() if line.startswith(("event", "data"))]
        names = [line.removeprefix("event: ") for line in lines if line.startswith("event")]
        facts = [json.loads(line[6:]) for line in lines if line.startswith("data")]
        assert names[-1] == "end"
        assert set(names[:-1]) == {"progress"}
        assert max(f["done"] for f in facts) == facts[-1]["total"] > 0
        done = site.get(f"{page}.json").json()
        assert (done["state"], done["message"], done["target"]) == ("finished", "", HOSTILE)
        assert done["result"]["seeds"] == [0, 1]
        whole = site.get(page).text
        assert "<img" not in whole
        assert "&lt;img src=x" in whole
        assert "baseline" in whole
        assert "http-equiv" not in whole
        assert "--seeds 2" in whole
        assert "made_by" not in str(done)
        report = site.get(f"{page}/report")
        policy = report.headers["content-security-policy"]
        assert "sandbox" in policy
        assert "script" not in policy.replace("default-src 'none'", "")
        assert "<img" not in report.text
        assert str(settings.folder) not in report.text + whole + str(done)
        rows = site.get(f"{page}/rows.csv")
        assert rows.headers["content-disposition"].startswith("attachment")
        assert len(rows.text.splitlines()) > 8
        listed = site.get("/runs").text
        assert page in listed
        assert "<img" not in listed
        site.cookies.clear()
        assert page not in site.get("/runs").text
        assert site.get(page).status_code == 200  # who has the link may look
    assert list(uploads_of(settings).iterdir()) == []


def test_only_its_reader_stops_a_run(settings, quick) -> None:
    with client(settings) as site:
        page = send(site, table(), seeds="2").headers["location"]
        assert f'action="{page}/stop"' in site.get(page).text
        kept = dict(site.cookies)
        site.cookies.clear()
        assert f'action="{page}/stop"' not in site.get(page).text
        assert site.post(f"{page}/stop", headers=JSON).status_code == 403
        assert site.get(f"{page}.json").json()["state"] == "queued"
        site.cookies.update(kept)
        assert site.post(f"{page}/stop").status_code == 303
        assert site.get(f"{page}.json").json()["state"] == "stopped"
        assert "Stopped" in site.get(page).text
        for path in ("report", "rows.csv"):
            assert site.get(f"{page}/{path}", headers=JSON).status_code == 404


def test_unknown_runs(settings, quick) -> None:
    with client(settings) as site:
        for name in ("0" * 16, "x", "%00", "0" * 41, "a'--"):
            for end in ("", ".json", "/events", "/report", "/rows.csv"):
                status = site.get(f"/runs/{name}{end}", headers=JSON).status_code
                assert status in (400, 404, 422), (name, end)


def test_a_stream_ends_when_its_time_is_over(settings, quick) -> None:
    jobs = Jobs(settings.database)
    made = jobs.add(Job(paper=PAPER, method="heads.x", data="iris", seeds=2, made_by="a"), 9)

    async def read(name: str) -> list[str]:
        return [event async for event in runs.events(runs.Watch(jobs), name, lasts=0.6)]

    (only,) = asyncio.run(read(made.id))
    assert only.startswith("event: progress\ndata: {")
    assert only.endswith("}\n\n")
    assert asyncio.run(read("0" * 16))[-1].startswith("event: end")
    jobs.close()


class Parts(HTMLParser):
    """Labels, ids and scripts of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.labels, self.controls, self.inline = set(), set(), []

    def handle_starttag(self, tag, attrs) -> None:
        facts = dict(attrs)
        if tag == "label":
            self.labels.add(facts.get("for"))
        if tag in ("input", "select") and facts.get("type") != "hidden":
            self.controls.add(facts.get("id"))
        if tag == "script" and "src" not in facts:
            self.inline.append("script")
        self.inline += [name for name in facts if name == "style" or name.startswith("on")]


def test_pages_have_labels_and_nothing_inline(settings, quick) -> None:
    with client(replace(settings, token="t")) as site:
        started = send(site, table(), token="t", seeds="2").headers["location"]
        for path in (f"/papers/{PAPER}/try", started, "/runs"):
            page = site.get(path)
            parts = Parts()
            parts.feed(page.text)
            assert parts.inline == [], path
            assert parts.controls <= parts.labels, path
            assert len(page.content) < 100_000
            assert "script-src 'self'" in page.headers["content-security-policy"]


def test_files_older_than_a_day_go(settings, quick) -> None:
    kept = uploads.store(uploads_of(settings), io.BytesIO(table()), "a.csv", 10**5)
    os.utime(uploads_of(settings) / kept.folder, (0, 0))
    with client(settings):
        wait_for(lambda: not (uploads_of(settings) / kept.folder).exists(), 60)
