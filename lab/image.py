"""The lab's disk: a Debian with two kernels, a libvirtd and QEMU, made once for its inputs.

What is made lies in lab/cache, each thing under the hash of what it was made from. Debian's own
updates are no input: `make clean` fetches them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LAB: Final = Path(__file__).parent
ROOT: Final = LAB.parent
CACHE: Final = LAB / "cache"
SUITE: Final = "bookworm"
PACKAGES: Final = (
    *("systemd", "systemd-sysv", "dbus", "udev", "polkitd", "kmod", "procps", "util-linux"),
    *("linux-image-cloud-amd64", "initramfs-tools", "zstd"),
    *("libvirt-daemon-system", "libvirt-clients", "qemu-system-x86"),
    *("python3", "python3-venv", "python3-libvirt"),
)
DISK: Final = "3G"
TOOLS: Final = {
    "mmdebstrap": "mmdebstrap",
    "mkfs.ext4": "e2fsprogs",
    "qemu-system-x86_64": "qemu-system-x86",
}
"""What makes and boots it, and the Debian package of each."""
_TRACKED: Final = ("--cached", "--others", "--exclude-standard")
_NO_PART: Final = ("benchmarks/", "lab/", "tests/")
"""Where nothing of the package comes from."""


class LabError(Exception):
    """The lab cannot be made or booted here; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Image:
    """A folder with `disk`, and kernels and their first file systems by version."""

    folder: Path

    @property
    def disk(self) -> Path:
        """Return the root file system, which no run writes to."""
        return self.folder / "disk"

    def kernel(self, release: str) -> tuple[Path, Path]:
        """Return kernel and initrd of a release such as 6.1."""
        kernels = sorted(self.folder.glob(f"vmlinuz-{release}[.-]*"))
        if not kernels:
            raise LabError(f"{self.folder} has no kernel {release}: make clean, then repeat")
        return kernels[-1], kernels[-1].with_name(
            kernels[-1].name.replace("vmlinuz", "initrd.img", 1)
        )


def image() -> Image:
    """Return the disk, made if it was not."""
    if os.geteuid() != 0:
        raise LabError("not root: the lab's disk needs root to be made")
    sources, options = _sources(), _apt_options()
    inputs = (*PACKAGES, SUITE, DISK, *sources, *options, *_texts())
    with made("image", inputs) as folder:
        if not (folder / "disk").exists():
            _need_tools()
            _make(folder, sources, options)
    return Image(folder)


def wheels() -> Path:
    """Return a folder of wheels: all that emupool depends on.

    libvirt-python has none of its own and is compiled here, which is why this machine's Debian
    has to be the lab's.
    """
    here = platform.freedesktop_os_release().get("VERSION_CODENAME")
    if here != SUITE:
        raise LabError(f"wheels are compiled on Debian {SUITE}, this machine has {here}")
    project = (ROOT / "pyproject.toml").read_text()
    dependencies = re.findall(r"^dependencies = \[.*?^\]", project, re.MULTILINE | re.DOTALL)
    with made("wheels", (*dependencies, sys.version)) as folder:
        if not any(folder.glob("libvirt_python-*.whl")):
            _wheel(folder, ROOT)
            for own in folder.glob("emupool-*.whl"):
                own.unlink()
    return folder


def product(version: str | None = None) -> Path:
    """Return emupool's own wheel as the work tree has it; `version` is what it calls itself."""
    files = sorted((ROOT / "agent").rglob("*.py"))
    texts = [file.read_text() for file in (*files, ROOT / "pyproject.toml", ROOT / "README.md")]
    kind = "product" if version is None else "older"
    with made(kind, (version or "", *texts)) as folder:
        if not any(folder.glob("emupool-*.whl")):
            with tempfile.TemporaryDirectory() as place:
                tree = _copy(Path(place), version)
                _wheel(folder, tree, "--no-deps")
    return next(folder.glob("emupool-*.whl"))


