"""A headless Chromium, spoken to over a pipe by its own protocol: NUL-ended JSON on two files."""

import base64
import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# Reads requests from file 3 and answers into file 4.
_START = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
_SECONDS = 60.0


def found() -> str | None:
    """Returns the path of a browser, if one is installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """What a browser has seen of a page.

    Attributes:
        messages: of the console, faults among them.
        requests: addresses it asked for, beside the page's own.
        content: how wide the content is.
        beyond: what reaches beyond the window, and does not scroll in a box of its own.
        picture: of the whole page, PNG.
    """

    messages: list[str]
    requests: list[str]
    content: int
    beyond: list[str]
    picture: bytes


class Browser:
    """A browser with one page."""

    def __init__(self, requests: int, answers: int):
        self._requests, self._answers = requests, answers
        self._waiting = b""
        self._events: list[dict[str, Any]] = []
        self._last = 0
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = None
        attached = self._ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for part in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{part}.enable")

    def look_at(self, page: pathlib.Path, *, width: int, scheme: str) -> Seen:
        """Opens a file in a window of a width, in a `light` or `dark` scheme of colours."""
        self._ask(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=900, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        scheme_wanted = {"name": "prefers-color-scheme", "value": scheme}
        self._ask("Emulation.setEmulatedMedia", features=[scheme_wanted])
        self._events.clear()
        self._ask("Page.navigate", url=page.as_uri())
        while not self._named("Page.loadEventFired"):
            self._events.append(self._read())
        content = self._evaluate("document.documentElement.scrollWidth")
        picture = self._ask("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        logged = [*self._named("Log.entryAdded"), *self._named("Runtime.exceptionThrown")]
        messages = [json.dumps(one) for one in [*logged, *self._named("Runtime.consoleAPICalled")]]
        asked = [one["request"]["url"] for one in self._named("Network.requestWillBeSent")]
        return Seen(
            messages=messages,
            requests=[url for url in asked if url != page.as_uri()],
            content=content,
            beyond=self._beyond(width),
            picture=base64.b64decode(picture),
        )

    def unfold(self) -> None:
        """Opens everything that is folded on the page."""
        self._evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")

    def _beyond(self, width: int) -> list[str]:
        # A phone's window grows with what does not fit, so its width is not asked for.
        return self._evaluate(
            f"""[...document.querySelectorAll('body *')].filter(
                one => one.getBoundingClientRect().right > {width} + 1
                    && !one.closest('.scroll, pre, svg')
            ).map(one => one.outerHTML.slice(0, 200))"""
        )

    def _named(self, method: str) -> list[dict[str, Any]]:
        return [one["params"] for one in self._events if one.get("method") == method]

    def _evaluate(self, expression: str) -> Any:
        said = self._ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._last += 1
        request: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if getattr(self, "_session", None):
            request["sessionId"] = self._session
        os.write(self._requests, json.dumps(request).encode() + b"\0")
        while (message := self._read()).get("id") != self._last:
            self._events.append(message)
        assert "error" not in message, (method, message["error"])
        return message["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._waiting:
            ready, _, _ = select.select([self._answers], [], [], _SECONDS)
            part = os.read(self._answers, 1 << 20) if ready else b""
            if not part:
                raise RuntimeError("The browser is gone, or says nothing.")
            self._waiting += part
        message, _, self._waiting = self._waiting.partition(b"\0")
        return json.loads(message)


@contextlib.contextmanager
def opened(path: str) -> Iterator[Browser]:
    """Starts the browser at a path, without a network and with an empty home."""
    theirs, requests = _far_pipe()
    answers, ours = _far_pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        process = subprocess.Popen(
            [
                sys.executable, "-S", "-c", _START, str(theirs), str(ours), path,
                "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                "--disable-background-networking", "--no-first-run", "--hide-scrollbars",
                "--remote-debugging-pipe", f"--user-data-dir={home}", "about:blank",
            ],
            pass_fds=(theirs, ours),
            env={**os.environ, "HOME": home},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs)
        os.close(ours)
        try:
            yield Browser(requests, answers)
        finally:
            process.kill()
            process.wait()
            os.close(requests)
            os.close(answers)


def _far_pipe() -> tuple[int, int]:
    """Returns a pipe whose numbers are none of those that the browser wants."""
    ends = []
    for end in os.pipe():
        ends.append(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10))
        os.close(end)
    return ends[0], ends[1]
