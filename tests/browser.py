"""A headless Chromium, spoken to over its DevTools pipe: no port, no driver, no package.

The sandbox of Chromium wants user namespaces that root and containers lack; it is off, in tests
only: what is shown is our own.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from pathlib import Path

_NAMES: Final = ("chromium-headless-shell", "chromium")
_OPTIONS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
_SECONDS: Final = 60


def program() -> str | None:
    """Return where Chromium is, if anywhere."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


class Browser:
    """One tab; a context manager."""

    def __enter__(self) -> Self:
        found = program()
        assert found is not None
        self._home = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        # The pipe is descriptors 3 and 4 of the child: a shell puts ours there.
        script = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        profile = f"--user-data-dir={self._home.name}"
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", found, *_OPTIONS, profile, "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._stream = os.fdopen(self._from, "rb")
        self._rest = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        try:
            self._attach()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _attach(self) -> None:
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(one["targetId"] for one in targets if one["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self.call(f"{domain}.enable")

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            os.close(self._to)
        self._stream.close()
        self._process.terminate()
        self._process.wait(_SECONDS)
        self._home.cleanup()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
        """Ask for something of the protocol, and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            told = self._message()
            if told.get("id") == self._number:
                assert "error" not in told, told
                result: dict[str, Any] = told["result"]
                return result

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            chunk = os.read(self._from, 1 << 20)
            assert chunk, "Chromium ended"
            self._rest += chunk
        text, self._rest = self._rest.split(b"\0", 1)
        told: dict[str, Any] = json.loads(text)
        if "method" in told:
            self.events.append(told)
        return told

    def await_event(self, method: str) -> dict[str, Any]:
        """Return the first event of that kind since the last page was opened."""
        while True:
            for told in self.events:
                if told["method"] == method:
                    parameters: dict[str, Any] = told["params"]
                    return parameters
            self._message()

    def look(self, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """Be a screen of so many pixels, of somebody who likes this colour scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        preference = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[preference])

    def open(self, url: str) -> None:
        """Go there, and wait until all is loaded."""
        self.events.clear()
        self.call("Page.navigate", url=url)
        self.await_event("Page.loadEventFired")

    def tell(self, expression: str) -> Any:  # noqa: ANN401 - JSON
        """Return the value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def spoken(self) -> list[tuple[str, str]]:
        """Return what a screen reader is given: roles and names, in order."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        told = [node for node in nodes if not node["ignored"]]
        return [
            (node["role"]["value"], str(node.get("name", {}).get("value", ""))) for node in told
        ]

    def photograph(self, file: Path, most: int = 6000) -> None:
        """Save the whole page as PNG, its first `most` pixels of height."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], most)}
        shot = self.call(
            "Page.captureScreenshot", clip=clip | {"scale": 1}, captureBeyondViewport=True
        )
        file.write_bytes(base64.b64decode(shot["data"]))
