"""A host of tests/node.py, and who answers there for admission."""

from __future__ import annotations

import socket
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

from agent.admit import ADMIT
from agent.config import AdmissionSettings, Config
from agent.guestbook import Guestbook
from agent.reception import Reception
from tests.node import Node, pools

if TYPE_CHECKING:
    from pathlib import Path

RESERVATION: Final = 60.0


def listens(path: Path) -> bool:
    """Tell whether anybody listens at a socket."""
    with closing(socket.socket(socket.AF_UNIX)) as caller:
        try:
            caller.connect(str(path))
        except OSError:
            return False
    return True


class Desk:
    """A host whose pool in cell 0 takes two guests, and who answers for it."""

    def __init__(
        self, folder: Path, boot: str = "this boot", reception: type[Reception] = Reception
    ) -> None:
        self.folder = folder
        self.kind = reception
        self.node = Node(folder / "state.json", pools(2, max_cpus=1))
        settings = self.node.settings
        self.config = Config(
            pool=settings.pool,
            guests=settings.guests,
            admission=AdmissionSettings(enabled=True, reservation=RESERVATION),
        )
        self.begin(boot)

    def begin(self, boot: str) -> None:
        """Start an answering daemon; what was before it is forgotten but for the guestbook."""
        book = Guestbook(self.folder / "seen", boot)
        self.reception = self.kind(self.config, book, self.node.clock)
        self.reception.stand(connected=True)
        self.look()

    def look(self) -> None:
        self.reception.saw(self.node.cycle())

    def define(self, name: str, **properties: Any) -> str:  # noqa: ANN401 - of `guest_xml`
        return self.node.define(name, **properties)

    def ask(self, uuid: str, operation: str = "prepare", text: str | None = None) -> str:
        definition = self.node.fake.guests[uuid].xml() if text is None else text
        self.said = self.reception.answer(operation, definition)
        return self.said[0]

    def start(self, uuid: str) -> None:
        self.node.fake.start(uuid)
        self.look()

    def stop(self, uuid: str) -> None:
        self.node.fake.destroy(uuid)
        self.look()

    def fill(self) -> list[str]:
        """Start two guests, which is all that fit."""
        uuids = [self.define(name) for name in ("a", "b")]
        for uuid in uuids:
            assert self.ask(uuid) == ADMIT
            self.start(uuid)
        return uuids
