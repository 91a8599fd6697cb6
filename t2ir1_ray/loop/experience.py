"""From scored groups to what the learner trains on: rewards, dropped samples, advantages, token weights, metrics."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from actors.cluster import ScoredGroup
from learner.bicot_grpo import nested_advantages, ragged_advantages, token_weights
from learner.token_credit import COMPARING, group_distances
from rewards.base import ExpertScores
from rewards.ensemble import combine, insight
from t2ir1_ray.config import Config
from t2ir1_ray.errors import RunError
from t2ir1_ray.loop.rotation import reward_weights
from t2ir1_ray.records.names import part
from t2ir1_ray.records.schema import LearnerBatch, ReferenceLogprobs, Rollouts


@dataclass(frozen=True)
class Experience:
    """One step's samples (N, all of them) and the part of them that is trained on."""

    rollouts: Rollouts  # N, without pixels
    images: list[np.ndarray]  # N of (H, W, 3) uint8, where Ray holds them
    prompts: list[str]  # N
    task_types: list[str]  # N
    scores: dict[str, ExpertScores]  # expert -> N
    rewards: np.ndarray  # (N,) NaN where dropped
    semantic_advantages: np.ndarray  # (N,) of the plans, NaN where dropped
    advantages: np.ndarray  # (N,) of the images, NaN where dropped
    batch: LearnerBatch
    metrics: dict[str, float | None]

    @property
    def tokens(self) -> int:
        """Of all plans and images, as they were sampled."""
        return sum(map(len, self.rollouts.semantic_ids)) + self.rollouts.image_ids.size


def assemble(
    groups: Sequence[ScoredGroup], config: Config, step: int, codebook: np.ndarray | None = None
) -> Experience:
    """Combine the experts' scores, drop what failed, compare samples inside their groups.

    step: it says which experts count, see `reward_weights`. codebook: of `compared_codebook`.
    Raises RunError if no group is left to train on.
    """
    rollouts = Rollouts.concat([group.rollouts.without_pixels() for group in groups])
    images = [image for group in groups for image in group.rollouts.pixels]
    sizes = [len(group.rollouts) for group in groups]
    index = np.repeat(np.arange(len(groups)), sizes)
    task_types = [str(groups[i].prompt["task_type"]) for i in index]
    scores = {name: _concat([group.scores[name] for group in groups]) for name in config.experts}
    weights = reward_weights(config, step)
    rewards, usable = combine(scores, weights, config.reward.combine, index)
    counts = np.bincount(index, weights=usable, minlength=len(groups))
    keep = usable & (counts >= config.reward.min_group_size)[index]
    spread = np.zeros(len(groups))
    for g in np.unique(index[keep]):
        spread[g] = np.ptp(rewards[keep & (index == g)])
    kept_groups = np.unique(index[keep])
    zero_variance = float(np.mean(spread[kept_groups] == 0.0)) if len(kept_groups) else 0.0
    if config.learner.zero_variance != "keep":
        keep &= (spread > 0.0)[index]
    if not keep.any():
        raise RunError("no group is left to train on: every sample failed, or every group has equal rewards")

    plan = index * config.rollout.group_size + rollouts.sample // config.rollout.images_per_plan
    semantic_advantages, advantages = np.full((2, len(rollouts)), np.nan, np.float32)
    if config.learner.advantages == "nested":
        credit = nested_advantages(rewards[keep], index[keep], plan[keep], std=config.learner.advantage_std)
    else:
        credit = [ragged_advantages(rewards[keep], index[keep], std=config.learner.advantage_std)] * 2
    semantic_advantages[keep], advantages[keep] = credit
    batch = _learner_batch(groups, rollouts, index, semantic_advantages, advantages, config, codebook)
    batch = share_plans(batch, plan[keep]) if config.rollout.images_per_plan > 1 else batch
    rewards = np.where(keep, rewards, np.nan).astype(np.float32)
    metrics = {
        "reward/mean": float(rewards[keep].mean()),
        "reward/std": _spread(rewards[keep], index[keep]),
        "reward/zero_std_groups": zero_variance,
        "samples/dropped": float((~keep).sum()),
        "groups/dropped": float(len(groups) - len(np.unique(index[keep]))),
        "plan/length": float(np.mean([len(ids) for ids in rollouts.semantic_ids])),
        "plan/truncated": float(rollouts.plan_truncated.mean()),
        **plan_variety(rollouts.plan, index, plan),
        **{f"reward/{name}": _mean(expert) for name, expert in scores.items()},
        **_insight(scores, index, task_types),
    }
    if config.reward.rotate_monitor:
        metrics |= {f"expert/{name}/weight": weights.get(name, 0.0) for name in config.experts}
    prompts = [str(groups[i].prompt["prompt"]) for i in index]
    return Experience(
        rollouts, images, prompts, task_types, scores, rewards, semantic_advantages, advantages, batch, metrics
    )


def compared_codebook(config: Config) -> np.ndarray | None:
    """(V, D) vectors of the image tokens, if token credit compares images inside their group."""
    if config.learner.token_credit not in COMPARING:
        return None
    from t2ir1_ray.janus.policy import image_codebook

    return image_codebook(config.policy.path)


