"""What a configuration must fulfil beyond its types: ranges, choices, and agreements between fields."""

import re
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from typing import Any

from t2ir1_ray.config.sections import Config
from t2ir1_ray.errors import UserError

SCHEDULES = ("constant", "linear", "cosine")
MAX_TEXT = 10_000
MAX_NUMBER = 1 << 24
METRICS = ("mean", "std", "zero_std_groups")
"""Names that `reward/<name>` has already: no expert can have them."""


def check(config: Config) -> None:
    """Ranges and agreements between fields that types cannot express."""
    learner, rollout, data = config.learner, config.rollout, config.data
    for key, value in leaves(asdict(config)):
        _check_value(key, value)
    _require(len(config.experts) <= 100, "experts", len(config.experts), "at most 100")
    for name, expert in config.experts.items():
        own = leaves({"options": expert.options, "runtime_env": expert.runtime_env}, f"experts.{name}")
        for key, value in own:
            _require(not is_dataclass(value), key, "${...}", "must refer to a value, not to a section")
        fits = re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) and name not in METRICS
        _require(bool(fits), "experts", one_line(name), f"must be letters, digits, - and _, not {' or '.join(METRICS)}")
    positive = {
        "policy.max_plan_tokens": config.policy.max_plan_tokens,
        "policy.max_prompt_tokens": config.policy.max_prompt_tokens,
        "data.prompts_per_step": data.prompts_per_step,
        "rollout.actors": rollout.actors,
        "rollout.prompts_per_call": rollout.prompts_per_call,
        "rollout.images_per_plan": rollout.images_per_plan,
        "rollout.temperature": rollout.temperature,
        "rollout.max_sequences": rollout.max_sequences,
        "learner.ranks": learner.ranks,
        "learner.learning_rate": learner.learning_rate,
        "learner.tokens_per_batch": learner.tokens_per_batch,
        "reference.replicas": config.reference.replicas,
        "reference.tokens_per_batch": config.reference.tokens_per_batch,
        "train.steps": config.train.steps,
        "eval.count": config.eval.count,
        **{f"experts.{name}.replicas": expert.replicas for name, expert in config.experts.items()},
        **{f"experts.{name}.batch_size": expert.batch_size for name, expert in config.experts.items()},
    }
    for key, value in positive.items():
        _require(value > 0, key, value, "must be greater than 0")
    choices = {
        "policy.dtype": (config.policy.dtype, ("float32", "bfloat16")),
        "learner.dtype": (learner.dtype, ("float32", "bfloat16")),
        "learner.zero_stage": (learner.zero_stage, (1, 2, 3)),
        "learner.kl": (learner.kl, ("k1", "k2", "k3")),
        "learner.loss_average": (learner.loss_average, ("group", "token", "sequence")),
        "learner.zero_variance": (learner.zero_variance, ("keep", "filter", "resample")),
        "learner.correction": (learner.correction, ("truncate", "clip")),
        "train.mode": (config.train.mode, ("sync", "async")),
        "train.on_warning": (config.train.on_warning, ("warn", "stop")),
        "learner.advantages": (learner.advantages, ("shared", "nested")),
        "learner.image_logprobs": (learner.image_logprobs, ("conditional", "guided")),
        "learner.token_credit": (learner.token_credit, ("none", "entropy", "guidance", "similarity", "critical")),
        "learner.lr_schedule": (learner.lr_schedule, SCHEDULES),
        "learner.beta_schedule": (learner.beta_schedule, SCHEDULES),
        "data.too_long": (data.too_long, ("refuse", "skip")),
        "reward.combine": (config.reward.combine, ("sum", "gdpo")),
        "rollout.weight_transfer": (rollout.weight_transfer, ("object_store", "nccl")),
        "eval.verifier": (config.eval.verifier, (None, "shapes")),
        **{f"experts.{n}.role": (e.role, ("reward", "monitor")) for n, e in config.experts.items()},
    }
    for key, (value, allowed) in choices.items():
        _require(value in allowed, key, value, f"must be one of {', '.join(map(str, allowed))}")
    size = rollout.group_size
    _require(size >= 2, "rollout.group_size", size, "advantages compare samples of one prompt: at least 2")
    least = config.reward.min_group_size
    _require(
        least <= size, "reward.min_group_size", least, f"must be at most rollout.group_size={size}: none is larger"
    )
    plans, left = divmod(size, rollout.images_per_plan)
    _require(left == 0, "rollout.images_per_plan", rollout.images_per_plan, f"must divide rollout.group_size={size}")
    _require(
        learner.advantages == "shared" or plans >= 2,
        "rollout.images_per_plan",
        rollout.images_per_plan,
        "nested advantages compare plans: at least 2 per prompt",
    )
    _require(
        config.train.mode == "sync" or rollout.weight_transfer == "object_store",
        "rollout.weight_transfer",
        rollout.weight_transfer,
        "NCCL needs learner and rollout actors at once: use object_store with train.mode=async",
    )
    _require(
        learner.token_credit != "guidance" or (learner.image_logprobs == "guided" and rollout.guidance > 1),
        "learner.token_credit",
        learner.token_credit,
        "compares images with and without the prompt: set learner.image_logprobs=guided and rollout.guidance above 1",
    )
    band = learner.entropy_band
    around = band is None or 0 < band[0] < 1 < band[1]
    _require(around, "learner.entropy_band", band, "must lie around 1, the entropy at the start, such as [0.8,1.2]")
    _require(learner.num_gpus in (0, 1), "learner.num_gpus", learner.num_gpus, "a rank has one GPU, or 0: a CPU")
    _require(max(learner.betas) < 1, "learner.betas", learner.betas, "must be less than 1")
    words = all(isinstance(target, str) for target in learner.lora_targets)
    _require(words, "learner.lora_targets", learner.lora_targets, "must be a list of names")
    _require(config.train.steps < 1_000_000, "train.steps", config.train.steps, "must be less than 1000000")
    processes = sum(e.replicas for e in (config.reference, *config.experts.values())) + rollout.actors + learner.ranks
    _require(processes <= 10_000, "rollout.actors", rollout.actors, f"{processes} processes in all, at most 10000")
    _require(rollout.guidance >= 1, "rollout.guidance", rollout.guidance, "must be at least 1 (1: no guidance)")
    _require(
        data.prompts_per_step % learner.ranks == 0,
        "data.prompts_per_step",
        data.prompts_per_step,
        f"must be divisible by learner.ranks={learner.ranks}",
    )
    rewarded = [name for name, expert in config.experts.items() if expert.role == "reward"]
    _require(bool(rewarded), "experts", list(config.experts), "at least one expert must have the role reward")
    rotating = sum(config.experts[name].weight > 0 for name in rewarded)
    _require(
        config.reward.rotate_monitor == 0 or rotating >= 3,
        "reward.rotate_monitor",
        config.reward.rotate_monitor,
        f"needs 3 experts of role reward and positive weight, there are {rotating}: add some, or set it to 0",
    )
    _require(
        "{prompt}" in config.policy.plan_template, "policy.plan_template", config.policy.plan_template, "lacks {prompt}"
    )
    asked = config.policy.question_template
    once = all(asked.count(field) == 1 for field in ("{image}", "{question}"))
    _require(once, "policy.question_template", asked, "needs {image} and {question}, each once")
    folder = config.cluster.folder
    absolute = folder is None or folder.startswith(("/", "~"))
    _require(absolute, "cluster.folder", folder, "must be absolute: a job has another working directory")
    if config.eval.every:
        _require(config.eval.prompts is not None, "eval.prompts", None, "name a prompt file or set eval.every=0")
        _require(config.eval.verifier is not None, "eval.verifier", None, "name a verifier or set eval.every=0")


