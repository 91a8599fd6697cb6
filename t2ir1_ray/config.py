"""Typed configuration: dataclasses, one YAML file, dotted `key=value` overrides, merged and type-checked by OmegaConf.

Every field's comment says what it means and in which unit. `load` is the only door: what it returns is complete and
valid, so that nothing behind it checks again.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError

from t2ir1_ray.errors import UserError


@dataclass
class PolicyConfig:
    path: str = MISSING  # checkpoint: a folder or a hub id (Janus or Janus-Pro, either layout)
    dtype: str = "bfloat16"  # of rollout and reference: float32 or bfloat16
    plan_system: str = ""  # system text in front of the planning conversation
    plan_template: str = "{prompt}"  # what the policy is asked when it plans; {prompt} is replaced
    max_plan_tokens: int = 512  # a plan that is not over by then is truncated (and counted)
    max_prompt_tokens: int = 256  # planning prompts longer than this are refused when the prompt file is read


@dataclass
class DataConfig:
    prompts: str = MISSING  # training prompts: .jsonl, .json (one object per line) or .parquet
    prompts_per_step: int = 16  # B: distinct prompts of one optimisation step


@dataclass
class RolloutConfig:
    actors: int = 1  # R: engines, each with its own copy of the policy
    num_gpus: float = 1.0  # GPUs of one rollout actor
    num_cpus: float = 1.0
    group_size: int = 8  # G: samples (plan, image) per prompt
    images_per_plan: int = 1  # K: images drawn after each plan; G / K plans are written
    prompts_per_call: int = 4  # unit of work handed to an actor: results do not depend on the number of actors
    temperature: float = 1.0  # of the plan's and the image's tokens
    guidance: float = 5.0  # w in uncond + w (cond - uncond); 1 means no guidance and one row per image
    max_sequences: int = 64  # sequences that the text engine decodes at once
    kv_cache_gb: float = 4.0  # the text engine's KV cache, GiB; the image decoder's lies beside it
    weight_transfer: str = "object_store"  # object_store, or nccl (GPU): how new versions reach the actors


@dataclass
class ExpertConfig:
    kind: str = MISSING  # hps, git, blip, grounding_dino, yolo_world, orm, or your own package.module.Class
    path: str = MISSING  # checkpoint: folder, file or hub id
    weight: float = 1.0  # in the sum of rewards
    role: str = "reward"  # reward: trained on; monitor: scored and logged only, the canary against reward hacking
    num_gpus: float = 1.0  # a fraction shares a GPU with other experts
    num_cpus: float = 1.0
    replicas: int = 1
    batch_size: int = 16  # images per forward pass
    dtype: str = "float32"
    runtime_env: dict[str, Any] = field(default_factory=dict)  # Ray runtime environment, e.g. {pip: [...]}
    options: dict[str, Any] = field(default_factory=dict)  # the expert's own settings


@dataclass
class RewardConfig:
    combine: str = "sum"  # sum (official) or gdpo (each expert normalised inside its group first)
    min_group_size: int = 2  # a group with fewer usable samples is dropped and counted
    retries: int = 2  # times a failed expert call is repeated, on a restarted actor if need be


@dataclass
class ReferenceConfig:
    num_gpus: float = 1.0
    num_cpus: float = 1.0
    tokens_per_batch: int = 8192


@dataclass
class LearnerConfig:
    ranks: int = 1  # L: DeepSpeed data-parallel ranks
    num_gpus: float = 1.0  # per rank: 1, or 0 on CPUs
    num_cpus: float = 1.0
    zero_stage: int = 3  # 1, 2 or 3
    dtype: str = "bfloat16"  # of parameters and activations; the optimizer keeps float32
    learning_rate: float = 1e-6
    lr_schedule: str = "constant"  # constant, linear or cosine (towards 0 at the end of the run)
    warmup_steps: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    beta: float = 0.01  # weight of the KL term; 0: no reference actor is started
    beta_schedule: str = "constant"  # constant, linear or cosine
    kl: str = "k3"  # k1, k2 or k3 estimator
    clip_low: float = 0.2  # ratio is clipped to [1 - clip_low, 1 + clip_high] when it can differ from 1
    clip_high: float = 0.2
    correction: str = "truncate"  # off-policy (async): truncate the importance ratio, or clip it as PPO does
    semantic_max_ratio: float = 2.0  # where the ratio of plan tokens is truncated
    image_max_ratio: float = 2.0  # where that of image tokens is
    advantage_std: bool = True  # divide by the group's standard deviation; False: Dr.GRPO
    advantages: str = (
        "shared"  # shared (official), or nested: plans and images are credited apart (images_per_plan > 1)
    )
    image_logprobs: str = (
        "conditional"  # conditional (official), or guided: of what was really sampled, two rows per image
    )
    loss_average: str = "group"  # group (official), token or sequence
    semantic_weight: float = 1.0  # multiplies the loss of plan tokens
    image_weight: float = 1.0  # multiplies the loss of image tokens
    zero_variance: str = "keep"  # groups of equal rewards: keep (official), filter, or resample other prompts for them
    max_resamples: int = 2  # rounds of new prompts in a step; what is still equal then is filtered
    tokens_per_batch: int = 8192  # micro-batches hold at most this many (padded) tokens; does not change the gradient
    gradient_checkpointing: bool = True
    lora_rank: int = 0  # r of LoRA on the language model's linear layers; 0: the whole language model is trained
    lora_alpha: float = 32.0  # adapters are scaled by alpha / r
    lora_targets: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )


@dataclass
class TrainConfig:
    steps: int = 1600
    seed: int = 0
    mode: str = "sync"  # sync: rollouts wait for the newest policy; async: they run ahead while the learner trains
    max_staleness: int = 1  # async: updates between the policy that sampled and the one that learns; 0: as sync


@dataclass
class EvalConfig:
    prompts: str | None = None  # held-out prompts that the exact verifier of `verifier` can judge
    verifier: str | None = None  # shapes, or null: no exact verifier exists for real images
    every: int = 0  # steps between evaluations; 0: never
    count: int = 384  # prompts used, from the top of the file
    seed: int = 1234


@dataclass
class JournalConfig:
    root: str = "runs"
    name: str | None = None  # default: config name and start time
    dump_every: int = 1  # steps between Parquet dumps of rollouts with rewards; 0: never
    images_every: int = 10  # steps between image grids in TensorBoard; 0: never
    save_every: int = 0  # steps between checkpoints, from which a run can be resumed; 0: the final one only
    keep_last: int = 2  # newest checkpoints that stay, besides the one with the best held-out accuracy; 0: all
    trackers: list[str] = field(default_factory=list)  # wandb, mlflow: offline unless their environment says otherwise
    profile: bool = False  # write trace.json, a Chrome trace of the phases of all steps


@dataclass
class ClusterConfig:
    address: str | None = None  # Ray cluster to join; null: the one in RAY_ADDRESS, or a new local one
    dashboard: bool = True  # of a new local cluster, on loopback only
    object_store_gb: float | None = None  # of a new local cluster; null: Ray's default
    start_timeout_s: float = 600.0  # until every actor is up
    call_timeout_s: float = 1800.0  # for one call to an actor
    place_timeout_s: float = 30.0  # until resources are reserved


@dataclass
class Config:
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    experts: dict[str, ExpertConfig] = field(default_factory=dict)
    reward: RewardConfig = field(default_factory=RewardConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    journal: JournalConfig = field(default_factory=JournalConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


SCHEDULES = ("constant", "linear", "cosine")
FILE = "config.yaml"
"""Name of the configuration in a run folder."""
SHIPPED = resources.files("t2ir1_ray") / "shapes" / "weights"
OmegaConf.register_resolver("shipped", lambda name: str(SHIPPED / name), replace=True)
INTERPOLATION = re.compile(r"\$\{(shipped:[\w.-]+|[\w.]+)\}")
"""All that `${...}` can say: OmegaConf's own resolvers read the environment, and a file must not."""
MAX_FILE_BYTES = 1 << 20
MAX_TEXT = 10_000
MAX_NUMBER = 1 << 24
METRICS = ("mean", "std", "zero_std_groups")
"""Names that `reward/<name>` has already: no expert can have them."""