def has_signal(group: ScoredGroup, config: Config, step: int) -> bool:
    """Whether the group's usable samples have different rewards in this step."""
    weights, alone = reward_weights(config, step), np.zeros(len(group.rollouts), int)
    rewards, usable = combine(group.scores, weights, config.reward.combine, alone)
    return int(usable.sum()) >= config.reward.min_group_size and np.ptp(rewards[usable]) > 0


def plan_variety(plans: Sequence[str], group: np.ndarray, plan: np.ndarray) -> dict[str, float | None]:
    """`plan/written`, the number of plans; `plan/empty`, the share of those without a word; `plan/distinct`, the number
    of different texts; `plan/alike_groups`, the share of groups whose plans are all the same (None: they have but one).

    plans: (N,) texts; group, plan: (N,) numbers of the samples' prompts and plans, plans numbered across groups.
    """
    _, first = np.unique(plan, return_index=True)
    texts, groups = [plans[row].strip() for row in first], group[first]
    written = np.bincount(groups)
    distinct = np.bincount([number for number, _ in set(zip(groups.tolist(), texts, strict=True))])
    several = written > 1
    return {
        "plan/written": len(texts),
        "plan/empty": float(np.mean([not text for text in texts])),
        "plan/distinct": len(set(texts)),
        "plan/alike_groups": float((distinct[several] == 1).mean()) if several.any() else None,
    }


def share_plans(batch: LearnerBatch, plan: np.ndarray) -> LearnerBatch:
    """Train on a plan once where samples share it: with the sum of their token weights and their mean advantage.

    The gradient is that of the repeated plan, for the loss is linear in the advantage. plan: (N,) numbers.
    """
    _, first, index, count = np.unique(plan, return_index=True, return_inverse=True, return_counts=True)
    advantage = (np.bincount(index, weights=batch.semantic_advantage) / count)[index]
    owners = set(first.tolist())

    def once(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [array if row in owners else array[:0] for row, array in enumerate(arrays)]

    return replace(
        batch,
        semantic_ids=once(batch.semantic_ids),
        semantic_logprobs=once(batch.semantic_logprobs),
        semantic_ref_logprobs=once(batch.semantic_ref_logprobs),
        semantic_advantage=advantage.astype(np.float32),
        semantic_token_weight=(batch.semantic_token_weight * count[index]).astype(np.float32),
    )


def _learner_batch(
    groups: Sequence[ScoredGroup],
    rollouts: Rollouts,
    index: np.ndarray,
    semantic_advantages: np.ndarray,
    advantages: np.ndarray,
    config: Config,
    codebook: np.ndarray | None,
) -> LearnerBatch:
    """The samples that have an advantage."""
    rows = np.flatnonzero(np.isfinite(advantages))
    kept = rollouts.take(rows)
    if config.learner.beta > 0:
        reference = ReferenceLogprobs.concat([group.reference for group in groups if group.reference]).take(rows)
    else:  # the KL term has no weight: any finite values do, the sampling log-probs give a KL of zero
        reference = ReferenceLogprobs(kept.semantic_logprobs, kept.image_logprobs)
    lengths = np.array([len(ids) for ids in kept.semantic_ids])
    semantic_weight, image_weight = token_weights(
        lengths,
        np.full(len(rows), kept.image_ids.shape[1]),
        index[rows],
        config.learner.loss_average,
        config.learner.semantic_weight,
        config.learner.image_weight,
    )
    distances = np.empty((len(rows), 0), np.float32)
    if config.learner.token_credit in COMPARING:
        opposed = advantages[rows] if config.learner.token_credit == "similarity" else None
        distances = group_distances(kept.image_ids, index[rows], codebook, opposed)
    return LearnerBatch(
        prompt_id=kept.prompt_id,
        sample=kept.sample,
        semantic_prompt_ids=kept.semantic_prompt_ids,
        semantic_ids=kept.semantic_ids,
        semantic_logprobs=kept.semantic_logprobs,
        semantic_ref_logprobs=reference.semantic,
        image_prompt_ids=kept.image_prompt_ids,
        image_ids=kept.image_ids,
        image_logprobs=kept.image_logprobs,
        image_ref_logprobs=reference.image,
        semantic_advantage=semantic_advantages[rows],
        image_advantage=advantages[rows],
        semantic_token_weight=semantic_weight,
        image_token_weight=image_weight,
        image_distance=list(distances),
    )


def _concat(parts: Sequence[ExpertScores]) -> ExpertScores:
    return ExpertScores(
        np.concatenate([part.scores for part in parts]),
        [status for part in parts for status in part.status],
        [error for part in parts for error in part.errors],
    )


def _insight(scores: dict[str, ExpertScores], index: np.ndarray, task_types: Sequence[str]) -> dict[str, float]:
    """`insight` under names of metrics: task types may hold anything, and pairs of experts are joined by a dot."""
    found = insight(scores, index, [part(task) for task in task_types])
    return {f"expert/{key.replace('~', '.')}": value for key, value in found.items()}


def _spread(rewards: np.ndarray, group: np.ndarray) -> float | None:
    """Mean standard deviation inside groups; None where every group has lost all samples but one."""
    groups = [rewards[group == number] for number in np.unique(group)]
    spreads = [values.std(ddof=1) for values in groups if len(values) > 1]
    return float(np.mean(spreads)) if spreads else None


def _mean(scores: ExpertScores) -> float:
    """Mean over the samples that the expert scored; 0 where it applied to none (as in the official sum)."""
    return float(np.nanmean(scores.scores)) if "ok" in scores.status else 0.0
