"""Installing emupool in the lab: by the very lines that docs/install.md gives, or a package.

Nothing can be fetched in here, so pip is given wheels, and the project's own among them. If a .deb
came along, that is installed instead.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lab.inside import host
from lab.inside.waiting import check, wait_for

if TYPE_CHECKING:
    from lab.inside.agent import Agent

IN: Final = Path("/lab/in")
GUIDE: Final = "docs/install.md"
_SECTION: Final = "## A virtual environment"
_COMMANDS: Final = ("python3 ", "/opt/", "ln ", "install ", "systemd-sysusers", "systemctl ")
_REMOVAL: Final = "## Take a virtual environment off again"
_LAST: Final = "systemctl enable --now emupool"
NEWER: Final = "newer"
OLDER: Final = "older"
_PACKAGES: Final = {NEWER: "packages", OLDER: "packages/older"}


def steps(guide: str) -> list[str]:
    """Return the guide's commands up to the start of the service, but for those that only look."""
    lines = _lines(guide, _SECTION)
    wanted = [line for line in lines if line.startswith(_COMMANDS)]
    check(_LAST in wanted, f"the guide does not say '{_LAST}' any more: {wanted}")
    return wanted[: wanted.index(_LAST)]


def install(agent: Agent) -> str:
    """Install it, and return by what; it is not started yet."""
    if is_package():
        _dpkg(NEWER)
        wait_for(agent.ready, "the agent that the package starts")
        check(agent.status()["dry_run"], "the package pins at once")
        host.run("emupool", "plan")
        agent.stop()
        return "package"
    for step in steps((IN / GUIDE).read_text()):
        _shell(step.replace("pip install .", "pip install emupool"), "wheels")
    return "guide"


def is_package() -> bool:
    """Tell whether it comes as a package."""
    return any(IN.glob(f"{_PACKAGES[NEWER]}/*.deb"))


def put(agent: Agent, version: str) -> None:
    """Put the older or the newer version in the place of the other, and have it run."""
    if is_package():
        _dpkg(version)
        wait_for(agent.ready, "the agent to be ready after an upgrade")
        return
    before = agent.pid()
    folder = "wheels" if version == NEWER else "older"
    _shell("/opt/emupool/bin/pip install --force-reinstall --no-deps emupool", folder)
    check(agent.pid() == before, "pip ended it")
    agent.restart()


def remove() -> None:
    """Remove it by the guide's lines."""
    for step in _lines((IN / GUIDE).read_text(), _REMOVAL):
        _shell(step, "wheels")


def start(agent: Agent) -> None:
    """Start it as the guide says, for now and each boot."""
    host.run(*_LAST.split())
    wait_for(agent.ready, "the agent to be ready after its installation")


def _dpkg(version: str) -> None:
    packages = map(str, IN.glob(f"{_PACKAGES[version]}/*.deb"))
    host.run("dpkg", "--force-downgrade", "--install", *packages, timeout=1200)


def _lines(guide: str, section: str) -> list[str]:
    """Return the commands of a section of the guide."""
    text = guide.partition(f"{section}\n")[2].partition("\n## ")[0].replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    check(lines, f"the guide has no commands in '{section}' any more")
    return lines


def _shell(command: str, folder: str) -> None:
    environment = {
        **os.environ,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(IN / folder),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
        "PIP_NO_COMPILE": "1",  # Python compiles what it imports, the rest would take minutes
    }
    done = subprocess.run(
        ("bash", "-ec", command),
        capture_output=True,
        text=True,
        check=False,
        cwd=IN,
        env=environment,
        timeout=1200,
    )
    check(not done.returncode, f"{command}: exit {done.returncode}\n{done.stdout}{done.stderr}")
