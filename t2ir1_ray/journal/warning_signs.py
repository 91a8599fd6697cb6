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
GROWN, EXACT = 10, 1e-5
"""How many times as large as in the first step the mean |log ratio| may become, and from where on that counts. In a run
of the shapes world it stays below 2e-7; a policy that is one update of the warm-up older gives 4e-4 (images) and 1e-3
(plans), which ON_POLICY_DRIFT would let pass."""
ENOUGH = 32
"""Scored images that tell a blind expert from one whose few images were equally good; plans that tell a policy with
nothing else to say from one whose few plans came out alike."""
FOLLOWS = 0.5
"""What a probe of an expert finds at least: 1 but for rounding."""
PARTED, CERTAIN = 0.2, 3
"""Hacking index from which on reward and monitors part, and its least number of standard errors. In 120 steps of the
shapes world the detector or the VQA model alone as reward, which are hacked, come to 0.2 to 0.5; the other two experts
alone to 0.05 and 0.15, and the recipe to -0.1."""


class WarningSigns:
    """Looks at every step's metrics and remembers the last WINDOW of them. Each sign is told once per WINDOW steps."""

    def __init__(self, config: Config):
        self.experts = list(config.experts)
        self.rewarded = [name for name, expert in config.experts.items() if expert.role == "reward"]
        self.has_reference = config.learner.beta > 0
        exact = config.policy.dtype == config.learner.dtype == "float32"
        self.drift = {figure: bound * (1 if exact else 10) for figure, bound in ON_POLICY_DRIFT.items()}
        self._history: deque[Mapping[str, float]] = deque(maxlen=2 * WINDOW)
        self._told: dict[str, int] = {}
        self._first_drift: dict[str, float] = {}  # segment -> mean |log ratio| of the first on-policy step
        self._blind: dict[str, int] = {}  # expert -> images in its latest steps in which it told no two apart
        self._alike = 0  # plans of the latest steps in which no prompt had two different ones
        self._together = 0  # the last step in which reward and monitors had not parted
        self._updated = False  # whether the step before has changed the policy

    def look(self, metrics: Mapping[str, float]) -> list[str]:
        """The signs that this step shows, one sentence each. metrics: the keys of metrics.jsonl."""
        self._history.append(metrics)
        found = {**self._now(metrics), **self._learning(metrics), **self._experts(metrics), **self._parting(metrics)}
        found |= self._trends() if len(self._history) == 2 * WINDOW else {}
        step = int(metrics["step"])
        new = {kind: text for kind, text in found.items() if step - self._told.get(kind, -WINDOW) >= WINDOW}
        self._told |= dict.fromkeys(new, step)
        return list(new.values())

    def _now(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """Of the samples."""
        found = {}
        if metrics.get("reward/zero_std_groups") == 1:
            found["no signal"] = (
                "every group has equal rewards, so nothing is learned: raise rollout.group_size or "
                "rollout.temperature, or look whether an expert always gives the same score"
            )
        for segment in ("semantic", "image"):
            drift = {figure: metrics.get(f"mismatch/{segment}_{figure}", 0.0) for figure in self.drift}
            if metrics.get("staleness") != 0 or f"mismatch/{segment}_abs_mean" not in metrics:
                continue
            first = self._first_drift.setdefault(segment, drift["abs_mean"])
            if drift["abs_mean"] > max(GROWN * first, EXACT):  # a dtype would have shown in the first step
                found[f"{segment} ratio"] = (
                    f"sampler and learner disagree on {segment} tokens more than in the first step (|log ratio| "
                    f"{drift['abs_mean']:.3g} on average, then {first:.3g}): samples seem to come from an older policy "
                    "than they say; suspect the weight transfer and what rollout actors cache"
                )
            elif any(drift[figure] > bound for figure, bound in self.drift.items()):
                found[f"{segment} ratio"] = (
                    f"sampler and learner disagree on {segment} tokens (|log ratio| {drift['abs_mean']:.3g} on "
                    f"average, {drift['max']:.3g} at most, should be 0): compare policy.dtype with learner.dtype, and "
                    "suspect the weight transfer"
                )
        if metrics.get("plan/empty") == 1:
            found["empty"] = (
                "every plan is empty: nothing is planned; look at the samples, at policy.plan_template, and at what "
                "plans of the starting policy look like"
            )
        one = metrics.get("plan/distinct") == 1 and metrics.get("plan/written", 0) > 1
        alike = one or metrics.get("plan/alike_groups") == 1
        self._alike = self._alike + int(metrics.get("plan/written", 0)) if alike else 0
        if self._alike >= ENOUGH and "empty" not in found:
            found["alike"] = (
                f"{'all plans of the step are one text' if one else 'no prompt has two different plans'}: there is "
                "nothing to learn about plans; raise rollout.temperature or learner.beta, or go back to a checkpoint"
            )
        if metrics.get("plan/truncated", 0.0) > 0.2:
            found["truncated"] = (
                f"{metrics['plan/truncated']:.0%} of the plans were cut off: raise policy.max_plan_tokens"
            )
        return found

    def _learning(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """Of the update."""
        found = {}
        if metrics.get("grad_norm") == 0 and metrics.get("reward/zero_std_groups") != 1:
            found["no gradient"] = (
                "the gradient is exactly 0, so nothing is learned: look at advantages in the samples, "
                "learner.semantic_weight and learner.image_weight"
            )
        moved = metrics.get("grad_norm", 0.0) > 0 and metrics.get("lr", 0.0) > 0
        if moved and metrics.get("publish/changed") == 0:
            found["unchanged"] = (
                "the update has left every published weight as it was, so samples come from the same policy again: "
                "raise learner.learning_rate, or use learner.dtype=float32"
            )
        if self._updated and self.has_reference and metrics.get("kl") == 0:
            found["no kl"] = (
                "KL is exactly 0 behind an update: the learner trains on another policy than it compares with the "
                "reference, or the update has changed nothing"
            )
        self._updated = moved
        return found

    def _experts(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """Of experts that do not look at the images."""
        found = {}
        for name in self.experts:
            if metrics.get(f"expert/{name}/zero_spread") == 1:
                self._blind[name] = self._blind.get(name, 0) + int(metrics.get(f"expert/{name}/scored", 0))
            elif f"expert/{name}/zero_spread" in metrics:
                self._blind[name] = 0
            if self._blind.get(name, 0) >= ENOUGH:
                found[f"{name} blind"] = (
                    f"expert {name} gave {self._blind[name]} images, all that it has scored lately, the score of the "
                    "other images of their prompts: it ranks nothing; look whether it sees the images"
                )
            elif metrics.get(f"expert/{name}/follows", 1.0) < FOLLOWS:
                found[f"{name} blind"] = (
                    f"scores of expert {name} do not follow the images: two of a group changed places, and their "
                    f"scores did not ({metrics[f'expert/{name}/follows']:.2f} of the way); look for a cache or a wrong "
                    "order in it"
                )
        return found

    def _parting(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """Of reward and monitors: see `hacking`."""
        index = metrics.get("hacking/index")
        if index is None:
            return {}
        trained, watched = metrics["hacking/trained"], metrics["hacking/watched"]
        if index <= PARTED / 2:
            self._together = int(metrics["step"])
        certain = index > max(PARTED, CERTAIN * metrics["hacking/stderr"])
        if not certain or trained <= 0 or watched > trained / 2:
            return {}
        return {
            "parted": (
                f"the trained reward has gained {trained:.2f} of its first spread and what only watches {watched:.2f}: "
                f"they part since step {self._together + 1}, and the policy may be exploiting the reward; look at the "
                "best images since then, and give the monitors a weight or go back to a checkpoint"
            )
        }

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