def load(name_or_path: str = "shapes", overrides: Sequence[str] = ()) -> Config:
    """Defaults, then the YAML file (a shipped name such as `shapes`, or a path), then `a.b=value` overrides.

    Raises UserError with one line: unknown key (and the nearest known one), wrong type, or a value out of range.
    """
    merged = _merge(OmegaConf.structured(Config), _read_yaml(name_or_path), name_or_path)
    for override in overrides:
        key, separator, _ = override.partition("=")
        if not separator or not key:
            raise UserError(f"{_line(override)}: overrides have the form section.key=value")
        with _one_line(f"{_line(override)}: not a YAML value"):
            update = OmegaConf.from_dotlist([override])
        merged = _merge(merged, update, override)
    with _one_line(_line(name_or_path)):
        missing = OmegaConf.missing_keys(merged)
        if missing:
            raise UserError(f"{_line(min(missing))}: not set in {_line(name_or_path)}: give it a value")
        config: Config = OmegaConf.to_object(merged)
        _check(config)
    return config


def save(config: Config, path: Path) -> None:
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)), encoding="utf-8")


def _read_yaml(name_or_path: str) -> DictConfig:
    configs = Path(str(resources.files("t2ir1_ray") / "configs"))
    with _one_line(f"--config: {_line(name_or_path)} is not YAML"):
        shipped = configs / f"{name_or_path}.yaml"
        path = shipped if shipped.is_file() else Path(name_or_path)
        if not path.is_file():
            names = ", ".join(sorted(p.stem for p in configs.glob("*.yaml")))
            raise UserError(f"--config: {_line(name_or_path)} is no file and none of {names}")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"--config: {path} is longer than {MAX_FILE_BYTES} bytes: no configuration")
        loaded = OmegaConf.load(path)
    if not isinstance(loaded, DictConfig):
        raise UserError(f"--config: {path} must hold a mapping of sections")
    return loaded


