"""Rivals: what an operator scripts, a hook of libvirt that has virsh pin the guests.

A hook may not call libvirt back before it has ended (libvirtd waits for it), so it starts a
process in the background. That one begins while the guest still starts, and its first pin waits
for the end of that. The script is there only in its own turn: libvirtd runs it if it is there.
"""

from __future__ import annotations

import shlex
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.libvirtd import Libvirtd

# One process for each guest there is, as most such scripts have it.
LOOP: Final = """\
for name in $($virsh list --name); do
    $virsh emulatorpin "$name" 0 --live
done"""
# One process for all of them: the strongest that can be scripted.
BATCH: Final = """\
commands=
for name in $($virsh list --name); do
    commands="$commands emulatorpin $name 0 --live;"
done
$virsh "$commands\""""
# It pins the newcomer alone, and so never repairs or moves another guest.
NEWCOMER: Final = """\
$virsh emulatorpin "$1" 0 --live"""

# libvirtd waits for the end of its pipes: the background must not keep a copy of one, as it would
# if its redirection were that of a function or a group.
_SCRIPT: Final = """\
#!/bin/sh
[ "$2" = started ] || exit 0
export VIRSH_DEFAULT_CONNECT_URI={uri}
virsh='virsh --quiet'
(
exec </dev/null >/dev/null 2>&1
{body}
) &
"""


def install(libvirtd: Libvirtd) -> None:
    """Have libvirtd know that there is a hook, which it looks for only when it starts."""
    path = libvirtd.root / "etc/libvirt/hooks/qemu"
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    libvirtd.restart()
    path.chmod(0o644)


@contextmanager
def hooked(libvirtd: Libvirtd, body: str) -> Iterator[None]:
    """Have the hook do `body` meanwhile, a shell script whose first argument is the newcomer."""
    path = libvirtd.root / "etc/libvirt/hooks/qemu"
    path.write_text(_SCRIPT.format(uri=shlex.quote(libvirtd.uri), body=body))
    path.chmod(0o755)
    try:
        yield
    finally:
        path.chmod(0o644)
