"""Drive the system's Chromium over its debugging pipe: what the browser tests, the pictures and the PDF need, no more.

The protocol is Chrome's own (DevTools), JSON messages between NUL bytes on two file descriptors: no driver program, no port,
no package. One browser has one page.
"""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TIMEOUT = 60.0
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "ArrowLeft": 37, "ArrowRight": 39}


class BrowserError(RuntimeError):
    """The browser refused a command, or a script in the page threw."""


def find() -> str | None:
    """The path of a Chromium: of `$CHROMIUM`, else of the first of `NAMES` that is installed."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@dataclass
class Seen:
    """What happened on a page since it was opened."""

    errors: list[str] = field(default_factory=list)  # console errors and exceptions
    failed: list[str] = field(default_factory=list)  # requests that got no answer, or an error
    external: list[str] = field(default_factory=list)  # requests that would leave the machine


class Browser:
    """A headless Chromium with one page; a context manager.

    Args:
        program: its path; None looks for one.
        patience: seconds that one command may take.

    Raises:
        BrowserError: no Chromium is installed.
    """

    def __init__(self, program: str | None = None, patience: float = TIMEOUT) -> None:
        self._patience = patience
        program = program or find()
        if program is None:
            raise BrowserError(f"no browser: none of {', '.join(NAMES)} is installed, and $CHROMIUM is not set")
        self._profile = tempfile.mkdtemp(prefix="browser-")
        here_in, there_out = os.pipe()
        there_in, here_out = os.pipe()

        def descriptors() -> None:  # Chromium reads 3 and writes 4
            out, inward = os.dup(there_out), os.dup(there_in)
            high_in, high_out = (_above(fd, 10) for fd in (inward, out))
            os.dup2(high_in, 3)
            os.dup2(high_out, 4)

        options = ["--headless=new", "--remote-debugging-pipe", "--disable-gpu", "--hide-scrollbars", "--mute-audio"]
        options += ["--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-sync"]
        options += ["--disable-dev-shm-usage", "--allow-file-access-from-files", f"--user-data-dir={self._profile}"]
        options += ["--force-color-profile=srgb"]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            options.append("--no-sandbox")  # root, as in a container, cannot use it
        self._process = subprocess.Popen(
            [program, *options, "about:blank"],
            close_fds=False, preexec_fn=descriptors, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        os.close(there_in)
        os.close(there_out)
        self._in, self._out = here_in, here_out
        self._buffer, self._number, self._session = b"", 0, None
        self._events: list[dict] = []
        self.seen = Seen()
        targets = self.send("Target.getTargets")["targetInfos"]
        (page,) = [t["targetId"] for t in targets if t["type"] == "page"][:1]
        self._session = self.send("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the browser and remove its profile."""
        with contextlib.suppress(BrowserError, OSError):
            session, self._session = self._session, None
            self.send("Browser.close")
            self._session = session
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)
        shutil.rmtree(self._profile, ignore_errors=True)

    def send(self, method: str, **parameters: Any) -> dict:
        """One command of the protocol; its result.

        Raises:
            BrowserError: the browser answered with an error, or not at all.
        """
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        deadline = time.monotonic() + self._patience
        while True:
            answer = self._read(deadline)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error'].get('message')}")
                return answer["result"]

    def _read(self, deadline: float) -> dict:
        while b"\0" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._in], [], [], left)[0]:
                raise BrowserError("the browser did not answer in time")
            chunk = os.read(self._in, 1 << 20)
            if not chunk:
                raise BrowserError("the browser has ended")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(line)
        if "method" in message:
            self._note(message["method"], message["params"])
        return message

    def _note(self, event: str, parameters: dict) -> None:
        if event == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "assert"):
            self.seen.errors.append(" ".join(str(a.get("value", a.get("description"))) for a in parameters["args"]))
        elif event == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.seen.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif event == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.seen.errors.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")
        elif event == "Network.requestWillBeSent":
            url = parameters["request"]["url"]
            if not url.startswith(("file:", "data:", "blob:", "about:")):
                self.seen.external.append(url)
        elif event == "Network.loadingFailed" and not parameters.get("canceled"):
            self.seen.failed.append(parameters["errorText"])
        self._events.append({"method": event, "params": parameters})

    def open(self, target: Path | str, fragment: str = "") -> Seen:
        """Open a page, wait until it is loaded and its mathematics set; what it asked for and complained of."""
        url = target.resolve().as_uri() if isinstance(target, Path) else target
        self._navigate("about:blank")  # what the page before still complains of is its own
        self._navigate(url + fragment)
        self.evaluate(
            "Promise.resolve(window.MathJax?.startup?.promise).then(() => document.fonts.ready).then(() => true)"
        )
        return self.seen

    def _navigate(self, url: str) -> None:
        self.seen, self._events = Seen(), []
        answer = self.send("Page.navigate", url=url)
        if answer.get("errorText"):
            raise BrowserError(f"{url}: {answer['errorText']}")
        deadline = time.monotonic() + self._patience
        while not any(e["method"] == "Page.loadEventFired" for e in self._events):
            self._read(deadline)

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited.

        Raises:
            BrowserError: the script threw.
        """
        answer = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise BrowserError(details.get("exception", {}).get("description") or details["text"])
        return answer["result"].get("value")

    def view(self, width: int, height: int = 900, dark: bool = False) -> None:
        """The size of the window in CSS pixels, as a phone below 600, and the reader's colour scheme."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.send("Emulation.setEmulatedMedia", features=scheme)

    def press(self, key: str) -> None:
        """One key of `KEYS`, or a letter."""
        code = KEYS.get(key, ord(key[0].upper()))
        text = {"Enter": "\r", " ": " "}.get(key, key if len(key) == 1 else "")
        common = {"key": key, "windowsVirtualKeyCode": code, "code": key if len(key) > 1 else ""}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text: str) -> None:
        """Text into the element that has the focus."""
        self.send("Input.insertText", text=text)

    def wait_for(self, script: str, seconds: float = 10.0) -> Any:
        """The first true value of an expression.

        Raises:
            BrowserError: it stayed false.
        """
        deadline = time.monotonic() + seconds
        while not (value := self.evaluate(script)):
            if time.monotonic() > deadline:
                raise BrowserError(f"after {seconds:.0f} s still false: {script}")
            time.sleep(0.05)
        return value

    def picture(self, path: Path, top: int = 0, height: int | None = None) -> None:
        """A PNG of the page as it is in view, or of `height` pixels from `top` on."""
        options: dict[str, Any] = {"format": "png"}
        if height is not None:
            size = self.send("Page.getLayoutMetrics")["cssLayoutViewport"]
            clip = {"x": 0, "y": top, "width": size["clientWidth"], "height": height, "scale": 1}
            options |= {"clip": clip, "captureBeyondViewport": True}
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", **options)["data"]))

    def pdf(self, **options: Any) -> bytes:
        """The page as it is printed; options of the protocol's Page.printToPDF."""
        return base64.b64decode(self.send("Page.printToPDF", printBackground=True, **options)["data"])


def _above(descriptor: int, least: int) -> int:
    """A copy of a file descriptor with a number of at least `least`."""
    import fcntl

    return fcntl.fcntl(descriptor, fcntl.F_DUPFD, least)


if __name__ == "__main__":  # says whether there is a browser: exit code 0 or 1
    print(find() or f"none of {', '.join(NAMES)} is installed, and $CHROMIUM is not set")
    raise SystemExit(find() is None)
