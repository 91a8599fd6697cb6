"""Run folders as the journal leaves them, of random images and hostile texts: for the tests of the report."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from t2ir1_ray import config as configuration
from t2ir1_ray.records.schema import Rollouts, dump_table

HOSTILE = "</script><script>document.title='owned'</script><!-- <script> <img src=x onerror='document.title=1'>"
PROMPTS = ["a red square", "two blue circles", HOSTILE, "a $title $data ${script} cross", "a 緑 triangle 🟢 \u2028"]
TASKS = ["color", "numeracy", "complex", "texture", "shape"]


def samples(step: int, prompts: list[int], group: int, edge: int, seed: int) -> pa.Table:
    """Groups of random images: the first of a step has equal rewards, the second lost a sample."""
    rng = np.random.default_rng([seed, step])
    n = len(prompts) * group
    which = np.repeat(prompts, group)
    pixels = np.repeat(rng.integers(0, 256, (n, 4, 4, 3), np.uint8), edge // 4, axis=1).repeat(edge // 4, axis=2)
    noise = rng.integers(-9, 9, pixels.shape)  # as hard to pack as decoded images
    pixels = np.clip(pixels + noise, 0, 255).astype(np.uint8)
    rewards = (rng.random(n) + step / 100).astype(np.float32)
    rewards[:group] = 0.5
    rewards[group] = np.nan
    advantages = rewards - np.repeat(np.nanmean(rewards.reshape(-1, group), axis=1), group)
    ids = [np.arange(3, dtype=np.int32)] * n
    rollouts = Rollouts(
        prompt_id=[f"p{i}" for i in which],
        sample=np.tile(np.arange(group, dtype=np.int32), len(prompts)),
        policy_version=np.full(n, step - 1, np.int32),
        seed=np.arange(n),
        semantic_prompt_ids=ids,
        semantic_ids=ids,
        semantic_logprobs=[np.zeros(3, np.float32)] * n,
        plan_truncated=np.zeros(n, bool),
        plan=[f"plan {i} of step {step}: {PROMPTS[p % len(PROMPTS)]}" for i, p in enumerate(which)],
        image_prompt_ids=ids,
        image_ids=np.zeros((n, 4), np.int32),
        image_logprobs=np.zeros((n, 4), np.float32),
        pixels=pixels,
    )
    texts = [PROMPTS[p] if p < len(PROMPTS) else f"prompt {p}" for p in which]
    tasks = [TASKS[p % len(TASKS)] for p in which]
    scores = {"hps": rewards / 2, "<b>orm</b>": rewards / 2}
    return dump_table(
        rollouts,
        prompts=texts,
        task_types=tasks,
        images=[png(image) for image in pixels],
        scores=scores,
        rewards=rewards,
        advantages=advantages,
    )


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_run(
    folder: Path, steps: int = 6, prompts: int = 3, group: int = 4, edge: int = 24, seed: int = 0, pool: int = 6
) -> Path:
    """A finished run as the journal leaves it; step s draws the next `prompts` of `pool` prompts."""
    (folder / "rollouts").mkdir(parents=True)
    config = configuration.load("shapes", [f"train.steps={steps}", f"train.seed={seed}"])
    configuration.save(config, folder / "config.yaml")
    lines = [{"step": 0, "policy_version": 0, "heldout/accuracy": 0.25, "heldout/accuracy_greedy": 0.5}]
    for step in range(1, steps + 1):
        drawn = [((step - 1) * prompts + i) % pool for i in range(prompts)]
        pq.write_table(samples(step, drawn, group, edge, seed), folder / "rollouts" / f"step_{step:06d}.parquet")
        metrics = {"step": step, "loss": None if step == 2 else -0.1, "kl": step / 100, "segment_kl/semantic": 0.1}
        metrics |= {"segment_kl/image": 0.2, "entropy/semantic": 1.0, "entropy/image": 2.0, "reward/mean": step / steps}
        metrics |= {"reward/hps": 0.5, "reward/<b>orm</b>": 0.4, "reward/std": 0.1, "reward/zero_std_groups": 0.3}
        metrics |= {f"time/{phase}_s": 0.5 for phase in ("rollout", "score", "learn", "publish")}
        metrics |= {"hacking/index": 0.1, "hacking/trained": 0.3, "hacking/watched": 0.2, "expert/hps/weight": 0.0}
        metrics |= {"time/step_s": 2.0, "rollout/images_per_s": 90.0, "staleness": 0.0}
        lines.append(metrics)
    lines[-1] |= {"heldout/accuracy": 0.5, "heldout/accuracy_stderr": 0.02, "heldout/accuracy_greedy": 0.75}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
