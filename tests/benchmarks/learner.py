"""`python -m tests.benchmarks.learner [--rounds N] [--out FILE.json]`: our learner step beside the official one.

One group of 8 samples of a random Janus, float32, one rank: reference log-probs, loss, gradient, clipping and AdamW.
Every variant runs in a process of its own, in turns, so that a noisy machine disturbs all of them; the losses of all
steps must agree to 1e-4, or the comparison is void. Seconds are reported as wall and as processor time; the targets
are judged by the latter, which other work on the machine disturbs less. Memory is the peak above what the process held
with both models loaded.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import JanusConfig, JanusForConditionalGeneration, JanusVisionConfig, JanusVQVAEConfig, LlamaConfig

from learner.bicot_grpo import group_advantages, policy_loss, token_weights
from learner.logprobs import score_rollouts
from t2ir1_ray.config import LearnerConfig, PolicyConfig
from t2ir1_ray.janus.policy import freeze, load_model
from t2ir1_ray.records.schema import LearnerBatch
from tests.ports import free_port

HIDDEN, LAYERS, INTERMEDIATE = 256, 8, 704
WORDS = CODES = 4096
SAMPLES, IMAGE_TOKENS = 8, 576
PROMPT, USER_PROMPT, PLANS = 160, 20, (40, 80)  # tokens: planning instruction with prompt, the prompt alone, plans
BETA, RATE = 0.01, 1e-3
STEPS = 3  # the first is not timed
REFERENCE_TOKENS = 1400
TARGETS = {"times_faster": 1.5, "memory_share": 0.6}


@dataclass(frozen=True)
class Variant:
    """A way to do the step. `tokens_per_batch`: None for the official code, which takes the group in one piece."""

    name: str
    checkpointing: bool
    tokens_per_batch: int | None = None


VARIANTS = (
    Variant("official", True),  # the released code switches checkpointing on
    Variant("official, no checkpointing", False),
    Variant("ours", False, 700),
    Variant("ours, checkpointing", True, 8192),
)
BASELINE, OURS = VARIANTS[0].name, VARIANTS[2].name


def write_policy(folder: Path, seed: int) -> Path:
    """Random weights whose distributions are far from uniform; lm_head has the share it has in Janus-Pro-1B."""
    text = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HIDDEN // 64,
        num_key_value_heads=HIDDEN // 64,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
    )
    vision = JanusVisionConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=96, patch_size=4, projection_dim=HIDDEN
    )
    vq = JanusVQVAEConfig(
        embed_dim=8,
        num_embeddings=CODES,
        latent_channels=32,
        base_channels=32,
        channel_multiplier=[1, 1],
        num_res_blocks=0,
        num_patches=24,
        projection_dim=HIDDEN,
        image_token_embed_dim=HIDDEN,
    )
    torch.manual_seed(0)
    config = JanusConfig(
        text_config=text, vision_config=vision, vq_config=vq, image_token_id=6, tie_word_embeddings=False
    )
    model = JanusForConditionalGeneration(config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "vqmodel" not in name:
                parameter.mul_(3.0)
                parameter.add_(0.003 * seed * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def random_batch() -> LearnerBatch:
    """One group: the same planning prompt for all samples, plans of different lengths."""
    rng = np.random.default_rng(0)

    def words(count: int) -> np.ndarray:
        return rng.integers(10, WORDS, count).astype(np.int32)

    prompt, user_prompt = words(PROMPT), words(USER_PROMPT)
    plans = [words(count) for count in rng.integers(*PLANS, SAMPLES)]
    images = rng.integers(0, CODES, (SAMPLES, IMAGE_TOKENS)).astype(np.int32)
    lengths = np.array([len(plan) for plan in plans])
    group = np.zeros(SAMPLES, int)
    semantic_weight, image_weight = token_weights(lengths, np.full(SAMPLES, IMAGE_TOKENS), group)
    advantages = group_advantages(torch.from_numpy(rng.random(SAMPLES, np.float32)), SAMPLES).numpy()
    blank = [np.zeros(count, np.float32) for count in lengths]
    return LearnerBatch(
        prompt_id=["0"] * SAMPLES,
        sample=np.arange(SAMPLES, dtype=np.int32),
        semantic_prompt_ids=[prompt] * SAMPLES,
        semantic_ids=plans,
        semantic_logprobs=blank,
        semantic_ref_logprobs=blank,
        image_prompt_ids=[np.concatenate([user_prompt, plan, words(1)]) for plan in plans],
        image_ids=images,
        image_logprobs=np.zeros(images.shape, np.float32),
        image_ref_logprobs=np.zeros(images.shape, np.float32),
        semantic_advantage=advantages,
        image_advantage=advantages,
        semantic_token_weight=semantic_weight,
        image_token_weight=image_weight,
        image_distance=[np.empty(0, np.float32)] * SAMPLES,
    )


def official_step(policy: Path, reference: Path, variant: Variant, device: str) -> Callable[[LearnerBatch], float]:
    """What `GRPOTrainer.compute_loss` of the released T2I-R1 does, under a plain optimizer.

    Plans and images each take a pass of the policy and one of the reference over the whole group, padded, under an
    attention mask, all hidden states kept. DeepSeek's language model applies its text head wherever it runs: so on
    every place of an image too, and once more where its log-probs are wanted, prompts included. log_softmax and gather
    go row by row. Two departures, without which losses cannot agree and which cost nothing: positions do not count
    padding (the released code leaves a gap in front of images), and the reference reads its own embeddings (there it
    is handed those of the policy, which are trained).
    """
    model, fixed = load_model(str(policy), device=device).train(), load_model(str(reference), device=device)
    fixed.requires_grad_(False)
    if variant.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    parameters = list(freeze(model).values())
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)

    def hidden(janus: nn.Module, embeds: Tensor, mask: Tensor) -> Tensor:
        places = (mask.cumsum(1) - 1).clamp(min=0)
        states = janus.model.language_model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=places, output_hidden_states=True, use_cache=False
        ).hidden_states
        janus.lm_head(states[-1])  # LlamaForCausalLM's logits, which nobody reads
        return states[-1]

    def logprobs(logits: Tensor, ids: Tensor) -> Tensor:
        rows = zip(logits, ids, strict=True)
        return torch.stack([row.log_softmax(-1).gather(1, chosen[:, None])[:, 0] for row, chosen in rows])

    def plans(janus: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
        logits = janus.lm_head(hidden(janus, janus.get_input_embeddings()(ids), mask))
        return logprobs(logits[:, :-1], ids[:, 1:])[:, PROMPT - 1 :]

    def images(janus: nn.Module, prompts: Tensor, codes: Tensor, mask: Tensor) -> Tensor:
        drawn = janus.prepare_embeddings_for_image_generation(codes)
        embeds = torch.cat([janus.get_input_embeddings()(prompts), drawn], 1)
        logits = janus.model.generation_head(hidden(janus, embeds, mask)[:, -(codes.shape[1] + 1) :])
        return logprobs(logits[:, :-1], codes)

    def step(batch: LearnerBatch) -> float:
        text, text_mask = _padded(
            [np.concatenate(pair) for pair in zip(batch.semantic_prompt_ids, batch.semantic_ids, strict=True)]
        )
        prompts, prompt_mask = _padded([prompt[:-1] for prompt in batch.image_prompt_ids])
        begin = torch.tensor([[int(prompt[-1])] for prompt in batch.image_prompt_ids])
        codes = torch.from_numpy(batch.image_ids.astype(np.int64))
        seen = torch.cat([prompt_mask, torch.ones_like(begin), torch.ones_like(codes)], 1)
        semantic = [x.to(device) for x in (text, text_mask)]
        image = [x.to(device) for x in (torch.cat([prompts, begin], 1), codes, seen)]
        own, other = [], []
        for segment, inputs in ((plans, semantic), (images, image)):
            own.append(segment(model, *inputs))
            with torch.inference_mode():
                other.append(segment(fixed, *inputs))
        mask = torch.cat([text_mask[:, PROMPT:], torch.ones_like(codes)], 1).to(device)
        advantages = torch.from_numpy(batch.image_advantage).to(device)
        loss = policy_loss(torch.cat(own, 1), torch.cat(other, 1).clone(), advantages, mask, BETA).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss)

    return step


def our_step(policy: Path, reference: Path, variant: Variant, device: str) -> Callable[[LearnerBatch], float]:
    """The reference as its actor runs it, then `LearnerRank.step`; here both in one process, one after the other."""
    from learner.packing import Sequences
    from learner.rank import LearnerRank

    fixed = load_model(str(reference), device=device).requires_grad_(False)
    config = LearnerConfig(
        zero_stage=1,
        dtype="float32",
        learning_rate=RATE,
        beta=BETA,
        tokens_per_batch=variant.tokens_per_batch,
        gradient_checkpointing=variant.checkpointing,
    )
    rank = LearnerRank(PolicyConfig(path=str(policy)), config, 0, 1)
    rank.join_ranks("127.0.0.1", free_port())

    def step(batch: LearnerBatch) -> float:
        semantic, image = score_rollouts(fixed, Sequences.of(batch), REFERENCE_TOKENS)
        known = replace(batch, semantic_ref_logprobs=semantic, image_ref_logprobs=image)
        return rank.step(known.to_arrow())["loss"]

    return step


def measure(folder: Path, variant: Variant) -> dict[str, object]:
    """Run in a fresh process: losses, seconds of the timed steps, MiB above the loaded models."""
    from t2ir1_ray.cpu_stack import register

    register()
    torch.set_num_threads(1)
    cuda = torch.cuda.is_available()
    build = official_step if variant.tokens_per_batch is None else our_step
    step = build(folder / "policy", folder / "reference", variant, "cuda" if cuda else "cpu")
    batch = random_batch()
    before = _memory(cuda, reset=True)
    losses, wall, processor = [], [], []
    for _ in range(STEPS):
        begin = time.perf_counter(), time.process_time()
        losses.append(step(batch))
        wall.append(time.perf_counter() - begin[0])
        processor.append(time.process_time() - begin[1])
    peak = (_memory(cuda) - before) / 2**20
    return {"losses": losses, "seconds": wall[1:], "processor_seconds": processor[1:], "mib": peak}


def run(folder: Path, variant: Variant) -> dict[str, object]:
    command = [sys.executable, "-m", "tests.benchmarks.learner", "--worker", str(folder), json.dumps(asdict(variant))]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(f"{variant.name}: {done.stderr[-3000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{variant.name}: {min(found['seconds']):.2f} s, {found['mib']:.0f} MiB", file=sys.stderr, flush=True)
    return found


def summary(rounds: list[dict[str, dict]]) -> dict[str, object]:
    """Medians over rounds of each variant's best step, and our share of the official time and memory."""
    variants = {}
    for variant in VARIANTS:
        found = [each[variant.name] for each in rounds]
        variants[variant.name] = {
            "checkpointing": variant.checkpointing,
            "tokens_per_batch": variant.tokens_per_batch,
            "seconds": round(statistics.median(min(x["seconds"]) for x in found), 3),
            "processor_seconds": round(statistics.median(min(x["processor_seconds"]) for x in found), 3),
            "mib": round(statistics.median(x["mib"] for x in found), 1),
        }
    official, ours = variants[BASELINE], variants[OURS]
    result = {
        "times_faster": round(official["seconds"] / ours["seconds"], 2),
        "times_faster_processor": round(official["processor_seconds"] / ours["processor_seconds"], 2),
        "memory_share": round(ours["mib"] / official["mib"], 3),
    }
    met = (
        result["times_faster_processor"] >= TARGETS["times_faster"]
        and result["memory_share"] <= TARGETS["memory_share"]
    )
    return {"variants": variants, "official_against_ours": result, "targets": TARGETS, "met": met}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        folder, variant = options.worker
        print(json.dumps(measure(Path(folder), Variant(**json.loads(variant)))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for seed, name in enumerate(("policy", "reference")):
            write_policy(folder / name, seed)
        rounds = [{variant.name: run(folder, variant) for variant in VARIANTS} for _ in range(options.rounds)]
    losses = np.array([found["losses"] for each in rounds for found in each.values()])
    np.testing.assert_allclose(losses, np.broadcast_to(losses[0], losses.shape), rtol=0, atol=1e-4)
    result = {"device": "cuda" if torch.cuda.is_available() else "cpu", "threads": 1, "rounds": options.rounds}
    result |= {"losses": losses[0].round(6).tolist(), **summary(rounds)}
    table = Table("variant", "wall s", "processor s", "MiB above the models")
    for name, found in result["variants"].items():
        table.add_row(name, *(str(found[key]) for key in ("seconds", "processor_seconds", "mib")))
    Console().print(table)
    print(json.dumps(result))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


def _padded(rows: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Ids padded on the right with zeros, and their mask; (N, L) int64."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for padded, row in zip(ids, rows, strict=True):
        padded[: len(row)] = torch.from_numpy(row.astype(np.int64))
    return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()


def _memory(cuda: bool, reset: bool = False) -> int:
    """Bytes held at most since the last reset; with `reset` forget the peak: what is held now."""
    if cuda:
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
