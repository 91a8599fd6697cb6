"""A followed run: the server in a process of its own, and somebody who looks at its page."""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.system.browser import chromium


@contextmanager
def followed(run: Path, *options: str) -> Iterator[str]:
    """The address at which a run is followed; `run` is made if it is not there."""
    run.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "t2ir1_ray.report", str(run), "--follow", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            said = server.stdout.readline()
            assert said, server.stderr.read()
            yield re.search(r"http://\S+/", said)[0]
        finally:
            server.terminate()
            server.wait(10)


class Onlooker:
    """Somebody who has the page of a run open. On a thread, for Playwright keeps an event loop on its own."""

    def __init__(self, run: Path):
        self.run = run
        self.seen: list[dict[str, Any]] = []
        """Whatever the page showed, one after another: `state, words, step, lanes, live`."""
        self.complaints: list[str] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def wait_for(self, seconds: float = 30, **wanted: Any) -> None:
        """Until the page shows that."""
        deadline = time.monotonic() + seconds
        while not any(wanted.items() <= shown.items() for shown in self.seen[-3:]):
            assert time.monotonic() < deadline, (wanted, self.seen[-3:], self.complaints)
            assert self._thread.is_alive(), self.complaints
            time.sleep(0.05)

    def _look(self) -> None:
        try:
            with followed(self.run) as address, chromium() as browser:
                page = browser.new_page()
                page.on("console", lambda message: self.complaints.append(message.text))
                page.on("pageerror", lambda error: self.complaints.append(str(error)))
                page.goto(address)
                page.wait_for_selector("#health .badge")
                while not self._ended.is_set():
                    shown = page.evaluate(SHOWN)
                    if not self.seen or shown != self.seen[-1]:
                        self.seen.append(shown)
                    page.wait_for_timeout(100)
        except BaseException as error:
            self.complaints.append(repr(error))
            raise

    def __enter__(self) -> "Onlooker":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(30)


SHOWN = """() => ({
  state: document.querySelector("#health .badge").textContent,
  words: document.querySelector("#health .words span:last-child").textContent,
  step: DATA.runs[0].steps.at(-1) ?? null,
  lanes: document.querySelectorAll("#lanes .lane").length,
  live: document.querySelector("#connection .badge").textContent,
})"""
