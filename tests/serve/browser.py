"""A headless Chromium, driven by its DevTools protocol."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--remote-debugging-port=0",
]  # fmt: skip


class Tab:
    """One page. `asked` lists the addresses that it requested, `said` what went wrong in it."""

    def __init__(self, socket: Any) -> None:
        self.socket, self.number, self.asked, self.said = socket, 0, [], []
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv(timeout=30))
            self._note(message)
            if message.get("id") == self.number:
                assert "error" not in message, message
                return message["result"]

    def _note(self, message: dict[str, Any]) -> None:
        if message.get("method") == "Network.requestWillBeSent":
            self.asked.append(message["params"]["request"]["url"])
        elif message.get("method") == "Runtime.exceptionThrown":
            self.said.append(message["params"]["exceptionDetails"]["text"])
        elif message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
            self.said.append(message["params"]["entry"]["text"])
        elif message.get("method") == "Page.javascriptDialogOpening":
            self.said.append("a dialog opened")

    def size(self, width: int, height: int = 900) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def go(self, url: str) -> None:
        self.value("window.left = true")
        self.call("Page.navigate", url=url)
        self.wait(f"!window.left && location.href === '{url}' && document.readyState === 'complete'")

    def value(self, expression: str) -> Any:
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def wait(self, expression: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not self.value(expression):
            assert time.monotonic() < end, (expression, self.said, self.value("document.body.innerText"))
            time.sleep(0.05)

    def choose(self, selector: str, file: Path) -> None:
        """Choose a file, as a person does in the dialogue."""
        found = self.call("Runtime.evaluate", expression=f"document.querySelector({selector!r})")
        self.call("DOM.setFileInputFiles", objectId=found["result"]["objectId"], files=[str(file)])

    def picture(self, file: Path) -> None:
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def tab(folder: Path) -> Iterator[Tab]:
    """A tab of a browser of its own, whose profile lies in `folder`."""
    command = [str(CHROMIUM), *OPTIONS, f"--user-data-dir={folder / 'profile'}", "about:blank"]
    browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = _port(folder / "profile" / "DevToolsActivePort")
        with connect(f"ws://127.0.0.1:{port}{_page(port)}", max_size=None, compression=None) as socket:
            yield Tab(socket)
    finally:
        browser.terminate()
        browser.wait(20)


def _port(file: Path) -> int:
    end = time.monotonic() + 30
    while not file.is_file() or "\n" not in file.read_text():
        assert time.monotonic() < end
        time.sleep(0.05)
    return int(file.read_text().split()[0])


def _page(port: int) -> str:
    import httpx

    pages = httpx.get(f"http://127.0.0.1:{port}/json", trust_env=False).json()
    return next(p["webSocketDebuggerUrl"] for p in pages if p["type"] == "page").split(str(port), 1)[1]
