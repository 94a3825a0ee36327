"""The status of a running daemon, looked at again and again.

A terminal shows one picture that changes in place, on its second screen: what was there before is
there again at the end, with the last picture below it. A pipe gets a picture whenever one differs
from the one before, so that a file holds what happened. A daemon that goes away is waited for.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

from agent import draw, words
from agent.errors import HypervisorAway

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from agent.words import Json

PERIOD: Final = 2.0
"""Seconds between two looks."""
_BREATHING: Final = frozenset({"last_cycle", "counters"})
"""What differs although nothing has changed."""
_HOME: Final = "\x1b[H"
_LINE_END: Final = "\x1b[K\n"
_REST: Final = "\x1b[J"


def watch(
    console: Console,
    fetch: Callable[[], Json],
    pause: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.time,
) -> None:
    """Show what `fetch` returns until Ctrl-C; HypervisorAway from it is shown and waited out."""
    on_screen = console.is_terminal and not console.is_dumb_terminal
    view = _Screen(console, clock) if on_screen else _Journal(console, clock)
    try:
        while True:
            try:
                view.show(fetch())
            except HypervisorAway as error:
                view.miss(str(error))
            pause(PERIOD)
    except KeyboardInterrupt:
        pass
    finally:
        view.close()


class _Journal:
    """A pipe: a picture after each change, and a line when the daemon goes or comes."""

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self._console = console
        self._clock = clock
        self._last: dict[str, Any] | None = None
        self._away = False

    def show(self, document: Json) -> None:
        """Print a status if it differs from the last one."""
        kept = {key: value for key, value in document.items() if key not in _BREATHING}
        if kept == self._last and not self._away:
            return
        self._last, self._away = kept, False
        self._say("")
        draw.status(self._console, document)
        self._write("\n")

    def miss(self, why: str) -> None:
        """Say once that nobody answers."""
        if not self._away:
            self._away = True
            self._say(f" no answer: {words.plain(why, words.TEXT)}")

    def close(self) -> None:
        """Nothing is left to print."""

    def _say(self, text: str) -> None:
        self._write(f"{_time(self._clock())}{text}\n")

    def _write(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()


class _Screen:
    """A terminal: one picture, drawn over the one before."""

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self._console = console
        self._clock = clock
        self._last: Json | None = None
        self._seen = 0.0
        console.set_alt_screen(True)
        console.show_cursor(show=False)

    def show(self, document: Json) -> None:
        """Draw a status."""
        self._last, self._seen = document, self._clock()
        self._draw(Text(f"{_time(self._seen)}, every {PERIOD:g} s; Ctrl-C ends", "dim"))

    def miss(self, why: str) -> None:
        """Say that nobody answers, above the last picture."""
        note = Text(f"{_time(self._clock())} no answer: ", "bold red")
        note.append(words.plain(why, words.TEXT))
        if self._last is not None:
            note.append(f"\nwhat follows is of {_time(self._seen)}", "bold")
        self._draw(note)

    def close(self) -> None:
        """Leave the last picture standing where the cursor was before."""
        self._console.show_cursor()
        self._console.set_alt_screen(False)
        if self._last is not None:
            draw.status(self._console, self._last)

    def _draw(self, note: Text) -> None:
        lines = draw.status_text(self._console, self._last, note).splitlines()
        height = self._console.height
        if len(lines) > height:
            more = len(lines) - height + 1
            lines = [*lines[: height - 1], f"... and {words.counted(more, 'line')} more"]
        self._console.file.write(_HOME + _LINE_END.join(lines) + "\x1b[K" + _REST)
        self._console.file.flush()


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(seconds))
