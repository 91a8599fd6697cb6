"""A followed run: what the server answers, to whom, and the page in Chromium while a run is written."""

import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from t2ir1_ray.errors import UserError
from t2ir1_ray.report import main
from tests.core.test_follower import append, resume, tell
from tests.system.browser import chromium, need_chromium
from tests.system.following import followed
from tests.system.report_runs import HOSTILE, write_run
from tests.system.runs import heed_ctrl_c


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "seed0", steps=4)


@pytest.fixture(scope="module")
def address(run: Path) -> Iterator[str]:
    with followed(run) as found:
        yield found


def ask(address: str, path: str = "/", method: str = "GET", **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)
    connection.request(method, path, headers=headers)
    return connection.getresponse()


def messages(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in response:
        if line.startswith(b"data: "):
            yield json.loads(line[6:])


def test_the_page_and_its_events(address: str, run: Path) -> None:
    page = ask(address)
    html = page.read().decode()
    assert page.status == 200
    assert "<title>seed0: run report</title>" in html
    assert "owned" not in html, "nothing of the run is in the page itself"
    assert re.search(r"default-src 'none'.*connect-src data: 'self'; script-src 'sha256-", html)
    assert page.headers["X-Frame-Options"] == "DENY"
    assert page.headers["Cache-Control"] == "no-store"
    events = ask(address, "/events")
    assert events.headers["Content-Type"] == "text/event-stream"
    assert "Access-Control-Allow-Origin" not in events.headers
    told = messages(events)
    first = next(told)
    assert first["base"]["runs"][0]["steps"] == [0, 1, 2, 3, 4]
    assert [next(told)["dump"] for _ in range(4)] == [4, 3, 2, 1], "the newest first"
    append(run, 5)
    fresh = next(told)
    assert fresh["steps"] == [5]
    assert fresh["tiles"]["add"][0]["lanes"] == {"rollout 0": [["generate", 0, 805]]}


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:1", 200),  # behind a tunnel the port is another
        ("localhost:8000", 200),
        ("LOCALHOST", 200),
        ("[::1]:8000", 200),
        ("evil.example", 421),
        ("evil.example:8000", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example:80", 421),
        ("evil.example@localhost", 421),
        ("0.0.0.0", 421),
        ("", 421),
    ],
)
def test_only_under_its_own_name(address: str, host: str, status: int) -> None:
    """A page of evil.example whose name suddenly means 127.0.0.1 asks for evil.example."""
    assert ask(address, Host=host).status == status
    assert ask(address, "/nothing", Host=host).status == (404 if status == 200 else 421)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"])
def test_it_can_only_be_read(address: str, method: str) -> None:
    assert ask(address, "/", method).status == 405
    assert ask(address, "/events", method).status == 405


@pytest.mark.parametrize(
    "path", ["/metrics.jsonl", "/../config.yaml", "/%2e%2e/config.yaml", "/static/", "//etc/passwd"]
)
def test_no_file_is_served(address: str, path: str) -> None:
    assert ask(address, path).status in (400, 404)


def test_only_this_machine_is_listened_to(address: str) -> None:
    port = urlsplit(address).port
    assert urlsplit(address).hostname == "127.0.0.1"
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    for other in [*others, "127.0.0.2"]:
        with socket.socket() as probe:
            probe.settimeout(2)
            assert probe.connect_ex((other, port)) != 0


def test_bad_arguments_get_one_line(address: str, run: Path, tmp_path: Path) -> None:
    port = urlsplit(address).port
    for arguments, words in [
        ([tmp_path / "nowhere", "--follow"], "does not exist"),
        ([run, run, "--follow"], "--follow: takes one RUN"),
        ([run, "--follow", "--out", "x.html"], "--follow: takes one RUN"),
        ([run, "--port", "8000"], "--port: is for --follow"),
        ([run, "--follow", "--port", port], f"--port={port}: .*in use.*: choose another one"),
        ([run, "--follow", "--port", "99999"], "--port=99999: "),
        ([run, "--follow", "--max-mb", "0"], "--max-mb=0: "),
    ]:
        with pytest.raises(UserError, match=words) as refusal:
            main([str(argument) for argument in arguments])
        assert "\n" not in str(refusal.value)


def test_ctrl_c_ends_it_at_once_though_a_page_is_open(run: Path) -> None:
    command = [sys.executable, "-m", "t2ir1_ray.report", str(run), "--follow"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, preexec_fn=heed_ctrl_c, **pipes) as server:
        address = re.search(r"http://\S+/", server.stdout.readline())[0]
        next(messages(ask(address, "/events")))
        server.send_signal(signal.SIGINT)
        try:
            _, errors = server.communicate(timeout=20)
        finally:
            server.kill()
    assert (server.returncode, errors) == (130, "interrupted\n")


