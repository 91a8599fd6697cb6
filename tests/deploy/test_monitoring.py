"""Scrape configuration, alerts and dashboard: as Prometheus reads them, and of figures that exist."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray.dashboard.modules.metrics.dashboards
import ray.dashboard.modules.reporter.reporter_agent
import yaml

import deploy.monitoring
from deploy.monitoring import dashboard
from t2ir1_ray.journal.exported import TABLE

FOLDER = Path(deploy.monitoring.__file__).parent
SERIES = {name for row in TABLE for name in row.series}


@pytest.fixture(autouse=True)
def needs_promtool() -> None:
    if subprocess.run(["sh", "-c", "command -v promtool"], capture_output=True).returncode:
        pytest.skip("promtool is not here: apt-get install prometheus")


def promtool(*arguments: str, where: Path = FOLDER) -> str:
    """What promtool has against it."""
    done = subprocess.run(["promtool", *arguments], cwd=where, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def expressions(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (value for key, value in node.items() if key == "expr")
        node = list(node.values())
    for item in node if isinstance(node, list) else ():
        yield from expressions(item)


def panels() -> dict[str, Any]:
    return json.loads(dashboard.FILE.read_text())


def alerts() -> dict[str, Any]:
    return yaml.safe_load((FOLDER / "alerts.yml").read_text())


def parse(found: list[str], tmp_path: Path) -> str:
    """What promtool has against expressions of a dashboard, Grafana's variables filled in."""
    plain = [re.sub(r"\$\w+", ".*", e.replace("$__rate_interval", "5m")) for e in found]
    rules = [{"record": f"r{i}", "expr": expression} for i, expression in enumerate(plain)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "x", "rules": rules}]}))
    return promtool("check", "rules", "rules.yml", where=tmp_path)


def test_prometheus_takes_the_files() -> None:
    assert not promtool("check", "config", "prometheus.yml")
    assert not promtool("check", "rules", "alerts.yml")
    assert not promtool("test", "rules", "alerts_test.yml")


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("prometheus.yml", "file_sd_configs", "file_sd_config"),
        ("alerts.yml", "> 3 * max by (run)", "> 3 * max by run"),
        ("alerts.yml", "> 3 * max", "> 900 * max"),
        ("alerts.yml", "unless on (run)", "and on (run)"),
        ("alerts_test.yml", "30m 0s", "31m 0s"),
    ],
)
def test_a_broken_file_is_found(file: str, old: str, new: str, tmp_path: Path) -> None:
    for path in FOLDER.glob("*.yml"):
        text = path.read_text()
        (tmp_path / path.name).write_text(text.replace(old, new) if path.name == file else text)
    assert (tmp_path / file).read_text() != (FOLDER / file).read_text()
    assert (
        promtool("check", "config", "prometheus.yml", where=tmp_path)
        or promtool("check", "rules", "alerts.yml", where=tmp_path)
        or promtool("test", "rules", "alerts_test.yml", where=tmp_path)
    )


def test_every_alert_is_tested() -> None:
    tests = yaml.safe_load((FOLDER / "alerts_test.yml").read_text())["tests"]
    fired = {one["alertname"] for test in tests for one in test["alert_rule_test"] if one["exp_alerts"]}
    assert fired == {rule["alert"] for group in alerts()["groups"] for rule in group["rules"]}


def test_the_dashboard_is_what_its_module_makes() -> None:
    assert dashboard.FILE.read_text() == dashboard.text(), "run `python -m deploy.monitoring.dashboard`"


def test_every_expression_of_the_dashboard_parses(tmp_path: Path) -> None:
    found = list(expressions(panels()))
    assert len(found) > 40
    assert not parse(found, tmp_path)
    assert parse([*found, "sum by run (ray_t2ir1_step)"], tmp_path)


def test_every_name_of_a_run_is_exported_and_every_exported_one_is_shown() -> None:
    shown = {name for e in expressions(panels()) for name in re.findall(r"\bray_t2ir1_\w+", e)}
    watched = {name for e in expressions(alerts()) for name in re.findall(r"\bray_t2ir1_\w+", e)}
    assert shown | watched <= SERIES
    unseen = SERIES - shown - {"ray_t2ir1_step_seconds_sum", "ray_t2ir1_step_seconds_count"}
    assert not unseen


def test_every_name_of_the_machines_is_one_of_rays() -> None:
    """Ray's own panels use it, or its agent sets it."""
    folder = Path(ray.dashboard.modules.metrics.dashboards.__file__).parent
    known = "".join(path.read_text() for path in folder.glob("*.py"))
    agent = Path(ray.dashboard.modules.reporter.reporter_agent.__file__).read_text()
    names = {n for of in (panels(), alerts()) for e in expressions(of) for n in re.findall(r"\bray_(?!t2ir1)\w+", e)}
    assert len(names) > 8
    for name in names:
        assert re.search(rf"\b{name}\b", known) or f'"{name.removeprefix("ray_")}"' in agent, name


def test_panels_do_not_lie_on_each_other() -> None:
    taken = set()
    for panel in panels()["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= dashboard.WIDTH
        taken |= cells
    ids = [panel["id"] for panel in panels()["panels"]]
    assert len(set(ids)) == len(ids)
