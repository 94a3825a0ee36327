"""The status page as a document: all of it told in words, nothing from elsewhere, and small."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any, Final
from xml.etree import ElementTree as ET

import pytest

from agent import picture, topology
from agent.page import REFRESH, page, poster, tiles
from agent.picture import Use
from tests.documents import cell, guest, plan, status, step
from tests.hosts import MACHINES, Machine, host
from tests.mutants import HOSTILE
from tests.outlets import read_page
from tests.pages import CROWD, LARGEST, WORLDS, large, middle, told

if TYPE_CHECKING:
    from agent.picture import Picture

SVG: Final = "{http://www.w3.org/2000/svg}"
OUTSIDE: Final = ("http:", "https:", "//", "<script", "javascript:", "@import", "<link", "<img")


class Reader(HTMLParser):
    """Collects the texts that a reader without eyes is given, and the rows of tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.labels: list[str] = []
        self.rows: list[list[str]] = []
        self.heads: list[tuple[str, str]] = []
        self._in: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if given.get("role") == "img":
            self.labels.append(str(given["aria-label"]))
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")
        if tag in {"h1", "h2", "h3"}:
            self.heads.append((tag, ""))
        if tag not in {"meta", "wbr"}:
            self._in.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._in.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self._in):
            self.rows[-1][-1] += data
        if {"h1", "h2", "h3"} & set(self._in):
            tag, so_far = self.heads[-1]
            self.heads[-1] = (tag, so_far + data)


def shown(*guests: Any, machine: Machine | None = None, **keys: Any) -> str:  # noqa: ANN401 - JSON
    """Return the page of a host of one cell, four pCPUs by default."""
    here = topology.to_json(host(machine or Machine(cores=4)))
    rows = keys.pop("cells", (cell(pool="1", pool_now="1", candidates="1-3", claimed="0"),))
    steps, warnings = keys.pop("steps", []), keys.pop("warnings", [])
    document = status(plan(*guests, cells=rows, steps=steps, warnings=warnings), **keys)
    text = page(document | {"topology": here})
    read_page(text)
    return text


@pytest.mark.parametrize("make", WORLDS.values(), ids=WORLDS)
def test_each_pcpu_is_said_once_in_a_core_and_once_in_a_table(make: Any) -> None:  # noqa: ANN401
    document = told(make())
    text = page(document)
    read_page(text)
    reader = Reader(text)
    said = [int(cpu) for label in reader.labels for cpu in re.findall(r"pCPU (\d+):", label)]
    present = [row["id"] for row in document["topology"]["cpus"]]
    assert sorted(said) == present
    uses = set(picture.IN_PLAN.values())
    counts = [int(row[1]) for row in reader.rows if row[0] in uses]
    assert sum(counts) == len(present)


def test_a_core_is_told_in_words() -> None:
    reader = Reader(shown(guest(0, emulator_pcpus="1"), machine=Machine(threads=2)))
    assert reader.labels[0] == "core of pCPU 0: claimed; pCPU 1: pool, 1 guest"


def test_the_page_has_a_language_a_title_headings_and_a_way_to_ask_again() -> None:
    text = shown()
    assert text.startswith('<!doctype html><html lang="en">')
    assert f'<meta http-equiv="refresh" content="{REFRESH}">' in text
    assert 'name="viewport" content="width=device-width' in text
    assert Reader(text).heads == [
        ("h1", "Emulator pools"),
        ("h2", "NUMA cell 0"),
        ("h2", "Guests"),
    ]


def test_a_page_that_is_read_out_can_be_held_still() -> None:
    document = status(plan()) | {"topology": None}
    still = page(document, still=True)
    read_page(still)
    assert "http-equiv" not in still
    assert '<a href="?">' in still
    assert '<a href="?still">' in page(document)


@pytest.mark.parametrize("make", WORLDS.values(), ids=WORLDS)
def test_nothing_comes_from_elsewhere_and_nothing_runs(make: Any) -> None:  # noqa: ANN401
    text = page(told(make()))
    assert [one for one in OUTSIDE if one in text.replace("qemu:///system", "")] == []
    assert not re.search(r"\son[a-z]+=", text)
    assert set(re.findall(r"url\(([^)]*)\)", text)) <= {"#realtime", "#reserved", "#offline"}


def test_what_is_wrong_is_said_at_the_top_and_in_the_tab() -> None:
    away = shown(libvirt={"uri": "qemu:///system", "connected": False}, dry_run=True)
    assert "<title>libvirt is away: emupool</title>" in away
    assert "libvirt is away: pins stay as they are." in away
    assert "Dry run: nothing is pinned." in away
    short = shown(cells=(cell(shortage=2),))
    assert "<title>short of 2 pCPUs: emupool</title>" in short
    assert "Short of 2 pCPUs at this ratio." in short
    assert "<title>emupool</title>" in shown()
    assert "No cycle yet." in shown(last_cycle=None)


def test_a_page_without_a_cycle_is_no_error() -> None:
    text = page(status(plan(), last_cycle=None) | {"topology": None})
    read_page(text)
    assert "No guests." in text


def test_cells_of_an_unknown_host_are_no_error() -> None:
    rows = (cell(pool="0", claimed="3"),)
    text = page(status(plan(cells=rows)) | {"topology": None})
    read_page(text)
    assert ["not told", "2", "1-2"] in Reader(text).rows


