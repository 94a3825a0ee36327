"""The hook by itself: what libvirt sees of it, whatever the daemon says or does not say."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from agent import admit
from agent.config import Config
from agent.terminal import DEFAULT_CONFIG

if TYPE_CHECKING:
    from collections.abc import Iterator

RULES: Final = Path(__file__).parents[1] / "debian" / "rules"
HOOK: Final = Path(admit.__file__)
DEFINITION: Final = b"<domain>\n<name>\xe2\x98\x83</name></domain>\n"
OTHERS: Final = ("start", "started", "stopped", "release", "reconnect", "attach", "unheard-of", "")
PATIENCE: Final = "30"


class Ended(NamedTuple):
    """What libvirt sees of a hook."""

    status: int
    out: bytes
    errors: str


def call(*arguments: str, hook: Path = HOOK, given: bytes = DEFINITION) -> Ended:
    """Run the hook as libvirt does."""
    environment = {"LC_ALL": "C", "PATH": os.environ["PATH"], "HOME": "/root"}
    done = subprocess.run(
        [hook, *arguments], input=given, capture_output=True, check=False, env=environment
    )
    return Ended(done.returncode, done.stdout, done.stderr.decode())


def asked(folder: Path, operation: str = "prepare", patience: str = PATIENCE) -> Ended:
    """Run the hook with the configuration in `folder`, asking at the socket there first."""
    options = ("--config", str(folder / "config.toml"), "--socket", str(folder / "door"))
    return call("guest", operation, "begin", "-", *options, "--patience", patience)


@contextmanager
def daemon(path: Path, answer: bytes | None) -> Iterator[list[bytes]]:
    """Answer one question at `path`, or none at all; yield what was asked."""
    heard: list[bytes] = []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        with suppress(OSError), closing(listener.accept()[0]) as caller:
            if answer is None:
                while caller.recv(1 << 16):
                    pass  # until the hook gives up
                return
            head, _, text = caller.recv(1 << 16).partition(b"\n")
            while len(text) < int(head.split()[-1]):
                text += caller.recv(1 << 16)
            heard.extend((head, text))
            caller.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield heard
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()
        path.unlink()


def configure(folder: Path, text: str) -> None:
    """Write the configuration; DOOR is where `asked` asks first."""
    data = text.replace("DOOR", f"{folder}/door").encode("utf-8", "surrogateescape")
    (folder / "config.toml").write_bytes(data)


OPEN: Final = '[admission]\nenabled = true\nsocket = "DOOR"\n'
CLOSED: Final = 'admission = {enabled = true, fail = "closed", socket = "DOOR"}\n'


# What needs no answer.


@pytest.mark.parametrize("operation", OTHERS)
def test_a_call_that_is_none_of_its_own_ends_well_even_without_python(
    tmp_path: Path, operation: str
) -> None:
    hook = tmp_path / "hook"
    hook.write_text(HOOK.read_text().replace("/usr/bin/python3", "/nowhere/python3"))
    hook.chmod(0o755)
    assert call("guest", operation, "begin", "-", hook=hook) == Ended(0, b"", "")
    assert admit.main(["guest", operation, "begin", "-"]) == 0
    assert call("guest", "prepare", "begin", "-", hook=hook).status == 127  # it would need it


@pytest.mark.parametrize("arguments", [(), ("guest",), ("guest", "prepare"), ("a", "restore", "")])
def test_a_call_that_libvirt_does_not_make_ends_well(arguments: tuple[str, ...]) -> None:
    assert call(*arguments) == Ended(0, b"", "")


def test_it_asks_at_the_beginning_only(tmp_path: Path) -> None:
    configure(tmp_path, CLOSED)
    options = ("--config", str(tmp_path / "config.toml"), "--socket", str(tmp_path / "door"))
    assert call("guest", "prepare", "end", "-", *options) == Ended(0, b"", "")
    assert call("guest", "prepare", "begin", "-", *options).status == 1


def test_it_is_installed_by_copying_one_file(tmp_path: Path) -> None:
    hook = Path(shutil.copy(HOOK, tmp_path / "emupool"))
    with daemon(tmp_path / "door", b"refuse 2\nno") as heard:
        options = ("--socket", str(tmp_path / "door"), "--patience", PATIENCE)
        assert call("g", "prepare", "begin", "-", *options, hook=hook) == Ended(
            1, b"", "emupool: no\n"
        )
    assert heard == [f"emupool 1 prepare {len(DEFINITION)}".encode(), DEFINITION]


def test_the_guide_installs_it_where_libvirt_looks() -> None:
    guide = (HOOK.parents[1] / "docs" / "admission.md").read_text()
    told = re.findall(r"^    install -Dm755 (\S+) (\S+)$", guide, re.MULTILINE)
    (packaged, installed), targets = (source for source, _ in told), {target for _, target in told}
    assert f"$(share){packaged.removeprefix('/usr/share')}" in (RULES.read_text())
    assert installed.endswith(f"/site-packages/agent/{HOOK.name}")
    assert targets == {"/etc/libvirt/hooks/qemu.d/emupool"}


def test_it_loads_next_to_nothing() -> None:
    code = f"""