def _check_value(key: str, value: Any) -> None:
    """What holds for every field. An expert's own options may be negative, and its weight (a penalty)."""
    own = re.match(r"experts\.[^.]*\.(options|runtime_env|weight)\b", key) is not None
    if isinstance(value, str):
        lines = own or key.startswith(("policy.plan_", "policy.question_"))
        _require(len(value) <= MAX_TEXT, key, one_line(value), f"longer than {MAX_TEXT} characters")
        _require("\0" not in value and (lines or value.isprintable()), key, one_line(value), "holds control characters")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        most = 2**63 - 1 if own or key.endswith(".seed") else MAX_NUMBER
        _require(abs(value) <= most, key, value, f"must be a finite number of at most {most}")
        _require(value >= 0 or own, key, value, "must not be negative")


def _require(ok: bool, key: str, value: object, mend: str) -> None:
    if not ok:
        raise UserError(f"{key}={one_line(value)}: {mend}")


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of everything that is no container, or an empty one."""
    if isinstance(node, dict | list | tuple) and node:
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from leaves(child, f"{path}.{key}" if path else str(key))
    else:
        yield path, node


def one_line(what: object) -> str:
    """The first line of a text, printable and not too long."""
    line = (str(what).strip().splitlines() or [""])[0]
    return "".join(character if character.isprintable() else " " for character in line[:300])
