"""A run's figures as Ray's own metrics: for Prometheus, Grafana and the graphs of Ray's dashboard.

`TABLE` is the one place that says what a figure of metrics.jsonl is called there. Ray puts `ray_` in front of a name,
and `_total`, or `_bucket`, `_sum` and `_count`, behind a counter's or a histogram's. Every series has the label `run`.
"""

import math
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from ray.util.metrics import Counter, Gauge, Histogram

REPEAT_S = 5.0
"""How often gauges are set again: Ray forgets one that was set once after 20 to 35 s, and a step may last minutes."""
NOTHING = 1e-9
"""What a counter begins with, for Ray's take no 0: a counter that is not there is no basis for an increase."""
SECONDS = [0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0]


@dataclass(frozen=True)
class Row:
    """source: the name in metrics.jsonl, where `{label}` stands for any part of it, which becomes that label's value.

    kind: a `counter`'s source is what a step adds, a `total`'s the sum since the run began, and that is a counter too.
    """

    source: str
    name: str
    kind: Literal["gauge", "counter", "total", "histogram"]
    meaning: str

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(re.findall(r"\{(\w+)\}", self.source))

    @property
    def series(self) -> tuple[str, ...]:
        """Names under which Prometheus finds it."""
        ends = {"gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}.get(self.kind, ("_total",))
        return tuple(f"ray_{self.name}{end}" for end in ends)

    def match(self, key: str) -> dict[str, str] | None:
        """The labels of a name in metrics.jsonl; None: it is not this row's."""
        pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(self.source))
        found = re.fullmatch(pattern, key)
        return found and found.groupdict()


TABLE = (
    Row("step", "t2ir1_step", "gauge", "the last step that was done"),
    Row("run/steps", "t2ir1_steps", "gauge", "steps of the whole run"),
    Row("run/last_step_time", "t2ir1_last_step_timestamp_seconds", "gauge", "when it was done, in seconds since 1970"),
    Row("policy_version", "t2ir1_policy_version", "gauge", "the version that the rollout actors are given"),
    Row("time/step_s", "t2ir1_step_seconds", "histogram", "wall-clock seconds of a step"),
    Row("time/step_s", "t2ir1_last_step_seconds", "gauge", "of the last step"),
    Row("time/{phase}_s", "t2ir1_phase_seconds", "gauge", "wall-clock seconds of a phase in the last step"),
    Row("throughput/{phase}_images", "t2ir1_images_per_second", "gauge", "while the phase lasts; step: all of it"),
    Row("throughput/gpu_images", "t2ir1_images_per_second_per_gpu", "gauge", "of the whole step, by all GPUs"),
    Row("throughput/{phase}_image_ms", "t2ir1_image_milliseconds", "gauge", "of a phase, for each image"),
    Row("throughput/rollout_tokens", "t2ir1_rollout_tokens_per_second", "gauge", "tokens sampled, while it samples"),
    Row("throughput/learn_tokens", "t2ir1_learner_tokens_per_second", "gauge", "tokens learned from, while it learns"),
    Row("throughput/learn_tflop", "t2ir1_learner_tflop_per_second", "gauge", "1e12 operations a second and rank"),
    Row("throughput/learn_mfu", "t2ir1_learner_utilisation", "gauge", "that over what its GPU does by its data sheet"),
    Row("reward/mean", "t2ir1_reward_mean", "gauge", "mean reward of the samples"),
    Row("reward/std", "t2ir1_reward_std", "gauge", "mean standard deviation inside a group"),
    Row("reward/zero_std_groups", "t2ir1_zero_std_groups", "gauge", "share of groups with equal rewards: no signal"),
    Row("reward/{expert}", "t2ir1_reward", "gauge", "mean score of an expert"),
    Row("expert/{expert}/failed", "t2ir1_expert_failed", "gauge", "share of samples that an expert could not score"),
    Row("heldout/accuracy", "t2ir1_heldout_accuracy", "gauge", "exact accuracy on held-out prompts, T = 1"),
    Row("heldout/accuracy_greedy", "t2ir1_heldout_accuracy_greedy", "gauge", "the same, greedy"),
    Row("hacking/index", "t2ir1_hacking_index", "gauge", "gain of the reward less that of what only watches"),
    Row("loss", "t2ir1_loss", "gauge", "of the last step"),
    Row("grad_norm", "t2ir1_grad_norm", "gauge", "before clipping"),
    Row("lr", "t2ir1_learning_rate", "gauge", "of the last step"),
    Row("kl", "t2ir1_kl", "gauge", "to the starting policy, per token"),
    Row("entropy/{segment}", "t2ir1_entropy", "gauge", "of plan or image tokens, in nats"),
    Row("mismatch/{segment}_kl", "t2ir1_mismatch_kl", "gauge", "between sampler and learner, per token"),
    Row("mismatch/{segment}_max", "t2ir1_mismatch_max", "gauge", "largest |log ratio| of sampler and learner"),
    Row("staleness", "t2ir1_staleness", "gauge", "updates between the policy that sampled and the one that learned"),
    Row("plan/length", "t2ir1_plan_length", "gauge", "mean tokens of a plan"),
    Row("plan/truncated", "t2ir1_plan_truncated", "gauge", "share of plans that were cut off"),
    Row("samples/dropped", "t2ir1_samples_dropped", "counter", "samples that were not trained on"),
    Row("groups/dropped", "t2ir1_groups_dropped", "counter", "groups that were not trained on"),
    Row("groups/replaced", "t2ir1_groups_replaced", "counter", "groups without a signal that others took the place of"),
    Row("samples/stale", "t2ir1_samples_stale", "total", "samples of a checkpoint that were too old to train on"),
    Row("actors/restarts", "t2ir1_actor_restarts", "total", "actors that died and were started again"),
    Row("actors/down", "t2ir1_actors_down", "gauge", "actors that are waited for, because they or their node are lost"),
    Row("usage/busy/{actor}", "t2ir1_busy_share", "gauge", "share of the last step in which the actor had a call"),
    Row("usage/idle/{role}", "t2ir1_idle_share", "gauge", "share of the last step without a call, mean over actors"),
    Row("usage/queue/{role}", "t2ir1_queue_length", "gauge", "calls that stood behind another one, on average"),
    Row("throughput/publish_gb", "t2ir1_publish_gigabytes_per_second", "gauge", "of a policy version's way"),
    Row("publish/bytes", "t2ir1_published_bytes", "counter", "of the policy versions for the rollout actors"),
    Row("run/checkpoints", "t2ir1_checkpoints", "counter", "checkpoints that were written"),
    Row("run/checkpoint_step", "t2ir1_checkpoint_step", "gauge", "of the last one: what a crash cannot take"),
)
"""Sources below `run/` and `actors/down` are not in metrics.jsonl: the exporter or the run says them itself."""