import sys
before = set(sys.modules)
exec(compile(open({str(HOOK)!r}).read(), "hook", "exec"), {{"__name__": "hook"}})
print(*(set(sys.modules) - before))
"""
    python = ["/usr/bin/python3", "-IS", "-c", code]
    done = subprocess.run(python, check=True, capture_output=True, text=True)
    assert set(done.stdout.split()) <= {"__future__", "_socket", "time"}


def test_its_places_are_those_of_the_daemon() -> None:
    assert Path(admit.CONFIG) == DEFAULT_CONFIG
    assert Path(admit.SOCKET) == Config().admission.socket
    assert Config().admission.fail == "open"
    assert not Config().admission.enabled
    assert os.access(HOOK, os.X_OK)


# What the daemon says.


@pytest.mark.parametrize("operation", sorted(admit.ASKED))
@pytest.mark.parametrize(
    ("answer", "ended"),
    [
        (b"admit 0\n", Ended(0, b"", "")),
        (b"refuse 8\nno: \xe2\x98\x83\n", Ended(1, b"", "emupool: no: \N{SNOWMAN}\n\n")),
        (b"replace 9\n<domain/>", Ended(0, b"<domain/>", "")),
        (b"replace 9\n<domain/>and more", Ended(0, b"<domain/>", "")),
        (b"replace 300000\n" + b"x" * 300_000, Ended(0, b"x" * 300_000, "")),
    ],
    ids=["admit", "refuse", "replace", "more than it says", "a long one"],
)
def test_libvirt_gets_the_answer(
    tmp_path: Path, operation: str, answer: bytes, ended: Ended
) -> None:
    with daemon(tmp_path / "door", answer):
        assert asked(tmp_path, operation) == ended


BROKEN: Final = {
    "nothing": b"",
    "another word": b"perhaps 0\n",
    "no length": b"refuse\nno",
    "a length that is none": b"refuse x\nno",
    "a negative length": b"refuse -1\nno",
    "a length beyond all": b"replace 99999999999\nx",
    "less than it says": b"replace 10\n<domain/>",
    "no end of the line": b"x" * 1000,
    "bytes": b"\xff\xff 2\nno",
    "it cannot tell": b"unknown 3\nwhy",
}


@pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN)
def test_an_answer_that_is_none_is_as_no_answer(tmp_path: Path, answer: bytes) -> None:
    configure(tmp_path, CLOSED)
    with daemon(tmp_path / "door", answer):
        ended = asked(tmp_path)
    assert (ended.status, ended.out) == (1, b"")
    assert "and admission.fail is closed: start the daemon, or set admission.fail" in ended.errors
    configure(tmp_path, OPEN)
    with daemon(tmp_path / "door", answer):
        ended = asked(tmp_path)
    assert (ended.status, ended.out) == (0, b"")
    assert "it may start, for admission.fail is open" in ended.errors


# Nobody answers.


@pytest.mark.parametrize(
    ("config", "status", "told"),
    [
        pytest.param(None, 0, r"^$", id="no configuration: not enabled"),
        pytest.param("", 0, r"^$", id="an empty one"),
        pytest.param('[admission]\nfail = "closed"\n', 0, r"^$", id="not enabled"),
        pytest.param(OPEN, 0, r"No such file or directory: it may start", id="open by default"),
        pytest.param(OPEN + 'fail = "open"\n', 0, r"it may start", id="open"),
        pytest.param(CLOSED, 1, r"No such file or directory, and .* is closed", id="closed"),
        pytest.param("[admission\n", 0, r"taken for one without admission", id="no TOML"),
        pytest.param(CLOSED + "\udcff", 0, r"taken for one without admission", id="no UTF-8"),
        pytest.param("admission = 1\n", 0, r"^$", id="no table"),
        pytest.param("a=" + "[" * 100_000, 0, r"taken for one without", id="lists in lists"),
        pytest.param("[admission]\nenabled = 1\n", 0, r"^$", id="not true but 1"),
        pytest.param(
            "[admission]\nenabled = true\nfail = 7\nsocket = 7",
            0,
            r"it may start",
            id="other types",
        ),
    ],
)
def test_without_an_answer_the_configuration_says_what_that_means(
    tmp_path: Path, config: str | None, status: int, told: str
) -> None:
    if config is not None:
        configure(tmp_path, config)
    ended = asked(tmp_path)
    assert (ended.status, ended.out) == (status, b"")
    assert re.search(told, ended.errors)
    assert "Traceback" not in ended.errors


@pytest.mark.parametrize(("config", "status"), [(OPEN, 0), (CLOSED, 1)])
def test_who_does_not_answer_is_not_waited_for(tmp_path: Path, config: str, status: int) -> None:
    configure(tmp_path, config)
    with daemon(tmp_path / "door", None):
        ended = asked(tmp_path, patience="0.05")
    assert (ended.status, ended.out) == (status, b"")
    assert f"{tmp_path}/door: no answer within 0.05 s" in ended.errors


def test_who_is_gone_does_not_answer(tmp_path: Path) -> None:
    configure(tmp_path, CLOSED)
    with closing(socket.socket(socket.AF_UNIX)) as earlier:
        earlier.bind(str(tmp_path / "door"))
    assert "Connection refused" in asked(tmp_path).errors


@pytest.mark.parametrize("first", [None, b"perhaps 0\n"], ids=["nobody there", "no answer there"])
def test_the_socket_of_the_configuration_is_asked_next(tmp_path: Path, first: bytes | None) -> None:
    configure(tmp_path, OPEN.replace("DOOR", f"{tmp_path}/other"))
    with daemon(tmp_path / "other", b"refuse 2\nno"):
        if first is None:
            assert asked(tmp_path) == Ended(1, b"", "emupool: no\n")
        else:
            with daemon(tmp_path / "door", first):
                assert asked(tmp_path) == Ended(1, b"", "emupool: no\n")


def test_a_configuration_that_takes_hours_to_read_takes_its_time_and_no_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(tmp_path, f"{CLOSED}{'a.' * 100_000}b = 1\n")
    assert admit.admission(str(tmp_path / "config.toml"), seconds=0.05) == {}
    assert "it takes too long to read" in capsys.readouterr().err


def test_what_nobody_foresaw_lets_the_guest_start(tmp_path: Path) -> None:
    ended = asked(tmp_path, patience="soon")
    assert (ended.status, ended.out) == (0, b"")
    assert ended.errors.startswith("emupool: not asked: ValueError")


def test_the_command_is_the_same_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "agent", "admit", "guest", "prepare", "begin", "-"]
    with daemon(tmp_path / "door", b"refuse 2\nno"):
        done = subprocess.run(
            [*command, "--socket", str(tmp_path / "door"), "--patience", PATIENCE],
            input=DEFINITION,
            capture_output=True,
            check=False,
        )
    assert Ended(done.returncode, done.stdout, done.stderr.decode()) == Ended(
        1, b"", "emupool: no\n"
    )