def lane(page: Any, who: str) -> Any:
    return page.locator(".lane", has=page.locator("span:first-child", has_text=re.compile(f"^{who}$")))


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    """The page of a run whose folder is empty yet; fails on any message of the console."""
    need_chromium()
    complaints = []
    with followed(tmp_path / "seed0") as address, chromium() as browser:
        found = browser.new_page()
        found.on("console", lambda message: complaints.append(message.text))
        found.on("pageerror", lambda error: complaints.append(str(error)))
        found.goto(address)
        yield found
        assert complaints == []


def test_a_page_grows_with_its_run(page: Any, tmp_path: Path) -> None:
    """From an empty folder to a run that was killed and goes on behind an earlier step."""
    run = tmp_path / "seed0"
    words = page.locator("#health .words")
    page.get_by_text("for the run to begin").wait_for()
    assert page.locator("#curves").is_hidden()
    assert page.locator("#count").inner_text() == "No samples yet."

    made = write_run(tmp_path / "made", steps=6)
    shutil.copy(made / "config.yaml", run)
    (run / ".writer").write_text("{}")  # a process writes here
    tell(run, "began", 0, steps=6)
    page.get_by_text("its actors are brought up").wait_for()
    lanes = {"rollout 0": [["generate", 0, 700]], "expert hps 0": [["score", 600, 900]]}
    now = {"kind": "now", "step": 0, "at": 1000.0, "ms": 900, "lanes": lanes, "at_work": {"expert hps 0": ["score", 9]}}
    tell(run, "started", 0)
    (run / "now.json").write_text(json.dumps(now))
    page.get_by_text("now: score for").wait_for()
    assert lane(page, "rollout 0").locator(".present").inner_text() == "now: waits for expert hps 0"

    metrics = (made / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "rollouts").mkdir()

    def train(*steps: int) -> None:
        for step in steps:
            with (run / "metrics.jsonl").open("a") as file:
                file.write(metrics[step])
            tell(
                run,
                "step",
                step,
                ms=1000,
                lanes=lanes,
                restarts={"rollout 0": 1} if step == 2 else {},
                left_s=60 - step,
            )
            if step:
                shutil.copy(made / f"rollouts/step_{step:06d}.parquet", run / "rollouts")

    train(0, 1, 2)
    tell(run, "checkpoint", 2)
    tell(run, "warning", 2, text=f"plans shrink {HOSTILE}")
    page.get_by_text("step 2 of 6 is done").wait_for()
    assert page.locator("#health li").inner_text() == f"step 2: plans shrink {HOSTILE}"
    facts = page.locator("#health .facts").inner_text()
    assert re.search(r"last checkpoint\s+step 2, .* ago", facts)
    assert re.search(r"time left\s+about 5\d s", facts)
    page.wait_for_selector(".js-plotly-plot .scatterlayer .trace", state="attached")
    assert "restarted once" in lane(page, "rollout 0").inner_text()
    assert lane(page, "rollout 0").locator("svg .rollout").count() == 4, "three steps, and the present"
    assert page.locator(".card").first.locator(".column > .bar").inner_text().startswith("step 2"), "the newest first"

    page.get_by_label("Prompt contains").fill("red")
    page.get_by_label("Metric", exact=True).select_option("loss")
    train(3, 4)
    page.get_by_text("step 4 of 6 is done").wait_for()
    page.wait_for_function("() => DATA.groups.at(-1).step === 4")
    assert page.get_by_label("Prompt contains").input_value() == "red", "filters stay"
    assert page.get_by_label("Metric", exact=True).input_value() == "loss"
    points = "() => document.querySelector('.plot').data[0].x"
    assert page.evaluate(points) == [1, 2, 3, 4]

    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "torn')
    resume(run, 2)
    page.get_by_text("to go on behind step 2").wait_for()
    assert page.evaluate("() => Math.max(...DATA.groups.map((g) => g.step))") == 2
    page.wait_for_function(f"() => ({points})().length === 2")
    tell(run, "started", 2)
    page.get_by_role("button", name="Hold").click()
    train(3)
    page.wait_for_timeout(2500)
    assert "step 3" not in words.inner_text(), "held"
    page.get_by_role("button", name="Go on").click()
    page.get_by_text("step 3 of 6 is done").wait_for()
    train(4, 5, 6)
    tell(run, "ended", 6, text="")
    (run / ".writer").unlink()
    (run / "now.json").unlink()
    page.get_by_text("6 of 6 steps").wait_for()
    page.wait_for_function("() => DATA.groups.at(-1).step === 6")
    assert page.evaluate("() => DATA.runs[0].tiles.map((tile) => tile.step)") == [0, 1, 2, 3, 4, 5, 6]
    assert re.search(r"resumed\s+behind step 2", page.locator("#health .facts").inner_text())
    assert page.title() == "6 of 6: seed0"
    page.set_viewport_size({"width": 360, "height": 740})
    page.wait_for_function("() => document.documentElement.scrollWidth <= 360")  # no sideways scrolling
