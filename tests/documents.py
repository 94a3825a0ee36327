"""The JSON documents of the command line, made up row by row, and a console to draw them on."""

from __future__ import annotations

import io
import re
from typing import Any, Final

from rich.console import Console

from agent import report
from agent.load import STANDARD

Json = dict[str, Any]

SGR: Final = re.compile(r"\x1b\[[0-9;]*m")


class Output:
    """A console and what was printed on it."""

    def __init__(self, *, terminal: bool, width: int = 80, encoding: str = "utf-8") -> None:
        self._bytes = io.BytesIO()
        stream = io.TextIOWrapper(self._bytes, encoding=encoding)
        self.console = Console(
            file=stream,
            force_terminal=terminal,
            width=width,
            height=24,
            color_system="truecolor" if terminal else None,
            _environ={},
        )
        self._encoding = encoding

    @property
    def raw(self) -> str:
        return self._bytes.getvalue().decode(self._encoding)

    @property
    def text(self) -> str:
        """What is read, without the colours."""
        return SGR.sub("", self.raw)

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()


def screen(width: int = 80) -> Output:
    return Output(terminal=True, width=width)


def pipe(encoding: str = "utf-8") -> Output:
    return Output(terminal=False, encoding=encoding)


def cell(number: int = 0, **values: object) -> Json:
    row = {
        "id": number,
        "guests": 0,
        "weight": "0",
        "ratio": "8",
        "need": 0,
        "pool": "",
        "pool_now": "",
        "candidates": "",
        "claimed": "",
        "realtime": "",
        "reserved": "",
        "shortage": 0,
    }
    return row | values


def guest(number: int = 0, **values: object) -> Json:
    row = {
        "uuid": f"00000000-0000-4000-8000-{number:012}",
        "name": f"vm-{number}",
        "policy": "isolate",
        "source": "metadata",
        "managed": True,
        "weight": "1",
        "cell": 0,
        "original": None,
        "emulator_pcpus": "2",
        "placement": "shared",
        "state": "placed",
        "reason": "it fits",
        "live": "2",
        "kernel": "2",
        "verified": True,
        "stuck": 0,
        "iothreads": [],
    }
    return row | values


def step(number: int, reason: str, was: str | None, to: str, iothread: int | None = None) -> Json:
    uuid = guest(number)["uuid"]
    kind = "emulator" if iothread is None else "iothread"
    return {
        "uuid": uuid,
        "kind": kind,
        "iothread": iothread,
        "from": was,
        "to": to,
        "reason": reason,
    }


def plan(*guests: Json, cells: tuple[Json, ...] = (), **values: object) -> Json:
    made = {"schema": 1, "cells": list(cells), "guests": list(guests), "steps": [], "warnings": []}
    return made | values


def advice(*cells: Json) -> Json:
    """Return what a daemon says of the ratio, without evidence for anything else."""
    return report.advice((), STANDARD) | {"cells": list(cells)}


def status(document: Json, **values: object) -> Json:
    made = {
        "version": "1.2",
        "dry_run": False,
        "libvirt": {"uri": "qemu:///system", "connected": True},
        "last_cycle": {"at": 0.0, "event": "start", "seconds": 0.004, "steps": 2, "errors": 0},
        "config": {},
        "counters": {},
        "advice": advice(),
    }
    return document | made | values
