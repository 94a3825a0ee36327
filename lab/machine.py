"""The machines of the lab, and how QEMU is told to be one.

TCG emulates every pCPU, with a thread for each. `Nehalem` gives SMT siblings there and boots both
kernels; what QEMU shows as a die has an L3 of its own, as cells of one socket have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

    from lab.image import Image


@dataclass(frozen=True, slots=True)
class Machine:
    """A host: its kernel, its cores, and its cells as (pCPUs, MiB); "" is a cell of memory only."""

    name: str
    about: str
    kernel: str
    smp: str
    cells: tuple[tuple[str, int], ...]
    near: frozenset[frozenset[int]] = frozenset()
    """The pairs of cells that share a socket."""
    append: str = ""
    """More for the kernel's command line."""
    package: bool = False
    """emupool comes as a Debian package, not by the guide's lines."""


MACHINES: Final = (
    Machine(
        name="nodes",
        about="2 sockets x 2 cells x 4 cores x 2 threads",
        kernel="6.12",
        smp="32,sockets=2,dies=2,cores=4,threads=2",
        cells=(("0-7", 768), ("8-15", 768), ("16-23", 768), ("24-31", 768)),
        near=frozenset({frozenset({0, 1}), frozenset({2, 3})}),
    ),
    Machine(
        name="odd",
        about="cells 1 and 3 with isolated pCPUs, 0 and 2 of memory only",
        kernel="6.1",
        smp="12,sockets=2,cores=6,threads=1",
        cells=(("", 256), ("0-5", 768), ("", 256), ("6-11", 768)),
        near=frozenset({frozenset({0, 1}), frozenset({2, 3})}),
        append="isolcpus=4-5,10-11",
        package=True,
    ),
)

_MODEL: Final = "Nehalem,-cx16"
"""Without cmpxchg16b: with it kernel 6.12 died in its allocator under QEMU 7.2, at once with 32."""

_KERNEL: Final = (
    "root=/dev/vda rw console=ttyS0 net.ifnames=0 panic=-1"
    # Calibrated on a busy machine, the TSC ran four times as fast as the clock on the wall.
    " tsc=unstable"
    # The kernel patches itself most while it boots. Under QEMU 7.2 a pCPU that translates code just
    # then may keep what the code was in between (an int3) for ever; lab-cpus.service starts them.
    " maxcpus=1"
    # what TCG is too slow for, or is emulated for nothing
    " mitigations=off apparmor=0 audit=0 nokaslr nowatchdog rcupdate.rcu_cpu_stall_suppress=1"
)


def command(
    machine: Machine, image: Image, asked: Path, out: Path, *, shell: bool = False
) -> list[str]:
    """Return QEMU's arguments.

    The archive `asked` goes in, one comes out as `out`/results; both are disks. Scenarios are told
    of on QEMU's standard output, and the console is kept in `out`; with `shell` the console is on
    the terminal instead.
    """
    kernel, initrd = image.kernel(machine.kernel)
    console = ("-serial", "mon:stdio")
    report = ("-serial", f"file:{out}/console", "-serial", "stdio", "-monitor", "none")
    append = f"{_KERNEL} {machine.append} {'lab.shell' if shell else 'lab.run quiet'}"
    return [
        *("setpriv", "--pdeathsig", "KILL"),  # none outlives a run that is killed
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot"),
        *("-machine", "pc,usb=off", "-accel", "tcg,thread=multi,tb-size=1024", "-cpu", _MODEL),
        *("-smp", machine.smp, "-m", str(sum(memory for _, memory in machine.cells))),
        *_numa(machine),
        *("-kernel", str(kernel), "-initrd", str(initrd), "-append", append),
        *_disk(image.disk, "snapshot=on"),
        *_disk(asked, "readonly=on"),
        *_disk(out / "results", "readonly=off"),
        *("-display", "none", "-nic", "none"),
        *(console if shell else report),
    ]


def _disk(path: Path, how: str) -> tuple[str, str]:
    return "-drive", f"file={path},format=raw,if=virtio,cache=unsafe,{how}"


def _numa(machine: Machine) -> list[str]:
    arguments = []
    for cell, (cpus, memory) in enumerate(machine.cells):
        arguments += ["-object", f"memory-backend-ram,id=cell{cell},size={memory}M"]
        pinned = f",cpus={cpus}" if cpus else ""
        arguments += ["-numa", f"node,nodeid={cell},memdev=cell{cell}{pinned}"]
    for one in range(len(machine.cells)):
        for other in range(len(machine.cells)):
            pair = frozenset({one, other})
            far = 10 if one == other else 16 if pair in machine.near else 32
            arguments += ["-numa", f"dist,src={one},dst={other},val={far}"]
    return arguments