@cache
def rows_of(key: str) -> list[tuple[Row, dict[str, str]]]:
    """The rows of a name in metrics.jsonl with their labels: those that name it as it is, else those with a label."""
    found = [(row, labels) for row in TABLE if (labels := row.match(key)) is not None]
    return [(row, labels) for row, labels in found if not row.labels] or found


class Exporter:
    """Figures of one run, as long as this process is connected to Ray."""

    def __init__(self, run: str, done: int, steps: int, live: Callable[[], Mapping[str, float]] = dict):
        """done, steps: where the run begins, and where it ends. live: asked for more whenever gauges are set again."""
        kinds = {"gauge": Gauge, "counter": Counter, "total": Counter}
        self._metrics = {}
        for row in TABLE:
            tags = {"tag_keys": ("run", *row.labels)}
            metric = (
                Histogram(row.name, row.meaning, SECONDS, **tags)
                if row.kind == "histogram"
                else kinds[row.kind](row.name, row.meaning, **tags)
            )
            self._metrics[row.name] = metric.set_default_tags({"run": run})
            if isinstance(metric, Counter):
                metric.inc(NOTHING)
        self._live = live
        self._totals: dict[str, float] = {}
        self._gauges: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self.write({"run/steps": steps, "run/checkpoint_step": done, **live()})
        threading.Thread(target=self._repeat, name="exporter", daemon=True).start()

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Figures by the names of metrics.jsonl; what is no finite number, or in no row, is left out."""
        for key, value in metrics.items():
            if isinstance(value, int | float) and math.isfinite(value):
                for row, labels in rows_of(key):
                    self._put(row, labels, value)
        if metrics.get("step"):
            self.write({"run/last_step_time": time.time()})
        with self._lock:
            self._set()

    def checkpoint(self, step: int) -> None:
        """A checkpoint is on the disk."""
        self.write({"run/checkpoints": 1, "run/checkpoint_step": step})

    def close(self) -> None:
        """Stop setting gauges; they are gone soon."""
        self._ended.set()

    def _put(self, row: Row, labels: dict[str, str], value: float) -> None:
        metric = self._metrics[row.name]
        if row.kind == "gauge":
            with self._lock:
                self._gauges[row.name, tuple(labels.items())] = value
        elif row.kind == "histogram":
            metric.observe(value, labels)
        else:
            before = self._totals.get(row.name, 0.0) if row.kind == "total" else 0.0
            self._totals[row.name] = value
            if value > before:
                metric.inc(value - before, labels)

    def _set(self) -> None:
        for (name, labels), value in self._gauges.items():
            self._metrics[name].set(value, dict(labels))

    def _repeat(self) -> None:
        while not self._ended.wait(REPEAT_S):
            self.write(self._live())
