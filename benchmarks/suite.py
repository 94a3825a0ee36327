"""The benchmarks by name, and how much effort a run takes."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.findings import Findings

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Effort:
    """How often things are repeated; `turns`, if given, is obeyed by each benchmark."""

    quick: bool = False
    turns: int | None = None

    def of(self, whole: int, quick: int) -> int:
        """Return how many turns to take."""
        return self.turns or self.pick(whole, quick)

    def pick(self, whole: _T, quick: _T) -> _T:
        """Return one of two values that are no number of turns."""
        return quick if self.quick else whole


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One benchmark: `benchmarks.MODULE.run`; `real` ones need root, libvirtd and QEMU."""

    name: str
    title: str
    module: str
    function: str = "run"
    real: bool = True
    large: bool = False

    @property
    def run(self) -> Callable[[Effort], Findings]:
        """What measures; its module is imported only when it is wanted."""
        found: Callable[[Effort], Findings] = getattr(
            import_module(f"benchmarks.{self.module}"), self.function
        )
        return found


BENCHMARKS: Final = (
    Benchmark("arrivals", "Event to pinned", "arrivals"),
    Benchmark("storm", "100 guests arrive", "storms", "arrive"),
    Benchmark("reload", "A reload resizes the pool", "storms", "reload"),
    Benchmark("restart", "libvirtd restarts", "storms", "restart"),
    Benchmark("changes", "The two changes that gained most", "changes"),
    Benchmark("rest", "At rest", "rest"),
    Benchmark("imports", "Start", "imports", real=False),
    Benchmark("packing", "Packing", "packing", real=False),
    Benchmark("widening", "What virDomainPinEmulator leaves behind", "widening"),
    Benchmark("guests", "What a shared pool gains and costs a guest", "interference"),
    Benchmark("planning", "Planning", "planning", real=False),
    Benchmark("discovery", "Discovery", "discovery", real=False),
    Benchmark("cycle", "One steady cycle, counted", "steady", real=False),
    Benchmark("large", "Up to 1,000 guests", "storms", "scale", large=True),
)


def chosen(names: list[str], *, large: bool) -> list[Benchmark]:
    """Return those of `names`, or all that `large` says; ValueError names an unknown one."""
    known = {one.name: one for one in BENCHMARKS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"no benchmark {unknown[0]!r}: there are {', '.join(known)}")
    if names:
        return [known[name] for name in names]
    return [one for one in BENCHMARKS if one.large is large]
