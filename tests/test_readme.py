"""README: its commands are typed as they stand, its links lead somewhere."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from agent.cli import emupool
from tests.guides import Place, as_here, blocks
from tests.service import Service, free_port, wait_on

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.guests import Guest
    from tests.libvirtd import Libvirtd

ROOT: Final = Path(__file__).resolve().parents[1]
TEXT: Final = (ROOT / "README.md").read_text()
ZERO: Final = frozenset({0})


@pytest.fixture
def place(libvirtd: Libvirtd, tmp_path: Path) -> Iterator[Place]:
    """A compute node on which the daemon runs, with the guest DOM."""
    with ExitStack() as stack:
        listen = {"listen": f"127.0.0.1:{free_port()}"}
        service = Service(libvirtd.uri, tmp_path, http=listen)
        stack.enter_context(service)
        yield stack.enter_context(Place(libvirtd.home / "libvirt-sock", tmp_path, service.config))


def test_the_commands_are_typed_as_they_stand(
    place: Place, make_guest: Callable[..., Guest], tmp_path: Path
) -> None:
    guest = make_guest("guest", emulatorpin="0-1").define().start()
    typed = [block.text for block in blocks(TEXT, "sh") if block.reason is None]
    for text in typed:
        place.run(as_here(text, {"DOM": guest.name}))
    assert sum(text.count("emupool ") for text in typed) > 5
    wait_on(ZERO, guest)  # it is managed now, by the metadata that README has one set
    assert "<svg" in (tmp_path / "chart.svg").read_text()
    assert (tmp_path / "host.tar.gz").stat().st_size > 0


def test_each_block_is_run_or_says_why_not() -> None:
    fenced = re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
    assert re.findall(r"^ {4}.*$", fenced, re.MULTILINE) == []
    assert TEXT.count("```") == 2 * len(blocks(TEXT, "sh"))
    assert TEXT.count("<!--") == sum(block.reason is not None for block in blocks(TEXT))


def test_each_command_that_is_named_exists() -> None:
    named = set(re.findall(r"`emupool ([a-z-]+)", TEXT))
    for block in blocks(TEXT):
        named.update(re.findall(r"^emupool (\S+)", block.text, re.MULTILINE))
    assert len(named) > 8
    assert named <= set(emupool.commands)


def test_each_link_leads_to_a_file() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert len(links) > 15
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_there_are_ten_keys_that_matter() -> None:
    chapter = TEXT.partition("## The ten keys that matter\n")[2].partition("\n## ")[0]
    keys = re.findall(r"^\| `([a-z_.]+)` \|", chapter, re.MULTILINE)
    assert len(keys) == 10
    example = (ROOT / "config.example.toml").read_text()
    for key in keys:
        table, _, name = key.partition(".")
        assert re.search(rf"^\[{table}\]\n(?:(?!\[).*\n)*?#?{name} = ", example, re.MULTILINE), key
