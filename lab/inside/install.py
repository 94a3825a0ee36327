"""Installing emupool in the lab: by the very lines that README gives an operator, or a package.

Nothing can be fetched in here, so pip is given wheels, and the project's own among them. If a .deb
came along, that is installed instead.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

from lab.inside import agent, host
from lab.inside.waiting import check, wait_for

IN: Final = Path("/lab/in")
_SECTION: Final = "## Install it on a compute node"
_COMMANDS: Final = ("python3 ", "/opt/", "ln ", "install ", "systemd-sysusers", "systemctl ")
_REMOVAL: Final = "## Take it off again"
_LAST: Final = "systemctl enable --now emupool"


def steps(readme: str) -> list[str]:
    """Return README's commands, up to the start of the service; those that only look are left."""
    lines = _lines(readme, _SECTION)
    wanted = [line for line in lines if line.startswith(_COMMANDS)]
    check(_LAST in wanted, f"README does not say '{_LAST}' any more: {wanted}")
    return wanted[: wanted.index(_LAST)]


def install() -> str:
    """Install it, and return by what; it is not started yet."""
    packages = sorted(map(str, IN.glob("packages/*.deb")))
    if packages:
        host.run("dpkg", "--install", *packages, timeout=1200)
        host.run("systemctl", "stop", agent.UNIT)
        return "package"
    for step in steps((IN / "README.md").read_text()):
        _shell(step.replace("pip install .", "pip install emupool"), "wheels")
    return "README"


def remove() -> None:
    """Remove it by README's lines."""
    for step in _lines((IN / "README.md").read_text(), _REMOVAL):
        _shell(step, "wheels")


def pip(folder: str) -> None:
    """Put in the version whose wheel lies in `folder`, over the one that is there."""
    _shell("/opt/emupool/bin/pip install --force-reinstall --no-deps emupool", folder)


def start() -> None:
    """Start it as README says, for now and each boot."""
    host.run(*_LAST.split())
    wait_for(agent.ready, "the agent to be ready after its installation")


def _lines(readme: str, section: str) -> list[str]:
    """Return the commands of a section of README."""
    text = readme.partition(f"{section}\n")[2].partition("\n## ")[0].replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    check(lines, f"README has no commands in '{section}' any more")
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
