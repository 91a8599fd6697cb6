"""The configuration as dataclasses, one per section. Every field's comment says what it means and in which unit; the
reference in this folder's README.md is made of them."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class PolicyConfig:
    path: str = MISSING  # checkpoint: a folder or a hub id (Janus or Janus-Pro, either layout)
    dtype: str = "bfloat16"  # of rollout and reference: float32 or bfloat16
    plan_system: str = ""  # system text in front of the planning conversation
    plan_template: str = "{prompt}"  # what the policy is asked when it plans; {prompt} is replaced
    question_template: str = "User: {image}\n{question}\n\nAssistant:"  # how it is asked what an image shows
    max_plan_tokens: int = 512  # a plan that is not over by then is truncated (and counted)
    max_prompt_tokens: int = 256  # planning prompts longer than this are refused or skipped, see data.too_long


@dataclass
class DataConfig:
    prompts: str = MISSING  # training prompts: .jsonl, .json (one object per line) or .parquet
    prompts_per_step: int = 16  # B: distinct prompts of one optimisation step
    too_long: str = "refuse"  # what happens to prompts of any file that do not fit the policy: refuse or skip (counted)


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
    runtime_env: dict[str, Any] = field(default_factory=dict)  # Ray's, e.g. {pip: [...]}, which copies a venv: some GB
    options: dict[str, Any] = field(default_factory=dict)  # the expert's own settings


@dataclass
class RewardConfig:
    combine: str = "sum"  # sum (official) or gdpo (each expert normalised inside its group first)
    min_group_size: int = 2  # a group with fewer usable samples is dropped and counted
    retries: int = 2  # times a call that raised is repeated, and times each actor but the learner may die in a step
    probe_every: int = 20  # steps between probes whether experts look at the image (two change places); 0: never
    rotate_monitor: int = 0  # steps after which another expert of role reward is only watched; 0: all count always


@dataclass
class ReferenceConfig:
    num_gpus: float = 1.0
    num_cpus: float = 1.0
    replicas: int = 1  # they share the groups of a step
    tokens_per_batch: int = 8192


@dataclass
class LearnerConfig:
    ranks: int = 1  # L: DeepSpeed data-parallel ranks
    num_gpus: float = 1.0  # per rank: 1, or 0 on CPUs
    num_cpus: float = 1.0
    zero_stage: int = 3  # 1, 2 or 3
    dtype: str = "bfloat16"  # of parameters and activations; the optimizer keeps float32
    learning_rate: float = 1e-6  # with LoRA 1e-5 to 1e-4: its adapters start at zero and are small
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
    token_credit: str = "none"  # none (official), entropy, guidance, similarity, critical: see learner/token_credit.py
    entropy_band: tuple[float, float] | None = None  # [low, high]: holds entropies there, in units of the first step's
    entropy_weight: float = 1.0  # largest weight of the entropy term: where an entropy is off the band by the first
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
    deterministic: bool = False  # GPUs: the same bits in every run, slower; CPUs give them anyway
    on_warning: str = "warn"  # a warning sign is told (warn), or ends the run behind its step (stop)


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
    save_last: bool = True  # a checkpoint when a run ends, by itself or because it was asked to
    keep_last: int = 2  # newest checkpoints that stay, besides the one with the best held-out accuracy; 0: all
    trackers: list[str] = field(default_factory=list)  # wandb, mlflow: offline unless their environment says otherwise
    profile: bool = False  # write trace.json, a Chrome trace of all steps, with the actors' peaks of memory


@dataclass
class ClusterConfig:
    address: str | None = None  # Ray cluster to join; null: the one in RAY_ADDRESS, or a new local one
    folder: str | None = None  # seen by all nodes: where relative paths of checkpoints, prompts and journal begin
    dashboard: bool = True  # of a new local cluster, on loopback only
    object_store_gb: float | None = None  # of a new local cluster; null: Ray's default
    start_timeout_s: float = 600.0  # until every actor is up
    call_timeout_s: float = 1800.0  # for one call to an actor
    load_timeout_s: float = 600.0  # until every rollout actor has taken in a new version of the policy
    place_timeout_s: float = 300.0  # until resources are reserved: nodes may still join, or other work may hold them
    node_timeout_s: float = 600.0  # until an actor that was lost, alone or with its node, is up again


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
