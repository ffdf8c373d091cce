"""How the pages look: contrast of the colors, widths, requests and focus in a real Chromium."""

import re
from pathlib import Path

import pytest
from chromium import browser
from site_set_up import PAPERS, settings_of

from etude.lab.report import COLORS
from etude.site import state

CSS = (Path(state.__file__).parent / "static" / "site.css").read_text(encoding="utf-8")
PAGES = ["/", "/papers/date/2026-11-22", "/papers/2405.19504", "/papers/2611.00003", "/papers",
         "/papers?family=heads", "/papers/trending", "/methods", "/methods?family=losses", "/feeds",
         "/about", "/subscribe", "/runs", "/nothing"]  # fmt: skip
GROUNDS = ("bg", "page", "tint")
INKS = ("ink", "soft", "better", "worse", "tie", "undecided", "link")


def variables(index):
    """The colors of the light (0) or dark (1) theme."""
    blocks = re.findall(r":root\{(.*?)\}", CSS, re.S)
    return dict(re.findall(r"--([\w-]+):(#[0-9a-f]{6})", blocks[index]))


def luminance(color):
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_the_standard():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_every_text_can_be_read_on_every_ground(theme):
    known = variables(theme)
    for ground in GROUNDS:
        for ink in INKS:
            assert contrast(known[ink], known[ground]) >= 4.5, (ink, ground)
    assert contrast(known["on-button"], known["button"]) >= 4.5
    # the edge of a field, and the ring of what has the focus, are no text
    for ground in GROUNDS:
        assert contrast(known["soft"], known[ground]) >= 3
        assert contrast(known["link"], known[ground]) >= 3


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_the_colors_are_those_of_the_reports(theme):
    known = variables(theme)
    assert {name: known[name] for name in COLORS} == {n: c[theme] for n, c in COLORS.items()}


def test_no_color_but_the_variables():
    rest = re.sub(r":root\{.*?\}", "", CSS, flags=re.S)
    assert set(re.findall(r"#[0-9a-f]{3,8}\b", rest)) <= {"#fff"}  # of the printed page
    assert "url(" not in CSS
    assert "@import" not in CSS
    assert len(CSS) < 20_000


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A site in a thread, for the browser."""
    import socket
    import threading

    import uvicorn

    from etude.site.app import make_app

    app = make_app(settings_of(tmp_path_factory.mktemp("site"), base_url="http://127.0.0.1"))
    app.state.site.store.add(PAPERS)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


@pytest.mark.timeout(280)
def test_pages_fit_a_phone_and_ask_nobody_else(address):
    with browser() as chromium:
        for width in (360, 1280):
            page = chromium.new_page(viewport={"width": width, "height": 800})
            asked, said = [], []
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.on("console", lambda message, said=said: said.append(message.text))
            page.on("pageerror", lambda error, said=said: said.append(str(error)))
            for path in PAGES:
                page.goto(address + path)
                needed = page.evaluate("document.documentElement.scrollWidth")
                assert needed <= width, (path, width, needed)
            page.close()
            assert not [url for url in asked if not url.startswith(address + "/")]
            assert not [line for line in said if "status of 404" not in line]


@pytest.mark.timeout(120)
def test_the_keyboard_reaches_everything_and_shows_where_it_is(address):
    with browser() as chromium:
        page = chromium.new_page(viewport={"width": 1280, "height": 800})
        page.goto(address + "/")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        box = page.evaluate("document.activeElement.getBoundingClientRect().left")
        assert box >= 0, "the skip link is seen when it has the focus"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        page.keyboard.press("Tab")
        ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert ring == "solid"
        wide = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
        assert float(wide.removesuffix("px")) >= 2
        page.close()


@pytest.mark.timeout(120)
def test_dark_and_light_are_what_the_reader_asked_for(address):
    with browser() as chromium:
        seen = {}
        for scheme in ("light", "dark"):
            context = chromium.new_context(color_scheme=scheme)
            page = context.new_page()
            page.goto(address + "/")
            seen[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
            context.close()
        for theme, scheme in enumerate(seen):
            color = variables(theme)["page"]
            parts = ", ".join(str(int(color[i : i + 2], 16)) for i in (1, 3, 5))
            assert seen[scheme] == f"rgb({parts})"


@pytest.mark.timeout(120)
def test_without_javascript_a_vote_counts_and_a_search_finds(address):
    with browser() as chromium:
        context = chromium.new_context(java_script_enabled=False)
        page = context.new_page()
        page.goto(address + "/papers/2611.00002")
        page.get_by_role("button", name="Upvote").first.click()
        assert page.url.rstrip("/").endswith("/papers/2611.00002")
        assert "(2 so far)" in page.content()
        page.goto(address + "/")
        page.get_by_role("searchbox").first.fill("ti:newest")
        page.get_by_role("button", name="Search").first.click()
        page.get_by_role("link", name="Newest paper").click()
        assert page.get_by_role("heading", level=1).inner_text() == "Newest paper"
        context.close()
