"""What can go wrong, split by what the caller does next.

    EmupoolError
      GuestError            one guest is concerned; the others go on
        GuestGone           drop the guest: it does not run any more
        GuestBusy           its job lock is held: retry when the job ends, else with back-off
        TargetRefused       the mask cannot be had: read online and parent cpusets again, re-plan
        GuestFailed         anything else about one guest: retry next cycle, count it
      Held                  libvirt holds a guest, and cannot list all: try the cycle again soon
      HypervisorAway        reconnect; guests keep their pins meanwhile
      NotPermitted          the connection may not do this: no retry helps until an operator acts
      SysfsError            a file of the kernel says what cannot be understood
      ConfigError           the configuration is refused: keep the old one
      Refused               the answer to the operator's command is no

No module of the core catches a broad exception; the shell does, once per guest and once per cycle.
"""

from __future__ import annotations

from dataclasses import dataclass


class EmupoolError(Exception):
    """Any failure that this program knows by name; `str` is one line for the operator."""


class GuestError(EmupoolError):
    """A failure that concerns one guest only."""


class GuestGone(GuestError):
    """The guest does not run any more, or is not known."""


class GuestBusy(GuestError):
    """The guest's job lock is held by something long: migration, save, dump, a hung monitor."""


class TargetRefused(GuestError):
    """The kernel or libvirt refused the mask: a pCPU in it is off line or outside the parent."""


class GuestFailed(GuestError):
    """The guest could not be read or pinned, for a reason that has no rule of its own."""


class Held(EmupoolError):
    """libvirt cannot tell of all guests now, since it holds one of them."""


class HypervisorAway(EmupoolError):
    """The connection is lost or cannot be made."""


class NotPermitted(EmupoolError):
    """libvirt denies the call: read-only connection, ACL, or not authorised."""


def unforeseen(error: Exception) -> GuestFailed:
    """Return an error that nobody has a name for as a guest's; it becomes the cause."""
    failure = GuestFailed(f"{type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


class SysfsError(EmupoolError):
    """A file of the kernel holds text that cannot be understood."""

    def __init__(self, path: str, text: str, why: str) -> None:
        """Name the file, what it says (cut to 60 characters) and what is wrong with that."""
        super().__init__(f"{path}: {text[:60]!r}: {why}")
        self.path = path
        self.text = text


@dataclass(frozen=True, slots=True)
class Problem:
    """One wrong thing in a configuration: where, what, and what would be right."""

    path: str
    value: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}: {self.value}: {self.remedy}"


class ConfigError(EmupoolError):
    """The configuration is refused; `problems` has every error found, in file order."""

    def __init__(self, file: str, problems: tuple[Problem, ...]) -> None:
        """Refuse `file` for `problems`, at least one; each is one line, however it is called."""
        name = file if file.isprintable() else repr(file)
        super().__init__("\n".join(f"{name}: {problem}" for problem in problems))
        self.file = file
        self.problems = problems


class Refused(EmupoolError):
    """The operator's command cannot be carried out now; `str` says why and what to do."""
