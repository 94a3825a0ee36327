"""What a plan is made from, in one file: to be replayed far from the host it was taken on.

    emupool-collect/root/sys/...         the files that `topology` reads
    emupool-collect/domains/UUID.xml     each domain, without secrets
    emupool-collect/state.json           pools, homes and originals, as the daemon remembers them
    emupool-collect/config.toml          the configuration, if there is a file
    emupool-collect/status.json          what the daemon says, if it runs

Unpacked, `emupool plan --sysfs-root root --domains domains --state state.json --config config.toml`
gives the plan of that host. Only its owner may read the file: names of guests are in it.
"""

from __future__ import annotations

import io
import os
import tarfile
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from agent.errors import Refused
from agent.topology import Attribute

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from agent.topology import CpuReading, Readings

TOP: Final = "emupool-collect"
_CPUS: Final = "root/sys/devices/system/cpu"
_NODES: Final = "root/sys/devices/system/node"


@dataclass(frozen=True, slots=True)
class Tree:
    """Files by path, and folders that may be empty."""

    files: Mapping[str, str]
    folders: tuple[str, ...] = ()


def sysfs(readings: Readings) -> Tree:
    """Return the part of /sys that says what `readings` say."""
    files: dict[str, str] = {}
    folders = [_CPUS]
    for attribute in (readings.online, readings.present, readings.isolated):
        files |= _file(_CPUS, attribute)
    for attribute in (readings.nodes_online, readings.nodes_possible):
        files |= _file(_NODES, attribute)
    for cpu in readings.cpus:
        folders += (f"{_CPUS}/cpu{cpu.id}", *(f"{_CPUS}/cpu{cpu.id}/node{n}" for n in cpu.linked))
        files |= _cpu(f"{_CPUS}/cpu{cpu.id}", cpu)
    for node in readings.nodes:
        folders.append(f"{_NODES}/node{node.id}")
        for attribute in _attributes(node):
            files |= _file(folders[-1], attribute)
    return Tree(files, tuple(folders))


def _cpu(folder: str, cpu: CpuReading) -> dict[str, str]:
    files = _file(folder, cpu.online)
    for attribute in (cpu.package, cpu.die, cpu.core, cpu.siblings):
        files |= _file(f"{folder}/topology", attribute)
    if cpu.l3 is not None:
        cache = f"{folder}/cache/index0"
        files |= {**_file(cache, cpu.l3), f"{cache}/level": "3", f"{cache}/type": "Unified"}
    return files


def _attributes(reading: Any) -> Iterator[Attribute]:  # noqa: ANN401 - any of the readings
    for field in fields(reading):
        value = getattr(reading, field.name)
        if isinstance(value, Attribute):
            yield value


def _file(folder: str, attribute: Attribute | None) -> dict[str, str]:
    if attribute is None:
        return {}
    return {f"{folder}/{attribute.path.rpartition('/')[2]}": attribute.text + "\n"}


def write(path: Path, trees: Iterable[Tree], now: float) -> None:
    """Replace the file at `path`, whole or not at all; Refused if that fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(temporary, flags, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            with tarfile.open(fileobj=file, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
                for tree in trees:
                    _add(archive, tree, int(now))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}: name a file in a folder that exists") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _add(archive: tarfile.TarFile, tree: Tree, now: int) -> None:
    for folder in tree.folders:
        member = tarfile.TarInfo(f"{TOP}/{folder}")
        member.type, member.mode, member.mtime = tarfile.DIRTYPE, 0o755, now
        archive.addfile(member)
    for name, text in tree.files.items():
        body = text.encode("utf-8", "replace")
        member = tarfile.TarInfo(f"{TOP}/{name}")
        member.size, member.mode, member.mtime = len(body), 0o644, now
        archive.addfile(member, io.BytesIO(body))
