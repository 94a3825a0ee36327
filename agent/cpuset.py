"""A set of pCPUs: the one form in which the program holds them.

The set is an integer with one bit per pCPU, so that union, difference and comparison cost the
same for two pCPUs and for eight thousand. Text exists at the borders only: `parse` reads the
kernel's list notation with libvirt's exclusion, `parse_mask` the kernel's hexadecimal masks,
and `str` writes the kernel's list notation, the canonical form (sorted, ranges folded).

Ids beyond `LIMIT` are refused, and so are lists too long to be one: a tenant's text must not make
us hold a gigabyte of bits, nor read for seconds.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NewType

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CellId = NewType("CellId", int)

LIMIT: Final = 8192
"""Ids are below this: the kernel's own limit (NR_CPUS) where it is largest."""

_LONGEST: Final = 6 * LIMIT
"""Characters of a list; one of every other id, the longest without repetition, has 20 thousand."""

_LIST_ITEM = re.compile(r"(\^?)([0-9]{1,9})(?:-([0-9]{1,9}))?\Z")
_MASK_WORD = re.compile(r"[0-9a-fA-F]{1,8}\Z")


class CpuSetError(ValueError):
    """A text that is no CPU list; the message quotes the item at fault."""


class CpuSet:
    """An immutable, hashable, ordered-by-id set of pCPU ids.

    Examples:
        >>> CpuSet.parse("0-7,^5") & CpuSet.of(4, 5, 6)
        CpuSet('4,6')

    """

    __slots__ = ("_bits",)

    def __init__(self, cpus: Iterable[int] = ()) -> None:
        """Hold `cpus`, ids in 0..LIMIT-1; ValueError for any other."""
        bits = 0
        for cpu in cpus:
            if not 0 <= cpu < LIMIT:
                raise CpuSetError(f"CPU {cpu} is not in 0-{LIMIT - 1}")
            bits |= 1 << cpu
        self._bits = bits

    @classmethod
    def of(cls, *cpus: int) -> CpuSet:
        """Return the set of the given ids."""
        return cls(cpus)

    @classmethod
    def from_bits(cls, bits: int) -> CpuSet:
        """Return the set whose bit N is pCPU N."""
        made = cls.__new__(cls)
        made._bits = bits  # noqa: SLF001 - its own
        return made

    @classmethod
    def parse(cls, text: str) -> CpuSet:
        """Read `0-3,8` and libvirt's `0-7,^5`; white space and empty text are allowed.

        An exclusion applies to what stands before it, as in libvirt. CpuSetError quotes the
        item that is wrong.
        """
        if len(text) > _LONGEST:
            raise CpuSetError(f"a list of {len(text)} characters is too long")
        bits = 0
        stripped = text.strip()
        for raw in stripped.split(",") if stripped else ():
            excluded, span = _parse_item(raw.strip())
            bits = bits & ~span if excluded else bits | span
        return cls.from_bits(bits)

    @classmethod
    def parse_mask(cls, text: str) -> CpuSet:
        """Read the kernel's hexadecimal mask, words of 32 bits parted by commas, first highest."""
        bits = 0
        words = text.strip().split(",")
        if len(words) * 32 > LIMIT:
            raise CpuSetError(f"a mask of {len(words)} words is too long")
        for word in words:
            if not _MASK_WORD.match(word):
                raise CpuSetError(f"{word[:40]!r} is not a hexadecimal word of a CPU mask")
            bits = bits << 32 | int(word, 16)
        return cls.from_bits(bits)

    @property
    def bits(self) -> int:
        """The set as an integer: bit N is pCPU N."""
        return self._bits

    def only(self) -> int | None:
        """Return the pCPU if the set has exactly one, else None."""
        bits = self._bits
        return bits.bit_length() - 1 if bits and not bits & (bits - 1) else None

    def first(self) -> int:
        """Return the lowest id; ValueError if the set is empty."""
        if not self._bits:
            raise CpuSetError("an empty set has no first CPU")
        return (self._bits & -self._bits).bit_length() - 1

    def isdisjoint(self, other: CpuSet) -> bool:
        """Tell whether no pCPU is in both."""
        return not self._bits & other._bits

    def __iter__(self) -> Iterator[int]:
        bits = self._bits
        while bits:
            low = bits & -bits
            yield low.bit_length() - 1
            bits ^= low

    def __len__(self) -> int:
        return self._bits.bit_count()

    def __bool__(self) -> bool:
        return self._bits != 0

    def __contains__(self, cpu: object) -> bool:
        return isinstance(cpu, int) and cpu >= 0 and bool(self._bits >> cpu & 1)

    def __and__(self, other: CpuSet) -> CpuSet:
        return CpuSet.from_bits(self._bits & other._bits)

    def __or__(self, other: CpuSet) -> CpuSet:
        return CpuSet.from_bits(self._bits | other._bits)

    def __sub__(self, other: CpuSet) -> CpuSet:
        return CpuSet.from_bits(self._bits & ~other._bits)

    def __le__(self, other: CpuSet) -> bool:
        return not self._bits & ~other._bits

    def __lt__(self, other: CpuSet) -> bool:
        return self._bits != other._bits and self <= other

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CpuSet) and self._bits == other._bits

    def __hash__(self) -> int:
        return hash(self._bits)

    def __str__(self) -> str:
        return ",".join(
            str(low) if low == high else f"{low}-{high}" for low, high in _ranges(self._bits)
        )

    def __repr__(self) -> str:
        return f"CpuSet({str(self)!r})"


EMPTY: Final = CpuSet()


def union(sets: Iterable[CpuSet]) -> CpuSet:
    """Return the pCPUs that are in any of `sets`."""
    bits = 0
    for cpus in sets:
        bits |= cpus.bits
    return CpuSet.from_bits(bits)


def _parse_item(item: str) -> tuple[bool, int]:
    """Return (is an exclusion, bits) of one item of a list."""
    match = _LIST_ITEM.match(item)
    if match is None:
        raise CpuSetError(f"{item[:40]!r} is neither a CPU nor a range like 0-3")
    low = int(match[2])
    high = int(match[3] or low)
    if low > high:
        raise CpuSetError(f"{item!r} runs backwards")
    if high >= LIMIT:
        raise CpuSetError(f"CPU {high} is not in 0-{LIMIT - 1}")
    return bool(match[1]), (1 << high + 1) - (1 << low)


def _ranges(bits: int) -> Iterator[tuple[int, int]]:
    """Yield (first, last) of each run of set bits, ascending."""
    offset = 0
    while bits:
        gap = (bits & -bits).bit_length() - 1
        bits >>= gap
        run = (~bits & (bits + 1)).bit_length() - 1
        yield offset + gap, offset + gap + run - 1
        bits >>= run
        offset += gap + run
