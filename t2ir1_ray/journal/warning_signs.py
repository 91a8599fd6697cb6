"""Known bad signs of reinforcement learning on images, said in words while a run can still be stopped."""

from collections import deque
from collections.abc import Mapping

import numpy as np

from t2ir1_ray.config import Config

WINDOW = 20
"""Steps over which a trend is judged: single steps are noisy."""
ON_POLICY_DRIFT = {"abs_mean": 0.01, "max": 0.05}
"""Mean and largest |log ratio| of sampler and learner that float32 arithmetic explains; bfloat16 is allowed ten times
as much: on an H200 Janus-Pro-7B's sizes gave means of 0.02 (plans) and 0.04 (images), 0.18 at most."""


class WarningSigns:
    """Looks at every step's metrics and remembers the last WINDOW of them. Each sign is told once per WINDOW steps."""

    def __init__(self, config: Config):
        self.rewarded = [name for name, expert in config.experts.items() if expert.role == "reward"]
        exact = config.policy.dtype == config.learner.dtype == "float32"
        self.drift = {figure: bound * (1 if exact else 10) for figure, bound in ON_POLICY_DRIFT.items()}
        self._history: deque[Mapping[str, float]] = deque(maxlen=2 * WINDOW)
        self._told: dict[str, int] = {}

    def look(self, metrics: Mapping[str, float]) -> list[str]:
        """The signs that this step shows, one sentence each. metrics: the keys of metrics.jsonl."""
        self._history.append(metrics)
        found = {**self._now(metrics), **(self._trends() if len(self._history) == 2 * WINDOW else {})}
        step = int(metrics["step"])
        new = {kind: text for kind, text in found.items() if step - self._told.get(kind, -WINDOW) >= WINDOW}
        self._told |= dict.fromkeys(new, step)
        return list(new.values())

    def _now(self, metrics: Mapping[str, float]) -> dict[str, str]:
        found = {}
        if metrics["reward/zero_std_groups"] == 1:
            found["no signal"] = (
                "every group has equal rewards, so nothing is learned: raise rollout.group_size or "
                "rollout.temperature, or look whether an expert always gives the same score"
            )
        for segment in ("semantic", "image"):
            drift = {figure: metrics.get(f"mismatch/{segment}_{figure}", 0.0) for figure in self.drift}
            if metrics["staleness"] == 0 and any(drift[figure] > bound for figure, bound in self.drift.items()):
                found[f"{segment} ratio"] = (
                    f"sampler and learner disagree on {segment} tokens (|log ratio| {drift['abs_mean']:.3g} on "
                    f"average, {drift['max']:.3g} at most, should be 0): compare policy.dtype with learner.dtype, and "
                    "suspect the weight transfer"
                )
        if metrics["plan/truncated"] > 0.2:
            found["truncated"] = (
                f"{metrics['plan/truncated']:.0%} of the plans were cut off: raise policy.max_plan_tokens"
            )
        return found

    def _trends(self) -> dict[str, str]:
        found = {}
        before, after = self._mean("plan/length")
        if after < 0.5 * before:
            found["short plans"] = (
                f"plans have shrunk from {before:.0f} to {after:.0f} tokens: the semantic level is collapsing; "
                "raise learner.beta or lower learner.semantic_weight"
            )
        before, after = self._mean("entropy/image")
        if after < 0.2 * before:
            found["entropy"] = (
                f"image entropy fell from {before:.3g} to {after:.3g} nats: samples of a group become equal; "
                "raise learner.beta or lower learner.learning_rate"
            )
        changes = {name: self._change(f"reward/{name}") for name in self.rewarded}
        rising = [name for name, change in changes.items() if change > 0]
        if len(changes) > 2 and len(rising) == 1 and all(c < 0 for n, c in changes.items() if n != rising[0]):
            found["hacking"] = (
                f"expert {rising[0]} rises while all others fall: the policy may be exploiting it; "
                "look at its best images and lower its weight"
            )
        return found

    def _halves(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        values = np.array([metrics.get(key, np.nan) for metrics in self._history], float)
        return values[:WINDOW], values[WINDOW:]

    def _mean(self, key: str) -> tuple[float, float]:
        before, after = self._halves(key)
        return float(before.mean()), float(after.mean())

    def _change(self, key: str) -> float:
        """Change between the halves in standard errors; 0 where it may be noise (below 2)."""
        before, after = self._halves(key)
        error = np.sqrt((before.var(ddof=1) + after.var(ddof=1)) / WINDOW)
        difference = after.mean() - before.mean()
        return float(difference / error) if error > 0 and abs(difference) > 2 * error else 0.0