def package(version: str | None = None) -> Path:
    """Return emupool's Debian package, as `make deb` makes it of the work tree; see `product`."""
    told = _run("git", "-C", str(ROOT), "ls-files", "-z", *_TRACKED).split("\0")
    files = [ROOT / name for name in sorted(told) if name and not name.startswith(_NO_PART)]
    texts = [file.read_text() for file in files if file.is_file()]
    kind = "package" if version is None else "older-package"
    with made(kind, (version or "", *texts)) as folder:
        if not any(folder.glob("*.deb")):
            print("lab: making the package, once", flush=True)
            asked = {"DIST": str(folder), **({} if version is None else {"VERSION": version})}
            _run(str(ROOT / "tools/deb.sh"), **asked)
    return next(folder.glob("*.deb"))


# parts


def _copy(place: Path, version: str | None) -> Path:
    tree = place / "emupool"
    shutil.copytree(ROOT / "agent", tree / "agent", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    if version is not None:
        module = tree / "agent/__init__.py"
        text = re.sub(r'(?m)^(__version__.*= )".*"$', rf'\1"{version}"', module.read_text())
        module.write_text(text)
    return tree


def _wheel(folder: Path, what: Path, *options: str) -> None:
    _run(
        *(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "wheel"),
        *("--wheel-dir", str(folder), *options, str(what)),
    )


@contextlib.contextmanager
def made(kind: str, inputs: Sequence[str], cache: Path = CACHE) -> Iterator[Path]:
    """Return the folder of what is made from `inputs`; what others of its kind had goes.

    A machine that runs keeps its disk: QEMU has it open.
    """
    key = hashlib.sha256("\0".join(inputs).encode()).hexdigest()[:16]
    cache.mkdir(exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = cache / f"{kind}-{key}"
        folder.mkdir(exist_ok=True)
        yield folder
        for other in cache.glob(f"{kind}-{'[0-9a-f]' * len(key)}"):  # no kind that begins like it
            if other != folder:
                shutil.rmtree(other)


def _texts() -> list[str]:
    files = sorted(p for p in (LAB / "root").rglob("*") if p.is_file())
    return [
        f"{file.relative_to(LAB)} {os.access(file, os.X_OK)}\n{file.read_text()}"
        for file in (LAB / "customize.sh", *files)
    ]


def _need_tools() -> None:
    packages = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if packages:
        print(f"lab: installing {' '.join(packages)}", flush=True)
        _run("apt-get", "-qq", "update")
        _run("apt-get", "-qq", "-y", "install", "--no-install-recommends", *packages)


def _sources() -> list[str]:
    """Return lines for apt: where this machine has Debian from, and its backports."""
    told = _run(
        *("apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)", "Created-By: Packages")
    )
    sites = [line.split() for line in told.splitlines()]
    main = [site for site, release in sites if release == SUITE]
    if not main:
        raise LabError(f"this machine's apt knows no Debian {SUITE}: see /etc/apt/sources.list")
    suites = [(main[0], SUITE), (main[0], f"{SUITE}-backports")]
    suites += [(site, release) for site, release in sites if release == f"{SUITE}-security"][:1]
    return [f"deb {site} {release} main" for site, release in suites]


def _apt_options() -> list[str]:
    """Return how this machine reaches a mirror; the mirror's clock may be odd."""
    told = _run("apt-config", "dump").splitlines()
    return [line for line in told if re.match(r"Acquire::(Check-|[a-z]+::Proxy)", line)]


def _make(folder: Path, sources: Sequence[str], options: Sequence[str]) -> None:
    print("lab: making the disk, once (about two minutes)", flush=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        tree = Path(place) / "tree"
        _run(
            *("mmdebstrap", "--quiet", "--mode=root", "--format=directory", "--variant=minbase"),
            *(f"--include={','.join(PACKAGES)}", *(f"--aptopt={option}" for option in options)),
            f"--customize-hook=sync-in {LAB}/root /",
            f'--customize-hook={LAB}/customize.sh "$1" {SUITE}',
            *(SUITE, str(tree), *sources),
        )
        for file in (tree / "boot").iterdir():
            if file.name.startswith(("vmlinuz-", "initrd.img-")):
                shutil.copy(file, folder)
        part = folder / "disk.part"
        _run("mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-d", str(tree), str(part), DISK)
        part.rename(folder / "disk")


def _run(*command: str, **environment: str) -> str:
    surroundings = {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=surroundings)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-2000:]
        raise LabError(f"{' '.join(command[:3])} failed:\n{said}")
    return done.stdout
