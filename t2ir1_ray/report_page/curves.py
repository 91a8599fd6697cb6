"""Which metrics stand together in one chart."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

PHASES = ("rollout", "score", "learn", "publish")
HACKING = {"index": "index", "trained": "reward", "watched": "watching", "heldout": "held-out accuracy"}


@dataclass(frozen=True)
class Chart:
    """Curves over the optimisation step: (metric, its name in the legend)."""

    title: str
    note: str  # the unit or meaning, in a few words
    curves: list[tuple[str, str]]
    percent: bool = False
    stacked: bool = False  # when one run is shown


def charts(metrics: Iterable[str]) -> list[Chart]:
    """The charts that show at least one of the metrics, in reading order."""
    known = dict.fromkeys(metrics)
    times = [f"time/{phase}_s" for phase in PHASES]
    times += [key for key in known if key.startswith("time/") and key not in {*times, "time/step_s"}]
    wanted = [
        Chart("Reward", "mean over samples", _named(["reward/mean", *_experts(known)], "reward/")),
        Chart(
            "Held-out accuracy",
            "exact verifier, never trained on; bars: standard error",
            [("heldout/accuracy", "T = 1"), ("heldout/accuracy_greedy", "greedy")],
            percent=True,
        ),
        Chart(
            "Held-out: where it goes wrong",
            "right plans, images that follow their plan (T = 1)",
            [("heldout/plan_accuracy", "plan is right"), ("heldout/image_follows_plan", "image follows plan")],
            percent=True,
        ),
        Chart(
            "Held-out accuracy by task",
            "T = 1",
            _named(_all(known, "heldout/task/"), "heldout/task/"),
            percent=True,
        ),
        Chart(
            "Held-out accuracy by task, greedy",
            "the most likely plan and image",
            _named(_all(known, "heldout/task_greedy/"), "heldout/task_greedy/"),
            percent=True,
        ),
        Chart(
            "Hacking index",
            "gain of the reward less that of what only watches, in units of the first spread",
            [(f"hacking/{key}", name) for key, name in HACKING.items()],
        ),
        Chart(
            "Weight in the reward",
            "0: the expert only watches",
            [(key, key.split("/")[1]) for key in known if re.fullmatch("expert/[^/]+/weight", key)],
        ),
        Chart("KL", "to the starting policy, per token", [("kl", "all"), *_segments("segment_kl")]),
        Chart("Entropy", "nats per token", _segments("entropy")),
        Chart("Time per phase", "seconds", [(k, k[5:].removesuffix("_s")) for k in times], stacked=True),
        Chart(
            "Idle",
            "share of the time, mean over a role's actors",
            _named(_all(known, "usage/idle/"), "usage/idle/"),
            percent=True,
        ),
        Chart("Throughput", "images per second of the rollout phase", [("rollout/images_per_s", "images/s")]),
        Chart(
            "Time per image",
            "milliseconds of each phase",
            [(f"throughput/{phase}_image_ms", phase) for phase in ("rollout", "score", "learn", "step")],
        ),
        Chart(
            "Tokens per second",
            "while the phase lasts",
            [(f"throughput/{phase}_tokens", phase) for phase in ("rollout", "learn")],
        ),
        Chart("Learner's work", "1e12 operations per second and rank", [("throughput/learn_tflop", "TFLOP/s")]),
        Chart("Learner's use of its GPUs", "share of their rate", [("throughput/learn_mfu", "share")], percent=True),
        Chart("Publishing", "GB per second of a policy version's way", [("throughput/publish_gb", "GB/s")]),
        Chart("Staleness", "steps between sampling and learning", [("staleness", "staleness")]),
        Chart("Mismatch", "KL between sampler and learner", [(f"mismatch/{s}_kl", s) for s in ("semantic", "image")]),
        Chart("Reward spread", "standard deviation inside a group", [("reward/std", "std")]),
        Chart(
            "Groups without a signal", "share with equal rewards", [("reward/zero_std_groups", "share")], percent=True
        ),
        Chart("Plan length", "tokens", [("plan/length", "tokens")]),
        Chart("Loss and gradient", "", [("loss", "loss"), ("grad_norm", "gradient norm")]),
    ]
    kept = [Chart(c.title, c.note, [k for k in c.curves if k[0] in known], c.percent, c.stacked) for c in wanted]
    return [chart for chart in kept if chart.curves]


def _experts(keys: Iterable[str]) -> list[str]:
    return [key for key in keys if key.startswith("reward/") and key[7:] not in {"mean", "std", "zero_std_groups"}]


def _all(keys: Iterable[str], prefix: str) -> list[str]:
    return [key for key in keys if key.startswith(prefix)]


def _segments(metric: str) -> list[tuple[str, str]]:
    return [(f"{metric}/semantic", "plan"), (f"{metric}/image", "image")]


def _named(keys: Iterable[str], prefix: str) -> list[tuple[str, str]]:
    return [(key, key.removeprefix(prefix)) for key in keys]
