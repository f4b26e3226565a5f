"""A headless Chromium, by its DevTools protocol over two pipes: what a page does in a real browser."""

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
LAUNCH = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""The browser reads commands from descriptor 3 and answers on 4."""
SECONDS = 60


def path() -> str | None:
    """Of a browser that is installed; None if there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """A tab of a browser. events: what it reported, as (method, parameters)."""

    def __init__(self, commands: int, answers: int):
        self.commands, self.answers = os.fdopen(commands, "wb", 0), os.fdopen(answers, "rb")
        self.number, self.session, self.rest = 0, {}, b""
        self.events: list[tuple[str, dict]] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict:
        """The result of a command. Raises RuntimeError if it fails."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters} | self.session
        self.commands.write(json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self.number:
            self.events.append((answer["method"], answer["params"]))
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"]

    def _read(self) -> dict:
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.answers], [], [], SECONDS)
            read = os.read(self.answers.fileno(), 2**16) if ready else b""
            if not read:
                raise RuntimeError("the browser ended" if ready else f"the browser is silent for {SECONDS} seconds")
            self.rest += read
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def open(self, file: Path, width: int, dark: bool = False, height: int = 900) -> None:
        """Load a file in a window of this many pixels, and wait until it is there."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.send("Page.navigate", url=file.resolve().as_uri())
        while not any(method == "Page.loadEventFired" for method, _ in self.events):
            answer = self._read()
            self.events.append((answer["method"], answer["params"]))

    def run(self, script: str) -> Any:
        """The value of an expression."""
        found = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"])
        return found["result"].get("value")

    def picture(self, file: Path) -> None:
        """Save all of the page as a PNG."""
        shot = self.send("Page.captureScreenshot", captureBeyondViewport=True, clip=self._whole())
        file.write_bytes(base64.b64decode(shot["data"]))

    def _whole(self) -> dict:
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        return {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}

    def complaints(self) -> list[str]:
        """What its console shows, exceptions and refused requests."""
        kinds = (
            "Runtime.consoleAPICalled",
            "Runtime.exceptionThrown",
            "Log.entryAdded",
            "Page.javascriptDialogOpening",
        )
        return [f"{method}: {what}" for method, what in self.events if method in kinds]

    def requests(self) -> list[str]:
        """Addresses that it asked for, but for data within it."""
        found = [what["request"]["url"] for method, what in self.events if method == "Network.requestWillBeSent"]
        return [url for url in found if not url.startswith("data:")]


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Page]:
    """A page of a new browser, whose files go to a folder."""
    browser = path()
    assert browser is not None
    ours, theirs = os.pipe(), os.pipe()
    given = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (ours[0], theirs[1])]  # 3 and 4 may be theirs
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage"]
    command = [browser, *options, "--remote-debugging-pipe", f"--user-data-dir={folder}"]
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCH, *map(str, given), *command],
        pass_fds=given,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for end in (*given, ours[0], theirs[1]):
        os.close(end)
    page = Page(ours[1], theirs[0])
    try:
        yield page
    finally:
        with contextlib.suppress(RuntimeError):
            page.session = {}
            page.send("Browser.close")
        page.commands.close()
        page.answers.close()
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
