"""What the hook is told over the life of guests; cycles are real ones over tests/fake.py."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest

from agent import domainxml
from agent.admit import ADMIT, REFUSE, REPLACE, UNKNOWN
from agent.config import Config, ReconcileSettings
from agent.domainxml import Pins
from agent.guestbook import LIMIT, Guestbook
from agent.reception import Reception
from tests.builders import uuid_of
from tests.definitions import domain_xml
from tests.desk import RESERVATION, Desk
from tests.logbook import Logbook
from tests.node import cpus

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.node.stop()


def counted(desk: Desk) -> dict[str, float]:
    told = desk.reception.counters()
    return {name.partition('"')[2].rstrip('"}') or "replaced": n for name, n in told.items() if n}


def test_ten_that_ask_for_the_last_place_get_it_once(desk: Desk) -> None:
    first, *others = [desk.define(str(number)) for number in range(11)]
    desk.start(first)
    assert [desk.ask(uuid) for uuid in others] == [ADMIT] + [REFUSE] * 9
    assert "(1 guest of it only starting)" in desk.said[1]
    assert counted(desk) == {"admitted": 1, "refused": 9}


def test_who_is_there_is_not_counted_twice(desk: Desk) -> None:
    desk.fill()
    assert desk.ask(desk.define("c")) == REFUSE
    assert "weight 3 and carries 2" in desk.said[1]


def test_a_place_that_is_left_is_given_again(desk: Desk) -> None:
    one, _ = desk.fill()
    newcomer = desk.define("c")
    assert desk.ask(newcomer) == REFUSE
    desk.stop(one)
    assert desk.ask(newcomer) == ADMIT


def test_a_reservation_is_for_a_while(desk: Desk) -> None:
    for name in ("a", "b"):
        assert desk.ask(desk.define(name)) == ADMIT
    newcomer = desk.define("c")
    desk.node.clock.now += RESERVATION - 1
    assert desk.ask(newcomer) == REFUSE
    desk.node.clock.now += 1
    assert desk.ask(newcomer) == ADMIT


def test_who_asks_again_keeps_one_place_and_has_it_for_longer(desk: Desk) -> None:
    one, other, late = (desk.define(name) for name in ("a", "b", "c"))
    assert [desk.ask(uuid) for uuid in (one, one, other)] == [ADMIT] * 3
    desk.node.clock.now += RESERVATION / 2
    assert desk.ask(one) == ADMIT
    desk.node.clock.now += RESERVATION / 2
    assert [desk.ask(uuid) for uuid in (late, other)] == [ADMIT, REFUSE]


def test_a_guest_that_came_and_went_unasked_leaves_no_reservation(desk: Desk) -> None:
    one, other, late = (desk.define(name) for name in ("a", "b", "c"))
    assert [desk.ask(uuid) for uuid in (one, other)] == [ADMIT] * 2
    desk.start(one)
    desk.stop(one)
    assert desk.ask(late) == ADMIT


def test_a_guest_that_was_seen_is_never_refused(desk: Desk) -> None:
    one, _ = desk.fill()
    desk.stop(one)
    desk.start(desk.define("c"))
    assert desk.ask(one) == ADMIT
    assert desk.ask(desk.define("d")) == REFUSE
    desk.begin("this boot")  # the daemon anew: it is in the guestbook
    assert desk.ask(one) == ADMIT
    desk.begin("another boot")
    assert desk.ask(one) == REFUSE


def test_a_guest_that_starts_again_has_its_place_reserved_too(desk: Desk) -> None:
    one, _ = desk.fill()
    desk.stop(one)
    assert desk.ask(one) == ADMIT
    assert desk.ask(desk.define("c")) == REFUSE
    desk.start(one)
    desk.stop(one)
    assert desk.ask(desk.define("d")) == ADMIT


def test_a_reload_changes_the_answer_and_how_long_a_place_is_kept(desk: Desk) -> None:
    desk.fill()
    newcomer = desk.define("c")
    assert desk.ask(newcomer) == REFUSE
    larger = replace(desk.config.pool, default=replace(desk.config.pool.default, max_cpus=2))
    admission = replace(desk.config.admission, reservation=5.0)
    desk.reception.reconfigure(replace(desk.config, pool=larger, admission=admission))
    assert [desk.ask(newcomer), desk.ask(desk.define("d"))] == [ADMIT] * 2
    assert desk.ask(desk.define("e")) == REFUSE
    desk.node.clock.now += 5
    assert desk.ask(desk.define("f")) == ADMIT


def test_a_dry_run_refuses_nobody_and_says_whom_it_would(desk: Desk) -> None:
    desk.fill()
    dry = ReconcileSettings(dry_run=True)
    desk.reception.reconfigure(replace(desk.config, reconcile=dry))
    newcomer = desk.define("c", emulatorpin="99")
    with Logbook() as book:
        assert [desk.ask(newcomer), desk.ask(newcomer, "restore")] == [ADMIT] * 2
        (refused,) = book.told("guest.refused")
    assert (refused["dry_run"], refused["uuid"]) == (True, newcomer)
    assert counted(desk) == {"admitted": 2, "refused": 1}


def test_what_it_answers_is_logged(desk: Desk) -> None:
    with Logbook() as book:
        uuids = desk.fill()
        refused = desk.define("c\n")
        desk.ask(refused)
        desk.ask(desk.define("float", metadata_policy="float"))
        told = book.told("guest.admitted", "guest.refused")
    assert [(e["uuid"], e.get("cell"), e.get("fits")) for e in told[:3]] == [
        (uuids[0], 0, True),
        (uuids[1], 0, True),
        (refused, None, None),
    ]
    assert (
        told[2]["why"] == desk.reception.answer("prepare", desk.node.fake.guests[refused].xml())[1]
    )
    assert (told[3]["cell"], told[3]["fits"]) == (None, True)


# It cannot tell.


def test_before_the_first_look_it_cannot_tell(tmp_path: Path) -> None:
    reception = Reception(Config(), Guestbook(tmp_path / "seen", "boot"))
    reception.stand(connected=True)
    assert reception.answer("prepare", domain_xml())[0] == UNKNOWN


def test_while_libvirt_is_away_it_cannot_tell(desk: Desk) -> None:
    newcomer = desk.define("a")
    desk.reception.stand(connected=False)
    assert desk.ask(newcomer) == UNKNOWN
    assert desk.said[1] == "it has not got libvirt"
    desk.reception.stand(connected=True)
    assert desk.ask(newcomer) == UNKNOWN
    assert desk.said[1] == "it has not looked at the guests yet"
    desk.look()
    assert desk.ask(newcomer) == ADMIT
    assert counted(desk) == {"admitted": 1, "unknown": 2}


def test_from_a_picture_that_is_old_it_cannot_tell(desk: Desk) -> None:
    newcomer = desk.define("a")
    desk.node.clock.now += 90  # three intervals
    assert desk.ask(newcomer) == ADMIT
    desk.node.clock.now += 1
    assert desk.ask(newcomer) == UNKNOWN
    assert desk.said[1] == "it last looked at the guests 91 s ago: see its log"
    desk.look()
    assert desk.ask(newcomer) == ADMIT


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("garbage", id="garbage"),
        pytest.param("<network/>", id="no domain"),
        pytest.param("<domain><uuid>7</uuid></domain>", id="no UUID"),
        pytest.param("<!DOCTYPE domain [<!ENTITY a 'a'>]><domain/>", id="entities"),
        pytest.param("<a>" * 300_000, id="more tags than any guest has"),
        pytest.param("<domain>" * 100_000, id="deeply nested"),
    ],
)
@pytest.mark.parametrize("operation", ["prepare", "restore"])
def test_of_what_is_no_definition_it_cannot_tell(desk: Desk, text: str, operation: str) -> None:
    with Logbook() as book:
        word, why = desk.reception.answer(operation, text)
        (told,) = book.told("question.unanswered")
    assert (word, told["why"], "exception" in told) == (UNKNOWN, why, False)
    assert why.startswith("domain XML: ")
    assert desk.ask(desk.define("a")) == ADMIT


def test_what_nobody_foresaw_is_told_with_its_traceback_and_ends_nothing(desk: Desk) -> None:
    newcomer = desk.define("a")
    desk.reception._result = cast("Any", object())
    with Logbook() as book:
        assert desk.ask(newcomer) == UNKNOWN
        (told,) = book.told("question.unanswered")
    assert "AttributeError" in told["exception"]
    desk.look()
    assert desk.ask(newcomer) == ADMIT


# Guests from elsewhere.


@pytest.mark.parametrize("operation", ["migrate", "restore"])
def test_pins_from_elsewhere_become_the_pool_and_the_guest_then_fits(
    desk: Desk, operation: str
) -> None:
    uuid = desk.define("a", emulatorpin="99", iothreads=1, iothreadpins={1: "3"})
    foreign = desk.node.fake.guests[uuid].xml()
    with Logbook() as book:
        assert desk.ask(uuid, operation) == REPLACE
        (told,) = book.told("guest.repinned")
    assert told["pins"] == {"emulator": "0"}
    rewritten = desk.said[1]
    assert domainxml.parse(rewritten).pins == Pins(cpus("0"), ((1, cpus("3")),))
    assert rewritten == foreign.replace("cpuset='99'", "cpuset='0'")
    assert desk.ask(uuid, operation, rewritten) == ADMIT
    assert desk.ask(uuid, text=rewritten) == ADMIT
    assert counted(desk) == {"replaced": 1, "admitted": 1}


def test_a_guest_from_elsewhere_is_refused_where_it_does_not_fit(desk: Desk) -> None:
    desk.fill()
    uuid = desk.define("c", emulatorpin="99")
    assert desk.ask(uuid, "migrate") == REPLACE
    assert desk.ask(uuid, text=desk.said[1]) == REFUSE


def test_what_a_guest_brings_with_it_says_nothing_of_its_policy_until_it_is_there(
    desk: Desk,
) -> None:
    desk.fill()
    text = domain_xml(
        "<cputune><vcpupin vcpu='0' cpuset='1'/><emulatorpin cpuset='2'/></cputune>", vcpus="1"
    )
    assert desk.ask("", "migrate", text) == ADMIT
    assert desk.ask("", text=text) == ADMIT  # nobody knows, so nobody manages it
    desk.node.clock.now += RESERVATION
    assert desk.ask("", text=text) == REFUSE  # booted here, this is the shape of isolate


# The guestbook.


def entered(path: Path, boot: str = "boot") -> list[str]:
    return list(Guestbook(path, boot).starts)


def write_book(path: Path, *lines: str) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))


def test_the_guestbook_is_a_line_for_each_guest(tmp_path: Path) -> None:
    path = tmp_path / "seen"
    book = Guestbook(path, "boot")
    book.enter({})
    assert not path.exists()
    book.enter({uuid_of(1): "x"})
    inode = path.stat().st_ino
    book.enter({uuid_of(1): "y", uuid_of(2): "x"})
    book.enter({uuid_of(2): "x"})
    assert path.read_text().split() == ["boot", uuid_of(1), uuid_of(2)]
    assert (path.stat().st_ino, path.stat().st_mode & 0o777) == (inode, 0o640 & ~_umask())
    assert book.starts == {uuid_of(1): "y", uuid_of(2): "x"}
    assert entered(path) == [uuid_of(1), uuid_of(2)]
    assert entered(path, "another") == []


def _umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


@pytest.mark.parametrize(
    ("content", "known"),
    [
        pytest.param(b"", [], id="empty"),
        pytest.param(b"boot", [], id="nobody"),
        pytest.param(b"\xff\xfe\n" * 9, [], id="no text"),
        pytest.param(f"boot\n{uuid_of(1)}\n{uuid_of(2)[:-1]}".encode(), [1], id="a torn line"),
        pytest.param(f"boot\n../../x\n\n{uuid_of(2)}\n".encode(), [2], id="lines of others"),
    ],
)
def test_of_a_guestbook_that_is_damaged_the_rest_is_taken(
    tmp_path: Path, content: bytes, known: list[int]
) -> None:
    path = tmp_path / "seen"
    path.write_bytes(content)
    book = Guestbook(path, "boot")
    assert list(book.starts) == [uuid_of(number) for number in known]
    book.enter({uuid_of(7): "x"})
    assert entered(path) == [uuid_of(number) for number in (*known, 7)]


def test_what_lies_where_the_guestbook_is_made_gives_way(tmp_path: Path) -> None:
    secret, path = tmp_path / "secret", tmp_path / "seen"
    secret.write_text("precious")
    path.with_name("seen.new").symlink_to(secret)
    Guestbook(path, "boot").enter({uuid_of(1): "x"})
    assert entered(path) == [uuid_of(1)]
    assert secret.read_text() == "precious"
    assert not path.is_symlink()


def test_a_guestbook_that_is_no_file_is_not_read_and_gives_way(tmp_path: Path) -> None:
    secret, link, pipe = tmp_path / "secret", tmp_path / "link", tmp_path / "pipe"
    write_book(secret, "boot", uuid_of(1))
    link.symlink_to(secret)
    os.mkfifo(pipe)
    for path in (link, pipe):
        book = Guestbook(path, "boot")
        assert book.starts == {}
        book.enter({uuid_of(2): "x"})
        assert entered(path) == [uuid_of(2)]
    assert entered(secret) == [uuid_of(1)]


def test_of_very_many_guests_the_first_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "seen"
    book = Guestbook(path, "boot")
    for first in range(0, 3 * LIMIT, LIMIT // 2):
        book.enter({uuid_of(number): "x" for number in range(first, first + LIMIT // 2)})
        assert len(book.starts) <= LIMIT
        assert len(path.read_text().splitlines()) <= 2 * LIMIT + 1
    kept = [uuid_of(number) for number in range(2 * LIMIT, 3 * LIMIT)]
    assert list(book.starts) == kept
    assert entered(path) == kept


def test_a_guestbook_that_cannot_be_written_is_told_once_and_made_good_later(desk: Desk) -> None:
    path = desk.folder / "seen"
    path.mkdir()
    with Logbook() as book:
        one, other = desk.fill()
        (told,) = book.told("guestbook.unsaved")
    assert str(path) in told["error"]
    path.rmdir()
    desk.look()
    assert set(entered(path, "this boot")) == {one, other}
