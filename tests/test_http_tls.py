"""TLS: handshakes, certificates, and what both cost."""

from __future__ import annotations

import io
import socket
import ssl
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import logs
from agent.http import CertificateRefused
from agent.http.listener import tls
from tests import web
from tests.certificates import CLIENT, EXPIRED, LOCKED
from tests.test_http_requests import EDITS, edited
from tests.web import (
    ANSWERS,
    BIG,
    HEALTH,
    LOOPBACK,
    Clock,
    ask,
    client_of,
    connect,
    is_dropped,
    is_open,
    rest,
    running,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agent.config import HttpSettings
    from agent.http import Server


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> HttpSettings:
    return web.secure(tmp_path_factory.mktemp("tls"))


def test_a_scrape_works_over_tls(secure: HttpSettings) -> None:
    with running(secure) as server:
        context = client_of(secure)
        assert ask(server, context=context).body == b"ok\n"
        assert ask(server, HEALTH * 2, context).body == b"ok\n"
        with closing(connect(server, context)) as sock:
            assert isinstance(sock, ssl.SSLSocket)
            assert sock.version() in {"TLSv1.2", "TLSv1.3"}


def test_a_large_answer_arrives_whole_over_tls(secure: HttpSettings) -> None:
    with running(secure, replace(ANSWERS, page=lambda _: BIG[: 4 << 20])) as server:
        answer = ask(server, HEALTH.replace(b"healthz", b""), client_of(secure))
        assert len(answer.body) == 4 << 20


def test_nothing_older_than_tls_1_2_is_spoken(secure: HttpSettings) -> None:
    context = tls(secure)
    assert context is not None
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert tls(LOOPBACK) is None


def test_silent_and_broken_handshakes_delay_nobody(secure: HttpSettings) -> None:
    clock = Clock()
    with running(secure, clock=clock) as server, ExitStack() as bad:
        silent, half, plain = (bad.enter_context(closing(connect(server))) for _ in range(3))
        half.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        plain.sendall(HEALTH)
        assert ask(server, context=client_of(secure)).status == 200
        assert b"ok" not in rest(plain)
        assert is_open(silent)
        assert is_open(half)
        clock.now = 5.0
        assert ask(server, context=client_of(secure)).status == 200
        assert is_dropped(silent)
        assert is_dropped(half)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_needs_a_certificate_where_one_is_demanded(
    secure: HttpSettings, version: ssl.TLSVersion
) -> None:
    assert secure.tls_cert is not None
    home = secure.tls_cert.parent
    (home / "expired.pem").write_text(EXPIRED)
    (home / "ca.pem").write_text(CLIENT + EXPIRED)
    with running(replace(secure, client_ca=home / "ca.pem")) as server:
        for name, is_welcome in (
            ("client.pem", True),
            ("server.pem", False),  # of another CA
            ("expired.pem", False),
            (None, False),
        ):
            context = client_of(secure)
            context.minimum_version = context.maximum_version = version
            if name is not None:
                context.load_cert_chain(home / name)
            if is_welcome:
                assert ask(server, context=context).status == 200
            else:
                with pytest.raises((ssl.SSLError, ConnectionResetError)):
                    ask(server, context=context)


def test_the_sessions_of_old_clients_are_not_kept_without_end(tmp_path: Path) -> None:
    secure = web.secure(tmp_path)
    context = client_of(secure)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_TICKET
    with running(secure) as server:
        kept = []
        for _ in range(600):
            assert ask(server, context=context).status == 200
            assert server._tls is not None
            kept.append(server._tls.session_stats()["number"])
        assert max(kept) <= 256
        assert kept[-1] < len(kept) - 256
        (tmp_path / "server.pem").unlink()  # what was read at the start goes on
        assert {ask(server, context=context).status for _ in range(300)} == {200}


@pytest.fixture(scope="module")
def server(secure: HttpSettings) -> Iterator[Server]:
    with running(secure) as started:
        yield started


@pytest.fixture(scope="module")
def context(secure: HttpSettings) -> ssl.SSLContext:
    return client_of(secure)


def greeting() -> bytes:
    """Return what a client says first."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        client.wrap_bio(incoming, outgoing, server_hostname="a").do_handshake()
    return outgoing.read()


@settings(max_examples=200)
@given(sent=st.binary(max_size=50) | st.builds(edited, st.builds(greeting), st.lists(EDITS)))
def test_any_bytes_to_a_port_of_tls_are_no_news(
    server: Server, context: ssl.SSLContext, sent: bytes
) -> None:
    log = io.StringIO()
    logs.configure("debug", "json", log)
    with closing(connect(server)) as sock:
        with suppress(OSError):  # it may be gone by now
            sock.sendall(sent)
            sock.shutdown(socket.SHUT_WR)
        assert b"HTTP" not in rest(sock)
    assert ask(server, context=context).status == 200
    assert log.getvalue() == ""


def test_a_client_cannot_have_the_handshake_made_again(secure: HttpSettings) -> None:
    context = tls(secure)
    assert context is not None
    assert context.options & ssl.OP_NO_RENEGOTIATION


@pytest.mark.parametrize(
    ("cert", "key", "ca", "said"),
    [
        ("none.pem", None, None, "No such file"),
        ("server.pem", "none.pem", None, "No such file"),
        ("server.pem", "client.pem", None, "KEY_VALUES_MISMATCH"),
        ("empty.pem", None, None, "http.tls_cert"),
        ("locked.pem", None, None, "no passphrase"),
        ("server.pem", None, "none.pem", "http.client_ca"),
        ("server.pem", None, "empty.pem", "http.client_ca"),
        (None, "server.pem", None, "http.tls_cert: not set"),
        (None, None, "client.pem", "http.tls_cert: not set"),
    ],
)
def test_an_unusable_certificate_is_refused_in_a_line(
    secure: HttpSettings, cert: str | None, key: str | None, ca: str | None, said: str
) -> None:
    assert secure.tls_cert is not None
    secure.tls_cert.with_name("empty.pem").write_text("")
    secure.tls_cert.with_name("locked.pem").write_text(LOCKED)
    home = secure.tls_cert.parent

    def path(name: str | None) -> Path | None:
        return home / name if name else None

    refused = replace(secure, tls_cert=path(cert), tls_key=path(key), client_ca=path(ca))
    with pytest.raises(CertificateRefused) as caught, running(refused):
        pass
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
