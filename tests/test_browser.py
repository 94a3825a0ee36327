"""The status page in a real browser: it fits, it is quiet, and a screen reader is told all of it.

`make test-page` sets up the browser; without one these tests are skipped.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest

from agent import picture
from agent.page import REFRESH, page, poster
from tests.browser import Browser
from tests.documents import cell, guest, plan, status, step
from tests.mutants import HOSTILE
from tests.pages import WORLDS, told
from tests.web import ANSWERS, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.browser

WIDTHS: Final = (360, 800, 1600)
PAPER: Final = {"light": "rgb(255, 255, 255)", "dark": "rgb(13, 17, 23)"}

OVERRUN: Final = """[...document.querySelectorAll('svg, table, h1, h2, p, dl, li')]
    .filter(one => !one.closest('.wide') && !one.classList.contains('patterns'))
    .filter(one => { const box = one.getBoundingClientRect();
                     return box.left < 0 || box.right > innerWidth + 0.5 })
    .map(one => one.outerHTML.slice(0, 200))"""
OVERFULL: Final = """[...document.querySelectorAll('g.t')].filter(tile => {
    const room = tile.querySelector('rect').getBBox()
    return [...tile.querySelectorAll('text')].some(text => {
        const box = text.getBBox()
        return box.x < room.x || box.x + box.width > room.x + room.width })
    }).map(tile => tile.textContent)"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as started:
        yield started


@pytest.fixture(scope="module")
def documents() -> dict[str, dict[str, Any]]:
    return {name: told(make()) for name, make in WORLDS.items()}


def visit(browser: Browser, text: str) -> str:
    """Show a page as the daemon serves it, with all its headers; return its address.

    Nobody answers there afterwards: what is looked at for long has to stand still.
    """
    with running(answers=replace(ANSWERS, page=lambda _: text)) as server:
        assert server.address is not None
        url = "http://{}:{}/".format(*server.address[:2])
        browser.open(url)
    return url


def faults(browser: Browser) -> list[Any]:
    """Return what the browser complained of."""
    noisy = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
    return [told["params"] for told in browser.events if told["method"] in noisy]


@pytest.mark.parametrize("scheme", PAPER)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", WORLDS)
def test_a_page_fits_its_screen_and_asks_for_nothing(
    browser: Browser, documents: dict[str, Any], name: str, width: int, scheme: str
) -> None:
    browser.look(width, scheme=scheme)
    url = visit(browser, page(documents[name], still=True))
    asked = [e for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert [one["params"]["request"]["url"] for one in asked] == [url]
    assert faults(browser) == []
    assert browser.tell("document.documentElement.scrollWidth") == width
    assert browser.tell(OVERRUN) == []
    assert browser.tell(OVERFULL) == []
    assert browser.tell("getComputedStyle(document.body).backgroundColor") == PAPER[scheme]


def test_it_asks_again_by_itself(browser: Browser, documents: dict[str, Any]) -> None:
    visit(browser, page(documents["2 pCPUs"]))
    planned = browser.await_event("Page.frameScheduledNavigation")
    assert (planned["reason"], planned["delay"]) == ("metaTagRefresh", REFRESH)


def test_it_can_be_held_still_and_let_go(browser: Browser, documents: dict[str, Any]) -> None:
    made = documents["2 pCPUs"]
    answers = replace(ANSWERS, page=lambda still: page(made, still=still))
    with running(answers=answers) as server:
        assert server.address is not None
        url = "http://{}:{}/".format(*server.address[:2])
        browser.open(url)
        seen = []
        for _ in range(2):
            browser.open(browser.tell("document.links[0].href"))
            seen.append(
                browser.tell(
                    "[location.search,"
                    " document.querySelectorAll('meta[http-equiv=refresh]').length]"
                )
            )
    assert seen == [["?still", 0], ["", 1]]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_screen_reader_is_told_all_of_it(
    browser: Browser, documents: dict[str, Any], width: int
) -> None:
    document = documents["32 pCPUs"]
    browser.look(width)
    visit(browser, page(document, still=True))
    spoken = browser.spoken()
    roles = Counter(role for role, _ in spoken)
    titles = [name for role, name in spoken if role == "heading"]
    known = ["Emulator pools", "NUMA cell 0", "NUMA cell 1", "Still to do", "Guests"]
    assert sorted(titles) == sorted(known)
    said = " ".join(name for role, name in spoken if role == "image")
    assert sorted(map(int, re.findall(r"pCPU (\d+):", said))) == list(range(32))
    assert roles["table"] == 4
    assert roles["main"] == 1
    drawn = picture.of_plan(document, document["topology"])
    rows = [name for role, name in spoken if role == "rowheader"]
    assert len(rows) == sum(len([*one.by_use()]) for one in drawn.cells) + len(
        picture.moves(document)
    ) + len(document["guests"])
    assert {"guest", "state", "why"} <= {n for role, n in spoken if role == "columnheader"}
    assert browser.tell("document.documentElement.lang") == "en"


def test_a_name_is_text_whatever_it_says(browser: Browser) -> None:
    tags = "<img src=x onerror=alert(1)><script>alert(1)</script>"
    crowd = [guest(0, name=HOSTILE, reason=HOSTILE), guest(1, name=tags, reason=tags)]
    warnings = [{"guest": tags, "field": tags, "text": tags}]
    document = status(
        plan(*crowd, cells=(cell(),), steps=[step(1, "arrive", None, "2")], warnings=warnings)
    )
    visit(browser, page(document | {"topology": None}, still=True))
    assert browser.tell("document.querySelectorAll('img, script, b, iframe').length") == 0
    assert browser.tell("document.links.length") == 1
    assert tags[:37] in str(browser.tell("document.body.textContent"))
    assert faults(browser) == []


@pytest.mark.parametrize("name", WORLDS)
def test_a_poster_is_as_large_as_it_says(
    browser: Browser, documents: dict[str, Any], name: str, tmp_path: Path
) -> None:
    document = documents[name]
    drawn = picture.of_plan(document, document["topology"])
    file = tmp_path / "picture.svg"
    file.write_text(poster.draw(name, "from the tests", drawn))
    browser.look(poster.WIDTH)
    browser.open(file.as_uri())
    assert faults(browser) == []
    box = browser.tell(
        "(box => [box.x, box.y, box.x + box.width, box.y + box.height])"
        "(document.documentElement.getBBox())"
    )
    size = browser.tell("[...'xy'].map((_, n) => document.documentElement.viewBox.baseVal"
                        "[n ? 'height' : 'width'])")  # fmt: skip
    assert box == [0, 0, *size]
    assert browser.tell(OVERFULL) == []