def _merge(base: DictConfig, update: DictConfig, source: str) -> DictConfig:
    with _one_line(_line(source)):
        for key, value in _leaves(OmegaConf.to_container(update)):
            if isinstance(value, str) and "${" in INTERPOLATION.sub("", value):
                raise UserError(
                    f"{_line(key)}={_line(value)}: only ${{section.key}} and ${{shipped:name}} are replaced"
                )
        try:
            return OmegaConf.merge(base, update)
        except ConfigKeyError as error:
            key = _line(error.full_key)
            raise UserError(f"{_line(source)}: unknown key {key}{_nearest(base, key)}") from None


@contextmanager
def _one_line(source: str) -> Iterator[None]:
    """Whatever PyYAML, OmegaConf and Python have against a configuration, as a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of many classes
        key = getattr(error, "full_key", None)
        field = f"{_line(key)}: " if key and str(key) not in source else ""
        raise UserError(f"{source}: {field}{_line(error) or type(error).__name__}") from None


def _line(what: object) -> str:
    """The first line of a text, printable and not too long."""
    line = (str(what).strip().splitlines() or [""])[0]
    return "".join(character if character.isprintable() else " " for character in line[:300])


def _nearest(base: DictConfig, key: str) -> str:
    known = _paths(base)
    leaf = key.rsplit(".", 1)[-1]
    close = difflib.get_close_matches(key, known, 1) or [k for k in known if k.rsplit(".", 1)[-1] == leaf][:1]
    close = close or [k for k in known if difflib.get_close_matches(leaf, [k.rsplit(".", 1)[-1]], 1)][:1]
    return f": did you mean {close[0]}?" if close else f": sections are {', '.join(base.keys())}"


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of everything that is no container."""
    if isinstance(node, dict | list | tuple):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _leaves(child, f"{path}.{key}" if path else str(key))
    else:
        yield path, node


