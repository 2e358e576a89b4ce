"""A headless Chromium, driven over a pipe in its DevTools protocol: no package needed, and nothing listens anywhere.

python tests/chromium.py results/gemma-3-270m_2-core-cpu_2026-11-26/report.html docs/report.png  # the README's picture
"""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

EXECUTABLE = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page:
    """One tab. Whatever its console says, and every request that leaves the disk, is kept."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back, self._rest, self._n = to, back, b"", 0
        self._session: str | None = None
        self.console: list[str] = []
        self.requests: list[str] = []

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._n += 1
        message = {"id": self._n, "method": method, "params": parameters}
        os.write(
            self._to, json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode() + b"\0"
        )
        while (answer := self._next()).get("id") != self._n:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            assert select.select([self._back], [], [], 100)[0], "no answer"
            self._rest += os.read(self._back, 1 << 20)
        message, self._rest = self._rest.split(b"\0", 1)
        event = json.loads(message)
        method, parameters = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.console.append(json.dumps(parameters["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled":
            self.console.append(json.dumps(parameters["args"]))
        elif method == "Log.entryAdded":
            self.console.append(parameters["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        return event

    def attach(self) -> None:
        target = self.command("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.command("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.command(f"{domain}.enable")

    def open(self, url: str) -> None:
        self.command("Page.navigate", url=url)
        deadline = time.monotonic() + 120
        while self("document.readyState") != "complete" or self("location.href") == "about:blank":
            assert time.monotonic() < deadline, "the page does not load"
            time.sleep(0.1)

    def wait(self, condition: str) -> None:
        """Until a JavaScript expression is true."""
        deadline = time.monotonic() + 60
        while not self(condition):
            assert time.monotonic() < deadline, condition
            time.sleep(0.05)

    def __call__(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        found = self.command("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def go(self, fragment: str) -> None:
        """Follow a link within the page, and wait for it to be drawn."""
        self(
            "new Promise((done) => {addEventListener('hashchange', () => setTimeout(done), {once: true});"
            f" location.hash = {json.dumps(fragment)}; setTimeout(done, 2000)}})"
        )

    def press(self, key: str) -> None:
        text = {"Enter": "\r", "Tab": ""}.get(key, key)
        code = {"Enter": 13, "Tab": 9}.get(key) or ord(key.upper())
        for kind in ("keyDown", "keyUp"):
            self.command("Input.dispatchKeyEvent", type=kind, key=key, text=text, windowsVirtualKeyCode=code)

    def size(self, width: int, height: int) -> None:
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def dark(self, on: bool) -> None:
        value = "dark" if on else "light"
        self.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": value}])

    def shoot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.command("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """Start it, and end it whatever happens."""
    assert EXECUTABLE is not None
    (read_ours, write_theirs), (read_theirs, write_ours) = os.pipe(), os.pipe()

    def place() -> None:  # the protocol's pipes are descriptors 3 and 4
        apart = os.dup(read_theirs), os.dup(write_theirs)  # either may be 3 or 4 already
        os.dup2(apart[0], 3)
        os.dup2(apart[1], 4)

    arguments = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--remote-debugging-pipe",
    ]
    process = subprocess.Popen(
        [EXECUTABLE, *arguments, f"--user-data-dir={profile}"],
        preexec_fn=place, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(read_theirs)
    os.close(write_theirs)
    page = Page(write_ours, read_ours)
    try:
        page.attach()
        yield page
    finally:
        process.terminate()
        process.wait(60)
        os.close(write_ours)
        os.close(read_ours)


def picture(html: Path, png: Path) -> None:
    """A page as it opens, light, in a few kilobytes."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as page:
        page.size(1200, 800)
        page.dark(False)
        page.open(html.resolve().as_uri())
        page.shoot(png)
    Image.open(png).convert("RGB").quantize(64).save(png, optimize=True)


if __name__ == "__main__":
    picture(*map(Path, sys.argv[1:]))
