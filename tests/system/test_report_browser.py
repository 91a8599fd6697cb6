"""The report's page in headless Chromium: filters, pairs, keyboard, phone, darkness, speed, and no complaint."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from t2ir1_ray.report import main
from tests.system.browser import chromium, need_chromium
from tests.system.report_runs import HOSTILE, PROMPTS, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "seed0")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "seed1", steps=4, seed=1)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    need_chromium()
    with chromium() as found:
        yield found


@pytest.fixture
def visit(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Opens the report of runs, offline, and fails on any message of the console."""
    contexts, complaints = [], []

    def open_page(*runs: Path, **options: Any) -> Any:
        out = tmp_path / "report.html"
        main([*map(str, runs), "--out", str(out)])
        contexts.append(browser.new_context(offline=True, **options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(out.as_uri())
        page.wait_for_selector(".js-plotly-plot .scatterlayer .trace", state="attached", timeout=20_000)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def cards(page: Any) -> list[str]:
    return page.locator(".card h3").all_inner_texts()


def steps(page: Any) -> list[int]:
    return [int(re.search(r"step (\d+)", text)[1]) for text in page.locator(".column > .bar").all_inner_texts()]


def test_filters(visit: Any, run: Path) -> None:
    page = visit(run)
    assert page.locator("#count").inner_text() == "1–8 of 18 groups"
    assert page.locator(".card").count() == 8, "only the groups of this page are in the document"
    assert page.locator(".sample img").first.evaluate("image => image.naturalWidth") == 24
    assert set(page.locator(".mark").all_inner_texts()) == {"best", "worst"}, "not told by colour alone"
    page.get_by_label("From step").fill("3")
    page.get_by_label("To step").fill("3")
    assert steps(page) == [3, 3, 3]
    page.get_by_label("Rewards of the group").select_option("equal")
    assert cards(page) == [PROMPTS[0]]
    assert page.locator(".badge", has_text="equal rewards").count() == 1
    page.get_by_role("button", name="Reset filters").click()
    page.get_by_label("Task type").select_option("numeracy")
    assert set(cards(page)) == {PROMPTS[1]}
    page.get_by_label("Prompt contains").fill("no such prompt")
    assert page.locator("#count").inner_text().startswith("No group passes")
    page.get_by_role("button", name="Reset filters").click()
    means = {}
    for order in ("best", "worst"):
        page.get_by_label("Sort cards").select_option(order)
        text = page.locator(".column > .bar").first.inner_text()
        means[order] = float(re.search(r"mean reward ([\d.]+)", text)[1])
    assert means["best"] > means["worst"]
    page.get_by_role("button", name="Next").click()
    assert page.locator("#count").inner_text() == "9–16 of 18 groups"


def test_hostile_text_stays_text(visit: Any, run: Path) -> None:
    page = visit(run)
    page.get_by_label("Prompt contains").fill("</script>")
    assert set(cards(page)) == {HOSTILE}
    assert page.title() == "seed0: run report"
    assert page.locator(".sample b, .card script, img[src=x]").count() == 0
    assert "<b>orm</b>" in page.locator(".sample dt").all_inner_texts()
    assert any("<b>orm</b>" in text for text in page.locator(".legendtext").all_text_contents())


def test_before_and_after(visit: Any, run: Path) -> None:
    page = visit(run)
    page.get_by_label("Show").select_option("steps")
    assert page.locator("#count").inner_text() == "1–6 of 6 prompts"
    first = page.locator(".card", has=page.get_by_role("heading", name="a red square"))
    assert first.locator(".column").count() == 2
    chosen = [box.input_value() for box in first.get_by_label("Step of seed0").all()]
    assert chosen == ["0", "2"], "the first and the last time"
    first.get_by_label("Step of seed0").first.select_option("1")
    assert first.locator(".plan").first.inner_text() == "plan 0 of step 3: a red square"


def test_two_runs_side_by_side(visit: Any, run: Path, other: Path) -> None:
    page = visit(run, other)
    assert page.title() == "seed0 and seed1: run report"
    legend = page.locator(".chart").first.locator(".legendtext").all_text_contents()
    assert legend[:3] == ["mean, seed0", "hps, seed0", "<b>orm</b>, seed0"]
    assert "mean, seed1" in legend
    page.get_by_label("Show").select_option("runs")
    card = page.locator(".card").first
    assert card.locator(".column strong").all_inner_texts() == ["seed0", "seed1"]
    shown = [box.locator("option:checked").inner_text() for box in card.locator(".column select").all()]
    assert shown[0] == shown[1], "the same step where both have it"
    page.get_by_text("settings differ").click()
    assert page.locator("#overview td", has_text="train.seed").count() >= 1


def test_keyboard_only(visit: Any, run: Path) -> None:
    page = visit(run)
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    assert page.get_by_label("Show").input_value() == "steps"
    assert page.evaluate("() => document.activeElement.value") == "steps", "the focus stays"
    assert page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle") == "solid"
    controls = "[...document.querySelectorAll('select, input')]"
    assert page.evaluate(f"() => {controls}.filter((c) => !c.labels.length && !c.ariaLabel).length") == 0


def test_a_phone_in_the_dark(visit: Any, run: Path, other: Path) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
    page = visit(run, other, color_scheme="dark", **phone)
    for view in ("groups", "runs"):
        page.get_by_label("Show").select_option(view)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 360, "no sideways scrolling"
    colour = page.evaluate("() => getComputedStyle(document.documentElement).backgroundColor")
    assert max(map(int, re.findall(r"\d+", colour))) < 64


def test_a_click_on_a_curve_shows_the_step(visit: Any, run: Path) -> None:
    page = visit(run)
    plot = page.locator(".plot").first
    plot.scroll_into_view_if_needed()
    box = plot.locator(".nsewdrag").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 5, y)
    page.mouse.move(x, y, steps=4)
    page.wait_for_selector(".hoverlayer .legend", state="attached")
    page.mouse.click(x, y)
    assert len(set(steps(page))) == 1
    assert page.locator("#count").inner_text() == "1–3 of 3 groups"


@pytest.mark.slow
def test_200_steps_of_64_samples_open_fast(browser: Any, tmp_path: Path) -> None:
    """Processor seconds of the page's main thread on a first visit: whatever else the machine does is no matter."""
    main([str(write_run(tmp_path / "long", steps=200, prompts=8, group=8, pool=400))])
    report = tmp_path / "long" / "report.html"
    page = browser.new_page()
    devtools = page.context.new_cdp_session(page)
    devtools.send("Performance.enable", {"timeDomain": "threadTicks"})

    def seconds() -> float:
        return {m["name"]: m["value"] for m in devtools.send("Performance.getMetrics")["metrics"]}["ThreadTime"]

    page.goto(report.as_uri(), wait_until="commit")
    page.wait_for_selector(".js-plotly-plot .scatterlayer .trace", state="attached")
    opened = seconds()
    page.wait_for_timeout(1500)
    rest = seconds()
    page.get_by_label("Sort cards").select_option("worst")
    resorted = seconds() - rest
    size = report.stat().st_size / 1e6
    print(f"{size:.1f} MB: samples and first curve {opened:.2f} s, another order {resorted:.2f} s")
    assert page.locator("#count").inner_text() == "1–8 of 1600 groups"
    page.context.close()
    assert opened < 3, "about 1.4 on a quiet machine; a crowded one inflates even processor time"
    assert resorted < 1
    assert size < 64
