"""A page in headless Chromium, driven over its DevTools protocol: what it logs, asks for, draws and looks like."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MODES = (  # width of the window in pixels, dark, printed
    (1280, False, False),
    (1280, True, False),
    (400, False, False),
    (400, True, False),
    (760, True, True),
)
EVERY_CHART_HAS_MARKS = """
    [...document.querySelectorAll(".chart svg")].every(one => one.querySelector(".mark-symbol path, .mark-rect path"))
"""
OPTIONS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--mute-audio"),
    "--remote-debugging-port=0",
]


@dataclass
class Browser:
    """A tab of a browser."""

    connection: ClientConnection
    session: str
    events: list[dict[str, Any]] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; events that come meanwhile are kept."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        self.connection.send(json.dumps(message | ({"sessionId": self.session} if self.session else {})))
        while True:
            answer = json.loads(self.connection.recv(timeout=60))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def open(self, page: Path, *, width: int, dark: bool = False, printed: bool = False) -> None:
        """Open the file and wait until its charts are drawn."""
        self.events.clear()
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", media="print" if printed else "screen", features=scheme)
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=page.as_uri())
        drawn = "document.readyState === 'complete' && document.documentElement.dataset.charts === 'drawn'"
        self.evaluate(
            "new Promise((done, fail) => { let left = 600; const look = () => "
            f"{drawn} ? done() : left-- ? setTimeout(look, 50) : fail('the charts are not drawn'); look() }})"
        )

    def logged(self) -> list[str]:
        """What the page wrote to the console, with uncaught errors and violations of its policy."""
        texts = []
        for event in self.events:
            params = event.get("params", {})
            if event["method"] == "Runtime.consoleAPICalled":
                texts.append(" ".join(str(one.get("value", one.get("description"))) for one in params["args"]))
            elif event["method"] == "Runtime.exceptionThrown":
                texts.append(str(params["exceptionDetails"]))
            elif event["method"] == "Log.entryAdded":
                texts.append(params["entry"]["text"])
        return texts

    def requests(self) -> list[str]:
        """Addresses that the page asked for, itself included."""
        sent = [event["params"] for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [one["request"]["url"] for one in sent]

    def screenshot(self, file: Path) -> None:
        """The whole page as PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 16000), "scale": 1}
        data = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"]
        file.write_bytes(base64.b64decode(data))

    def pdf(self, file: Path) -> None:
        data = self.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)["data"]
        file.write_bytes(base64.b64decode(data))


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser with an empty profile; ends with the block."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [str(CHROMIUM), *OPTIONS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stderr is not None
            address = next(line.split()[-1] for line in process.stderr if line.startswith("DevTools listening on"))
            with connect(address, max_size=None) as connection:
                tab = Browser(connection, "")
                target = tab.call("Target.createTarget", url="about:blank")["targetId"]
                tab.session = tab.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
                for domain in ("Page", "Runtime", "Log", "Network"):
                    tab.call(f"{domain}.enable")
                yield tab
        finally:
            process.terminate()
            process.wait(timeout=30)


def assert_drawn(page: Path) -> None:
    """Assert that in every mode the page draws its charts, fits its window, logs nothing and asks for nothing else."""
    charts = page.read_text(encoding="utf-8").count("data-chart=")
    with browser() as tab:
        for width, dark, printed in MODES:
            tab.open(page, width=width, dark=dark, printed=printed)
            assert tab.logged() == []
            assert tab.requests() == [page.as_uri()]
            assert tab.evaluate("document.querySelectorAll('.chart svg').length") == charts
            assert tab.evaluate(EVERY_CHART_HAS_MARKS)
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            light = printed or not dark
            background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (background == "rgb(255, 255, 255)") == light
            label = tab.evaluate("getComputedStyle(document.querySelector('.chart svg text')).fill")
            assert (label == "rgb(88, 101, 115)") == light
