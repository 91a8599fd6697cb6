"""Held-out accuracy: plans and images for prompts that are never trained on, judged by an exact verifier.

The verifier is no part of the reward. Sampling is seeded and independent of training, so that evaluations of two
policies differ by the policies alone.
"""

import time
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from actors.cluster import Cluster
from actors.sampling import Sampling
from t2ir1_ray.config import Config
from t2ir1_ray.errors import UserError
from t2ir1_ray.records.names import part
from t2ir1_ray.records.schema import Rollouts
from t2ir1_ray.shapes.verify import image_follows_plan, verify_image, verify_plan


class HeldOut:
    """The fixed evaluation set of a run."""

    def __init__(self, config: Config, table: pa.Table):
        """`table`: the prompts of `config.eval.prompts`. Raises UserError if they are fewer than `eval.count`."""
        if len(table) < config.eval.count:
            raise UserError(f"eval.count={config.eval.count}: {config.eval.prompts} holds only {len(table)} prompts")
        self.config = config
        self.prompts: pa.Table = table.slice(0, config.eval.count)
        self.texts: list[str] = self.prompts["prompt"].to_pylist()
        self.task_types: list[str] = self.prompts["task_type"].to_pylist()

    def evaluate(self, cluster: Cluster) -> dict[str, float]:
        """Exact accuracy at temperature 1 (with its standard error) and greedy, shares of right plans and of images
        that follow their plan, all of them also per task type, and the seconds that this took."""
        begin = time.perf_counter()
        sampled, greedy = self._judge(cluster, 1.0), self._judge(cluster, 0.0)
        accuracy = sampled["accuracy"].mean()
        return {
            "heldout/accuracy": float(accuracy),
            "heldout/accuracy_stderr": _stderr(sampled["accuracy"]),
            "heldout/accuracy_greedy": float(greedy["accuracy"].mean()),
            "heldout/plan_accuracy": float(sampled["plan"].mean()),
            "heldout/image_follows_plan": float(sampled["follows"].mean()),
            "time/heldout_s": time.perf_counter() - begin,
            **by_task(self.task_types, sampled, greedy["accuracy"]),
        }

    def _judge(self, cluster: Cluster, temperature: float) -> dict[str, np.ndarray]:
        sampling = Sampling(
            1, temperature, self.config.rollout.guidance, self.config.eval.seed, f"heldout T={temperature:g}"
        )
        verdicts = {name: np.zeros(len(self.texts), bool) for name in ("accuracy", "plan", "follows")}
        for row, ref in cluster.sample(self.prompts, sampling, self.config.rollout.max_sequences):
            sample = Rollouts.from_arrow(cluster.wait(ref, "rollout", f"held-out prompt {row}"))
            prompt, plan, pixels = self.texts[row], sample.plan[0], sample.pixels[0]
            verdicts["accuracy"][row] = verify_image(prompt, pixels)
            verdicts["plan"][row] = verify_plan(prompt, plan)
            verdicts["follows"][row] = image_follows_plan(plan, pixels)
        return verdicts


def by_task(task_types: Sequence[str], sampled: Mapping[str, np.ndarray], greedy: np.ndarray) -> dict[str, float]:
    """`heldout/task/<type>`, accuracy at temperature 1, and `heldout/task_<figure>/<type>`: its standard error
    (`stderr`), `greedy` accuracy, and at temperature 1 the shares of right plans (`plan`) and of images that follow
    theirs (`follows`).

    sampled: `accuracy`, `plan`, `follows`, each (N,) bool; greedy: (N,) bool.
    """
    tasks, found = np.array(task_types), {}
    for task in sorted(set(task_types)):
        rows, name = tasks == task, part(task)
        found[f"heldout/task/{name}"] = float(sampled["accuracy"][rows].mean())
        found[f"heldout/task_stderr/{name}"] = _stderr(sampled["accuracy"][rows])
        found[f"heldout/task_greedy/{name}"] = float(greedy[rows].mean())
        found |= {f"heldout/task_{kind}/{name}": float(sampled[kind][rows].mean()) for kind in ("plan", "follows")}
    return found


def _stderr(right: np.ndarray) -> float:
    share = right.mean()
    return float(np.sqrt(share * (1 - share) / len(right)))