def _paths(node: DictConfig, prefix: str = "") -> list[str]:
    paths = []
    for key in node:
        path = f"{prefix}{key}"
        paths.append(path)
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            paths.extend(_paths(child, f"{path}."))
    return paths


def _check(config: Config) -> None:
    """Ranges and agreements between fields that types cannot express."""
    learner, rollout, data = config.learner, config.rollout, config.data
    for key, value in _leaves(asdict(config)):
        _check_value(key, value)
    _require(len(config.experts) <= 100, "experts", len(config.experts), "at most 100")
    for name, expert in config.experts.items():
        own = _leaves({"options": expert.options, "runtime_env": expert.runtime_env}, f"experts.{name}")
        for key, value in own:
            _require(not is_dataclass(value), key, "${...}", "must refer to a value, not to a section")
        fits = re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) and name not in METRICS
        _require(bool(fits), "experts", _line(name), f"must be letters, digits, - and _, not {' or '.join(METRICS)}")
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
        "learner.advantages": (learner.advantages, ("shared", "nested")),
        "learner.image_logprobs": (learner.image_logprobs, ("conditional", "guided")),
        "learner.lr_schedule": (learner.lr_schedule, SCHEDULES),
        "learner.beta_schedule": (learner.beta_schedule, SCHEDULES),
        "reward.combine": (config.reward.combine, ("sum", "gdpo")),
        "rollout.weight_transfer": (rollout.weight_transfer, ("object_store", "nccl")),
        "eval.verifier": (config.eval.verifier, (None, "shapes")),
        **{f"experts.{n}.role": (e.role, ("reward", "monitor")) for n, e in config.experts.items()},
    }
    for key, (value, allowed) in choices.items():
        _require(value in allowed, key, value, f"must be one of {', '.join(map(str, allowed))}")
    size = rollout.group_size
    _require(size >= 2, "rollout.group_size", size, "advantages compare samples of one prompt: at least 2")
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
    _require(max(learner.betas) < 1, "learner.betas", learner.betas, "must be less than 1")
    words = all(isinstance(target, str) for target in learner.lora_targets)
    _require(words, "learner.lora_targets", learner.lora_targets, "must be a list of names")
    _require(config.train.steps < 1_000_000, "train.steps", config.train.steps, "must be less than 1000000")
    processes = sum(e.replicas for e in config.experts.values()) + rollout.actors + learner.ranks
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
    _require(
        "{prompt}" in config.policy.plan_template, "policy.plan_template", config.policy.plan_template, "lacks {prompt}"
    )
    if config.eval.every:
        _require(config.eval.prompts is not None, "eval.prompts", None, "name a prompt file or set eval.every=0")
        _require(config.eval.verifier is not None, "eval.verifier", None, "name a verifier or set eval.every=0")


def _check_value(key: str, value: Any) -> None:
    """What holds for every field. An expert's own options may be negative, and its weight (a penalty)."""
    own = re.match(r"experts\.[^.]*\.(options|runtime_env|weight)\b", key) is not None
    if isinstance(value, str):
        lines = own or key.startswith("policy.plan_")
        _require(len(value) <= MAX_TEXT, key, _line(value), f"longer than {MAX_TEXT} characters")
        _require("\0" not in value and (lines or value.isprintable()), key, _line(value), "holds control characters")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        most = 2**63 - 1 if own or key.endswith(".seed") else MAX_NUMBER
        _require(abs(value) <= most, key, value, f"must be a finite number of at most {most}")
        _require(value >= 0 or own, key, value, "must not be negative")


def _require(ok: bool, key: str, value: object, mend: str) -> None:
    if not ok:
        raise UserError(f"{key}={value}: {mend}")
