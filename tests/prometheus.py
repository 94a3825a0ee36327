"""A real Prometheus for the tests: Debian's, on a port and in a folder of its own.

It has the configuration and the rules of deploy/prometheus, changed in this only: it scrapes and
evaluates five times a second, and an alert fires at once, whatever its `for` says (that is for
promtool to test). Besides the job of the example there is that job again as its comments have it,
over TLS, under the same name.

    with Prometheus(folder, plain=["127.0.0.1:9857"], secure=[]) as prometheus:
        wait(lambda: prometheus.value("up") == 1, "the daemon to be scraped")
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import pytest

from tests.certificates import CLIENT, SERVER
from tests.guests import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FOLDER: Final = Path(__file__).parents[1] / "deploy/prometheus"
INTERVAL: Final = "200ms"
START_SECONDS: Final = 30.0
STARTING: Final = 503


@cache
def _program(name: str) -> str | None:
    beside = str(Path(sys.executable).parent)
    return shutil.which(name, path=os.pathsep.join((beside, os.environ.get("PATH", ""))))


def program(name: str) -> str:
    """Return prometheus or promtool as tools/setup.sh leaves it, beside this Python or in PATH."""
    found = _program(name)
    if found is None:
        pytest.skip(f"{name} is missing: tools/setup.sh dev")
    return found


def promtool(*arguments: str, text: str = "") -> tuple[int, str]:
    """Run promtool with `text` as its input; return its exit status and all that it says."""
    done = subprocess.run(
        [program("promtool"), *arguments],
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout


class Sample(NamedTuple):
    """One series of an answer; its name is the label `__name__`, if it has one."""

    labels: dict[str, str]
    value: float


class Prometheus:
    """One server; its targets are given by address, those over TLS apart."""

    def __init__(self, folder: Path, *, plain: Sequence[str], secure: Sequence[str]) -> None:
        """Write a configuration below `folder`, with the certificates of the tests."""
        self._folder = folder
        self._config = folder / "prometheus.yml"
        self._config.write_text(_both_jobs((FOLDER / "prometheus.yml").read_text()))
        rules = (FOLDER / "emupool.rules.yml").read_text()
        (folder / "emupool.rules.yml").write_text(re.sub(r"(?m)^(\s+for:) \w+$", r"\1 0s", rules))
        for name, targets in (("targets.yml", plain), ("secure.yml", secure)):
            (folder / name).write_text(json.dumps([{"targets": targets}]))  # which is YAML
        (folder / "tls").mkdir()
        for name, text in (("ca.pem", SERVER), ("client.pem", CLIENT), ("client.key", CLIENT)):
            (folder / "tls" / name).write_text(text)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start it, and wait until it answers; the first scrape comes some five seconds later."""
        with reserved() as self._address, (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    program("prometheus"),
                    f"--config.file={self._config}",
                    f"--storage.tsdb.path={self._folder}/data",
                    f"--web.listen-address={self._address}",
                    "--log.level=warn",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            try:
                wait_until(self._answers, START_SECONDS, "Prometheus to answer")
            except BaseException:
                self.__exit__()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def query(self, expression: str) -> list[Sample]:
        """Return what an instant query finds now; a query that is refused fails the test."""
        found = self._get("query", query=expression)
        assert found["resultType"] == "vector", expression
        return [Sample(one["metric"], float(one["value"][1])) for one in found["result"]]

    def value(self, expression: str) -> float | None:
        """Return the one value that a query finds, None if it finds no series."""
        found = self.query(expression)
        assert len(found) <= 1, found
        return found[0].value if found else None

    def firing(self, alert: str) -> set[str]:
        """Return the instances for which an alert fires."""
        alerts: list[dict[str, Any]] = self._get("alerts")["alerts"]
        return {
            one["labels"]["instance"]
            for one in alerts
            if (one["labels"]["alertname"], one["state"]) == (alert, "firing")
        }

    def rules(self) -> list[dict[str, Any]]:
        """Return all rules with what came of their last evaluation."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def _answers(self) -> bool:
        log = (self._folder / "log").read_text()
        assert self._process is not None
        assert self._process.poll() is None, log
        try:
            self._get("rules")
        except OSError:
            return False
        return True

    def _get(self, what: str, **parameters: str) -> Any:  # noqa: ANN401 - JSON
        url = f"http://{self._address}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            text = error.read().decode()  # to its end, which closes the connection
            refused = ConnectionError if error.code == STARTING else AssertionError
            raise refused(f"{parameters}: {text}") from None


def _both_jobs(text: str) -> str:
    """Return the example with its job twice: as it stands, and with the lines for TLS."""
    text, times = re.subn(r"(_interval:) \w+", rf"\1 {INTERVAL}", text)
    assert times == 2
    job = text[text.index("  - job_name: emupool\n") :]
    secure = re.sub(r"(?m)^    #(?! \S)", "    ", job)
    assert "tls_config" in secure
    secure = secure.replace("job_name: emupool", "job_name: emupool-tls")
    secure = secure.replace("targets.yml", "secure.yml")
    return text + secure + "    relabel_configs: [{target_label: job, replacement: emupool}]\n"


@contextmanager
def reserved() -> Iterator[str]:
    """Yield an address of this host that nobody else is given meanwhile.

    Servers that set SO_REUSEADDR may listen there: what holds it is bound, and does not listen.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield "{}:{}".format(*holder.getsockname())
