"""From looks at threads to the history that advice is made from, and on to the state file.

The state file gets the history when a slot is closed, with the next cycle's save, and at a stop: a
daemon that is killed loses a slot. Encoding takes milliseconds, so no other save does it.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from agent import loadtext, logs
from agent.load import STANDARD, History, Loads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from agent.checkpoint import Checkpoint
    from agent.cpuset import CellId
    from agent.load import Method, PoolLoad, Used


class Recorder:
    """Keeps the loads of one daemon; the deciding thread calls it, any thread reads `history`."""

    def __init__(
        self,
        checkpoint: Checkpoint | None = None,
        method: Method = STANDARD,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Go on from what `checkpoint` recalled; without one nothing outlives this process."""
        self._checkpoint = checkpoint
        self._clock = clock
        self._loads = Loads(self._recalled(method))
        self._keep()

    @property
    def history(self) -> History:
        """All closed slots."""
        return self._loads.history

    def look(self, used: Iterable[Used], pools: Mapping[CellId, PoolLoad]) -> None:
        """Take in what was used since the last look, as `Loads.look`."""
        if self._loads.look(self._clock(), used, pools):
            self._keep()

    def close(self) -> None:
        """Get ready for the last save."""
        if self._loads.close():
            self._keep()

    def _recalled(self, method: Method) -> History:
        checkpoint = self._checkpoint
        found = json.loads(checkpoint.usage) if checkpoint is not None else None
        if checkpoint is None or found is None:
            return History(method)
        try:
            return loadtext.decode(found, method)
        except loadtext.HistoryError as error:
            text = f"{checkpoint.path}: usage: {error}; advice begins anew"
            logs.get("emupool").warning("state.unfit", error=text)
            return History(method)

    def _keep(self) -> None:
        if self._checkpoint is not None:
            self._checkpoint.usage = loadtext.encode(self._loads.history)
