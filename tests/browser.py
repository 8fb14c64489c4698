"""Debian's Chromium driven over its own pipe: real pixels, real pointers and keys, nothing to install but the browser.

`with Browser() as browser: page = browser.open(path)`; a page keeps every console message and every request it made.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_FLAGS = [
    f"--{flag}"
    for flag in (
        "headless=new", "no-sandbox", "disable-gpu", "disable-background-networking", "disable-quic", "no-first-run",
        "disable-component-update", "disable-sync", "disable-dev-shm-usage", "hide-scrollbars", "remote-debugging-pipe",
    )
]  # fmt: skip
_KEYS = {" ": ("Space", 32), "Enter": ("Enter", 13), "Escape": ("Escape", 27), "Home": ("Home", 36), "Tab": ("Tab", 9)}
_KEYS |= {f"Arrow{side}": (f"Arrow{side}", 37 + place) for place, side in enumerate(("Left", "Up", "Right", "Down"))}


class Browser:
    """One Chromium process with a profile of its own; gone when the block ends."""

    def __init__(self, *flags: str) -> None:
        self._flags = flags

    def __enter__(self) -> "Browser":
        assert CHROMIUM is not None, "no Chromium here"
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.downloads = Path(self._folder.name) / "downloads"
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for end in (*os.pipe(), *os.pipe())]
        there_in, self._out, self._in, there_out = ends
        self._process = os.posix_spawn(
            CHROMIUM,
            [CHROMIUM, *_FLAGS, f"--user-data-dir={self._folder.name}/profile", *self._flags, "about:blank"],
            {**os.environ, "HOME": self._folder.name, "TMPDIR": self._folder.name},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, there_in, 3),
                (os.POSIX_SPAWN_DUP2, there_out, 4),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            ],
            setpgroup=0,
        )
        os.close(there_in)
        os.close(there_out)
        self._number, self._rest, self._events = 0, b"", []  # type: ignore[var-annotated]
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)
        os.close(self._out)
        os.close(self._in)
        self._folder.cleanup()

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """One command of the DevTools protocol; events that arrive meanwhile are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        content = json.dumps(message).encode() + b"\0"
        while content:
            content = content[os.write(self._out, content) :]
        while True:
            answer = self._receive(60)
            assert answer is not None, f"{method}: no answer in a minute"
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer.get('error')}"
                return dict(answer["result"])
            self._events.append(answer)

    def events(self, session: str) -> list[dict[str, Any]]:
        """What happened in a page since the last look."""
        while (event := self._receive(0)) is not None:
            self._events.append(event)
        own = [event for event in self._events if event.get("sessionId") == session]
        self._events = [event for event in self._events if event.get("sessionId") != session]
        return own

    def _receive(self, seconds: float) -> dict[str, Any] | None:
        until = time.monotonic() + seconds
        while b"\0" not in self._rest:
            if not select.select([self._in], [], [], max(0, until - time.monotonic()))[0]:
                return None
            content = os.read(self._in, 1 << 20)
            assert content, "the browser is gone"
            self._rest += content
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))

    def cpu_seconds(self) -> float:
        """Processor time of all its processes so far: what a busy machine does not distort."""
        ticks = 0
        for place in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = place.read_text().rpartition(")")[2].split()
            except OSError:  # it ended meanwhile
                continue
            if int(fields[2]) == self._process:
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def open(
        self,
        path: Path,
        width: int = 1280,
        height: int = 800,
        *,
        dark: bool = False,
        ready: str = "document.documentElement?.dataset.ready === 'yes'",
    ) -> "Page":
        """A new page whose scripts have begun and painted."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads), eventsEnabled=True)
        page = Page(self, session)
        for room in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{room}.enable")
        page.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", features=[scheme])
        page.call("Page.navigate", url=path.resolve().as_uri())
        page.until(ready)
        page.settle()
        return page


class Page:
    """One page: what a person could do with it, and what it did."""

    def __init__(self, browser: Browser, session: str) -> None:
        self.browser, self.session = browser, session
        self.messages: list[str] = []
        self.requests: list[str] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **parameters)

    def __call__(self, script: str) -> Any:
        """The value of an expression in the page; a promise is waited for. As if a person had asked for it: Chromium
        holds back files that a page saves of its own accord."""
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, script: str, seconds: float = 20) -> None:
        """Wait for an expression to become true."""
        end = time.monotonic() + seconds
        while not self(script):
            assert time.monotonic() < end, f"not true after {seconds} s: {script}"
            time.sleep(0.05)

    def settle(self) -> None:
        """Until two frames were painted."""
        self("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def look(self) -> None:
        """Gather messages and requests so far."""
        for event in self.browser.events(self.session):
            method, facts = event["method"], event["params"]
            if method == "Runtime.consoleAPICalled":
                self.messages.append(str([one.get("value", one.get("description")) for one in facts["args"]]))
            elif method == "Runtime.exceptionThrown":
                self.messages.append(str(facts["exceptionDetails"].get("exception", facts)))
            elif method == "Log.entryAdded":
                self.messages.append(facts["entry"]["text"])
            elif method == "Network.requestWillBeSent":
                self.requests.append(facts["request"]["url"])

    def place(self, selector: str, across: float = 0.5, down: float = 0.5) -> tuple[float, float]:
        """A place in an element that has been scrolled into view, in CSS pixels of the window."""
        found = f"document.querySelector({json.dumps(selector)})"
        self(f"{found}.scrollIntoView({{block: 'nearest'}})")
        box = self(f"(() => {{ const b = {found}.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; }})()")
        return box[0] + across * box[2], box[1] + down * box[3]

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        self.call("Input.dispatchMouseEvent", type=f"mouse{kind}", x=x, y=y, **more)

    def click(self, x: float, y: float) -> None:
        self.mouse("Moved", x, y)
        self.mouse("Pressed", x, y, button="left", clickCount=1)
        self.mouse("Released", x, y, button="left", clickCount=1)
        self.settle()

    def press(self, selector: str) -> None:
        self.click(*self.place(selector))

    def drag(self, selector: str, across: float, down: float) -> None:
        x, y = self.place(selector)
        self.mouse("Pressed", x, y, button="left", clickCount=1)
        for part in (0.3, 0.7, 1):
            self.mouse("Moved", x + part * across, y + part * down, button="left", buttons=1)
        self.mouse("Released", x + across, y + down, button="left", clickCount=1)
        self.settle()

    def key(self, key: str, *, shift: bool = False) -> None:
        code, number = _KEYS.get(key, (key, ord(key[0].upper())))
        text = "\r" if key == "Enter" else key if len(key) == 1 else ""
        facts = {"key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": 8 if shift else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **facts)
        self.call("Input.dispatchKeyEvent", type="keyUp", **facts)
        self.settle()

    def write(self, selector: str, text: str) -> None:
        self(f"document.querySelector({json.dumps(selector)}).focus()")
        self.call("Input.insertText", text=text)
        self.settle()

    def choose(self, selector: str, value: str) -> None:
        """Another option of a select, as a person's choice would do it."""
        found = f"document.querySelector({json.dumps(selector)})"
        self(f"{found}.value = {json.dumps(value)}; {found}.dispatchEvent(new Event('change', {{bubbles: true}}))")
        self.settle()
        time.sleep(0.1)
        self.settle()

    def picture(self, path: Path | None = None, *, whole: bool = False) -> bytes:
        """A PNG of the window, or of the whole page."""
        content = base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"])
        if path is not None:
            path.write_bytes(content)
        return content

    def saved(self, selector: str, seconds: float = 20) -> Path:
        """Press a button that saves, and wait for its file."""
        time.sleep(0.15)  # the browser drops what a page saves beyond ten files a second
        before = set(self.browser.downloads.glob("*"))
        self(f"document.querySelector({json.dumps(selector)}).click()")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            new = [
                path for path in self.browser.downloads.glob("*") if path not in before and path.suffix != ".crdownload"
            ]
            if new and new[0].stat().st_size:
                return new[0]
            time.sleep(0.05)
        raise AssertionError(f"{selector} saved nothing in {seconds} s")
