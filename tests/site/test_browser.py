"""A reader's whole way in a real Chromium, a real site and a real mail server.

Find a paper, open it, subscribe, confirm from the mail, unsubscribe, try the method, watch.
"""

import re
import time

import pytest
from chromium import browser, running_site


def link_of(mail, address, word):
    text = mail.get_body(("plain",)).get_content()
    found = re.search(rf"{re.escape(address)}/{word}/\S+", text)
    assert found, text
    return found[0]


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.timeout(280)
def test_find_subscribe_leave_and_try(tmp_path, inbox):
    (tmp_path / "site").mkdir()
    mails = {"ETUDE_SMTP": f"smtp://127.0.0.1:{inbox.port}", "ETUDE_MAIL_FROM": "d@etude.example"}
    with browser() as chromium, running_site(tmp_path, "--allow-trials", **mails) as address:
        page = chromium.new_page(viewport={"width": 390, "height": 844})
        foreign, broken = [], []
        page.on("request", lambda r: r.url.startswith(address) or foreign.append(r.url))
        page.on("pageerror", lambda error: broken.append(str(error)))

        # find a paper: the index may still be made
        page.goto(address)
        for _ in range(100):
            page.get_by_role("searchbox").first.fill("long-tail logit adjustment")
            page.get_by_role("button", name="Search").first.click()
            if "index is being made" not in page.content():
                break
            page.wait_for_timeout(1000)
        page.goto(page.url + "&runnable=yes")
        first = page.locator("ol.papers h2 a").first
        title = first.inner_text()
        first.click()
        assert page.get_by_role("heading", level=1).inner_text() == title
        assert "Published against measured" in page.content()

        # subscribe, confirm from the mail
        page.get_by_role("link", name="Subscribe").first.click()
        page.get_by_label("Your address").fill("reader@example.org")
        page.get_by_role("button", name="Subscribe").click()
        wait_for(lambda: inbox.mails)
        assert inbox.to == ["reader@example.org"]
        page.goto(link_of(inbox.mails[0], address, "confirm"))
        page.get_by_role("button", name="Yes, subscribe").click()
        assert page.get_by_role("heading", level=1).inner_text() == "You are subscribed"

        # unsubscribe: by the page that the subscription names
        page.get_by_role("link", name="Change it").click()
        page.get_by_role("button", name="Unsubscribe").click()
        assert re.search("(?i)no more mail|unsubscribed|have left", page.content())

        # try a method, and watch it finish without touching the page
        start = page.get_by_role("button", name="Start the trial")
        page.goto(address + "/methods?runnable=yes&family=heads")
        for name in page.locator("ul.rows a").all_inner_texts():
            page.goto(address + "/methods?runnable=yes&family=heads")
            page.get_by_role("link", name=name, exact=True).click()
            if start.count():  # an experiment of its own has no form
                break
        paper = page.url
        page.get_by_label("Data", exact=True).select_option("iris")
        page.get_by_label("Paired seeds").fill("2")
        start.click()
        page.wait_for_url(re.compile(r"/runs/"), timeout=60_000)
        page.get_by_role("link", name="The whole report").wait_for(timeout=200_000)
        assert page.get_by_role("row").count() >= 3
        run = page.url
        page.goto(paper)
        assert page.get_by_role("region", name="Past trials").get_by_text("iris").count() >= 1
        assert page.request.get(run + ".json").json()["state"] == "finished"
        assert not foreign
        assert not broken
        page.close()