def test_guests_who_need_the_operator_come_first() -> None:
    crowd = [guest(0), guest(1, state="remote"), guest(2, state="collision")]
    crowd.append(guest(3, state=None, managed=False, cell=None))
    rows = [row for row in Reader(shown(*crowd)).rows if row[0].startswith("vm-")]
    assert [row[:2] for row in rows] == [
        ["vm-2", "collision"],
        ["vm-1", "remote"],
        ["vm-0", "placed"],
        ["vm-3", "not managed"],
    ]
    assert rows[2] == ["vm-0", "placed", "0", "isolate (metadata)", "2", "2", "2", "yes", "it fits"]


def test_steps_warnings_and_homeless_pcpus_are_told() -> None:
    text = shown(
        guest(0),
        steps=[step(0, "evacuate", "0", "2")],
        warnings=[{"guest": None, "field": "state file", "text": "cannot be written"}],
        machine=Machine(packages=2, offline=host(Machine(packages=2)).cells[1].cpus),
    )
    assert ["evacuate", "pCPU claimed or offline", "0", "2", "vm-0"] in Reader(text).rows
    assert "<li>host: state file: cannot be written</li>" in text
    assert 'In no cell that has pCPUs online: <span class="whole">2-3</span>' in text


def test_no_name_is_markup_or_turns_the_direction_of_reading() -> None:
    text = shown(
        guest(0, name=HOSTILE, reason=HOSTILE, state="left"),
        steps=[step(0, "evacuate", "0", "2")],
        warnings=[{"guest": HOSTILE, "field": HOSTILE, "text": HOSTILE * 50}],
        version=HOSTILE,
        libvirt={"uri": HOSTILE, "connected": True},
    )
    assert not {"\u202e", "\x1b"} & set(text)


def test_a_set_is_broken_after_commas_only() -> None:
    rows = (cell(claimed="0-1,3"),)
    assert '<td><span class="whole">0-1</span>,<wbr>3</td>' in shown(cells=rows)


def test_512_pcpus_and_500_guests_are_a_page_of_some_hundred_kib() -> None:
    document = told(large())
    assert (len(document["topology"]["cpus"]), len(document["guests"])) == (512, CROWD)
    assert len(page(document)) < 300 * 1024


# tiles


@pytest.mark.parametrize("palette", [tiles._LIGHT, tiles._DARK], ids=["light", "dark"])
def test_every_text_stands_out_from_what_it_stands_on(palette: str) -> None:
    colours = dict(re.findall(r"--([a-z-]+):(#[0-9a-f]+);", palette))
    pairs = [("ink", "paper"), ("soft", "paper"), ("wrong", "paper"), ("ink", "pale")]
    pairs += [(f"on-{name}", name) for name in ("pool", "claimed", "taken")]
    pairs += [("ink", "grey")]
    ratios = {pair: _contrast(*(colours[name] for name in pair)) for pair in pairs}
    assert min(ratios.values()) >= 4.5, ratios


def _contrast(one: str, other: str) -> float:
    """Return the contrast of two colours as WCAG 2 has it."""
    dark, light = sorted(map(_luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(digit * 2 for digit in colour[1:])
    linear = []
    for place in (0, 2, 4):
        value = int(digits[place : place + 2], 16) / 255
        linear.append(value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4)
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_each_use_has_a_style_and_a_letter_of_its_own() -> None:
    told_apart = {use: use.name.lower() for use in Use if use not in {Use.UNTOLD, Use.CANDIDATE}}
    for name in told_apart.values():
        assert f".{name} rect" in tiles.STYLE, name
    assert len({use.value for use in Use}) == len(Use)


# the picture that stands alone


@pytest.mark.parametrize("machine", [*MACHINES.values(), LARGEST], ids=[*MACHINES, "the largest"])
def test_a_poster_is_svg_that_has_each_pcpu_within_its_frame(machine: Machine) -> None:
    here = host(machine)
    rows = tuple(cell(int(one.id), claimed=str(one.cpus)) for one in here.cells)
    drawn = picture.of_plan(plan(cells=rows), topology.to_json(here))
    assert len(tiles_of(drawn)) == len(here.cpus) - len(drawn.homeless)


def test_a_legend_of_all_uses_takes_as_many_lines_as_it_needs() -> None:
    document = told(middle())
    tiles_of(picture.of_plan(document, document["topology"]))


def tiles_of(drawn: Picture) -> list[str]:
    """Return the titles of the tiles of a poster; nothing may reach beyond its frame."""
    root = ET.fromstring(poster.draw("<&>", HOSTILE, drawn))
    titles = [one.text or "" for one in root.iter(f"{SVG}title")]
    assert titles[0] == "<&>"
    high = int(root.attrib["height"])
    for group in root.iter(f"{SVG}g"):
        place = re.fullmatch(r"translate\((\d+) (\d+)\)", group.get("transform", ""))
        if place:
            assert int(place[2]) + 20 <= high
            wide = [float(one.attrib["width"]) for one in group.iter(f"{SVG}rect")]
            assert int(place[1]) + max(wide) <= poster.WIDTH
    return titles[1:]


def test_a_poster_is_told_in_words_too() -> None:
    drawn = picture.of_plan(
        plan(cells=(cell(claimed="0", pool="1", pool_now="1"),)), topology.to_json(host(Machine()))
    )
    assert '<desc id="told">cell 0: pool: 1; claimed: 0.</desc>' in poster.draw("t", "", drawn)
