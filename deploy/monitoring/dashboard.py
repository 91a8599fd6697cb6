"""`python -m deploy.monitoring.dashboard`: write `dashboard.json`, Grafana's view of runs. From top to bottom: is it
well, does it learn, is it stable, is it fast, who waits for whom, the machines.

Names are those of the run's exporter, with `ray_` in front, and Ray's own for the machines. Needs grafanalib (dev).
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grafanalib._gen import DashboardEncoder
from grafanalib.core import Dashboard, GridPos, RowPanel, Stat, Target, Template, Templating, TimeSeries

from t2ir1_ray.entry import Parser, run_entry
from t2ir1_ray.storage import write_whole

FILE = Path(__file__).with_name("dashboard.json")
SOURCE = "${datasource}"
RUN = '{run=~"$run"}'
WIDTH, HEIGHT = 24, 8

Query = tuple[str, str]  # expression, legend


def last(name: str, *labels: str) -> Query:
    """A figure as the run last said it. A run that was resumed has several series for a while: one per process."""
    by = ", ".join(("run", *labels))
    return f"max by ({by}) (ray_t2ir1_{name}{RUN})", " ".join(f"{{{{{label}}}}}" for label in ("run", *labels))


def quantile(q: float) -> Query:
    rate = f"rate(ray_t2ir1_step_seconds_bucket{RUN}[$__rate_interval])"
    return f"histogram_quantile({q}, sum by (run, le) ({rate}))", f"{{{{run}}}} {q:.0%}"


def added(name: str) -> Query:
    return f"sum by (run) (increase(ray_t2ir1_{name}_total{RUN}[1h]))", f"{{{{run}}}} {name.replace('_', ' ')}"


ROWS: dict[str, list[tuple[str, str, list[Query]]]] = {
    "Does it learn?": [
        ("Mean reward", "short", [last("reward_mean"), (last("reward_std")[0], "{{run}} std")]),
        ("Score by expert", "short", [last("reward", "expert")]),
        ("Held-out accuracy", "percentunit", [last("heldout_accuracy"), last("heldout_accuracy_greedy")]),
        ("Groups without a signal", "percentunit", [last("zero_std_groups")]),
        ("Hacking index", "short", [last("hacking_index")]),
    ],
    "Is it stable?": [
        ("KL to the starting policy", "short", [last("kl")]),
        ("Entropy by segment", "short", [last("entropy", "segment")]),
        ("Sampler against learner: KL", "short", [last("mismatch_kl", "segment")]),
        ("Sampler against learner: largest |log ratio|", "short", [last("mismatch_max", "segment")]),
        ("Gradient norm", "short", [last("grad_norm")]),
        ("Loss", "short", [last("loss")]),
        ("Learning rate", "short", [last("learning_rate")]),
        ("Plan: tokens", "short", [last("plan_length")]),
        ("Plans cut off", "percentunit", [last("plan_truncated")]),
        ("Staleness", "short", [last("staleness")]),
    ],
    "Is it fast?": [
        ("Seconds of a step", "s", [last("last_step_seconds"), quantile(0.5), quantile(0.95)]),
        ("Seconds by phase", "s", [last("phase_seconds", "phase")]),
        ("Images per second by phase", "short", [last("images_per_second", "phase")]),
        ("Images per second and GPU", "short", [last("images_per_second_per_gpu")]),
        ("Milliseconds of an image by phase", "ms", [last("image_milliseconds", "phase")]),
        (
            "Tokens per second: sampled, learned from",
            "short",
            [last("rollout_tokens_per_second"), last("learner_tokens_per_second")],
        ),
        ("Learner: TFLOP per second and rank", "short", [last("learner_tflop_per_second")]),
        ("Learner: share of its GPU's rate", "percentunit", [last("learner_utilisation")]),
        ("Publishing: GB per second", "short", [last("publish_gigabytes_per_second")]),
        (
            "Published",
            "Bps",
            [(f"sum by (run) (rate(ray_t2ir1_published_bytes_total{RUN}[$__rate_interval]))", "{{run}}")],
        ),
    ],
    "Who waits for whom?": [
        ("Busy share by actor", "percentunit", [last("busy_share", "actor")]),
        ("Idle share by role", "percentunit", [last("idle_share", "role")]),
        ("Calls that wait, by role", "short", [last("queue_length", "role")]),
        ("Actors down", "short", [last("actors_down"), added("actor_restarts")]),
        (
            "Lost in an hour",
            "short",
            [added("samples_dropped"), added("samples_stale"), added("groups_dropped"), added("groups_replaced")],
        ),
        ("Samples that an expert could not score", "percentunit", [last("expert_failed", "expert")]),
        ("Policy version", "short", [last("policy_version"), last("checkpoint_step"), added("checkpoints")]),
    ],
    "The machines": [
        ("GPU utilisation", "percent", [("ray_node_gpus_utilization", "{{instance}} {{GpuIndex}}")]),
        ("GPU memory", "decmbytes", [("ray_node_gram_used", "{{instance}} {{GpuIndex}}")]),
        (
            "Object store",
            "bytes",
            [("sum by (instance, Location) (ray_object_store_memory)", "{{instance}} {{Location}}")],
        ),
        (
            "Memory",
            "percentunit",
            [("ray_node_mem_used / ray_node_mem_total", "{{instance}}")],
        ),
        (
            "Nodes",
            "short",
            [("ray_cluster_active_nodes", "{{node_type}}"), ("ray_cluster_failed_nodes", "{{node_type}} lost")],
        ),
        ("Disk", "percentunit", [("ray_node_disk_usage / (ray_node_disk_usage + ray_node_disk_free)", "{{instance}}")]),
        (
            "Network",
            "Bps",
            [
                ("ray_node_network_receive_speed", "{{instance}} in"),
                ("ray_node_network_send_speed", "{{instance}} out"),
            ],
        ),
    ],
}
STATS: list[tuple[str, str, Query]] = [
    ("Step", "short", last("step")),
    ("of", "short", last("steps")),
    ("Since the last step", "s", (f"time() - max by (run) (ray_t2ir1_last_step_timestamp_seconds{RUN})", "{{run}}")),
    (
        "Time left",
        "s",
        (
            f"(max by (run) (ray_t2ir1_steps{RUN}) - max by (run) (ray_t2ir1_step{RUN}))"
            f" * max by (run) (ray_t2ir1_last_step_seconds{RUN})",
            "{{run}}",
        ),
    ),
    (
        "Steps behind the last checkpoint",
        "short",
        (f"max by (run) (ray_t2ir1_step{RUN}) - max by (run) (ray_t2ir1_checkpoint_step{RUN})", "{{run}}"),
    ),
    ("Actors down", "short", last("actors_down")),
]


def targets(queries: Sequence[Query]) -> list[Target]:
    return [Target(expr=e, legendFormat=legend, refId=chr(65 + i)) for i, (e, legend) in enumerate(queries)]


def dashboard() -> Dashboard:
    width = WIDTH // len(STATS)
    panels = [
        Stat(
            title=title,
            dataSource=SOURCE,
            format=unit,
            gridPos=GridPos(5, width, i * width, 0),
            targets=targets([query]),
        )
        for i, (title, unit, query) in enumerate(STATS)
    ]
    y = 5
    for row, graphs in ROWS.items():
        panels.append(RowPanel(title=row, gridPos=GridPos(1, WIDTH, 0, y)))
        for i, (title, unit, queries) in enumerate(graphs):
            at = GridPos(HEIGHT, WIDTH // 2, i % 2 * (WIDTH // 2), y + 1 + i // 2 * HEIGHT)
            panels.append(
                TimeSeries(
                    title=title, dataSource=SOURCE, unit=unit, gridPos=at, targets=targets(queries), showPoints="never"
                )
            )
        y += 1 + (len(graphs) + 1) // 2 * HEIGHT
    variables = [
        Template(name="datasource", label="Prometheus", type="datasource", query="prometheus"),
        Template(
            name="run", dataSource=SOURCE, query="label_values(ray_t2ir1_steps, run)", includeAll=True, multi=True
        ),
    ]
    return Dashboard(
        title="t2ir1_ray",
        uid="t2ir1-ray",
        description="Runs of t2ir1_ray: reward, stability, speed, actors and machines",
        tags=["ray", "t2ir1_ray"],
        timezone="browser",
        refresh="30s",
        schemaVersion=39,
        templating=Templating(variables),
        panels=panels,
    ).auto_panel_ids()


def text() -> str:
    """As Grafana takes it, without what is null."""
    whole = json.loads(json.dumps(dashboard().to_json_data(), cls=DashboardEncoder))
    return json.dumps(_said(whole), indent=1, sort_keys=True) + "\n"


def _said(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _said(value) for key, value in node.items() if value is not None}
    return [_said(item) for item in node] if isinstance(node, list) else node


def main(arguments: Sequence[str]) -> None:
    Parser(prog="python -m deploy.monitoring.dashboard", description="Write dashboard.json.").parse_args(arguments)
    write_whole(FILE, text())
    print(f"wrote {FILE}")


if __name__ == "__main__":
    run_entry(main, sys.argv[1:])
