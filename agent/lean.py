"""Imports of libraries, without what they bring along and nobody here uses."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class _Hollow(ModuleType):
    """A module of empty classes, so that others can be derived from them; of no class twice."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (), {})
        setattr(self, name, made)
        return made


@contextmanager
def without(*, absent: Iterable[str] = (), hollow: Iterable[str] = ()) -> Iterator[None]:
    """Make the block's imports find that some modules are not there, and of some nothing but names.

    What is imported already costs nothing more and is left as it is. After the block everything
    can be imported as usual; what was imported in it keeps what it got, so it is for parts of a
    library that are never called.
    """
    stand_ins: dict[str, ModuleType | None] = dict.fromkeys(absent)  # None: Python's "not there"
    stand_ins.update((name, _Hollow(name)) for name in hollow)
    missing = {name: one for name, one in stand_ins.items() if name not in sys.modules}
    sys.modules.update(missing)  # type: ignore[arg-type] # typeshed knows of no None
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]
