"""`python -m tests.benchmarks.publish --gb 2 [--out FILE.json]`: GB/s of every part of a policy version's way.

A random Janus as wide as Janus-Pro-1B and as deep as makes so many GB in bfloat16 is written to a temporary folder. Ray
starts the learner's and the rollout's own actor classes on this machine's CPUs, and a version goes the way it goes in a
run: `LearnerActor.publish`, Ray's object store, `RolloutActor.take_version` into a real vLLM engine. Only DeepSpeed is
left out, whose optimizer would take seven times the memory: the parameters are whole, as ZeRO 1 and 2 hold them.

Prints one JSON object. `whole` is the time from the call of publish to the confirmed digest, the best of `--repeat`
after a first one that is not counted; each part is timed alone as well, so that parts that overlap add up to more.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
import torch
from transformers import JanusForConditionalGeneration

from actors.calls import wait_for
from actors.learner import LearnerActor
from actors.placement import Role
from actors.rollout import RolloutActor
from actors.spawning import actor_environment
from t2ir1_ray.config import LearnerConfig, PolicyConfig, RolloutConfig
from tests.tiny_janus import tiny_config, tiny_tokenizer

GB = 1e9
HIDDEN, INTERMEDIATE, VOCABULARY = 2048, 5632, 102_400  # of Janus-Pro-1B
LAYER_BYTES = 2 * (4 * HIDDEN**2 + 3 * HIDDEN * INTERMEDIATE)
TIMEOUT_S = 600


class Learner(LearnerActor):
    """Rank 0 of one with parameters and without an optimizer, and clocks for its half of the way."""

    def load(self, path: str) -> float:
        """Returns the GB of a version."""
        from t2ir1_ray.janus.policy import freeze, load_model

        model = load_model(path, "bfloat16")
        trained = freeze(model)
        self.rank.engine = SimpleNamespace(module=SimpleNamespace(janus=model))
        return sum(parameter.nbytes for parameter in trained.values()) / GB

    def times(self) -> dict[str, float]:
        from actors.weights import Weights, checksum

        def gathered() -> dict[str, torch.Tensor]:
            return dict(self.rank.gather_trainable())

        state = gathered()
        return {
            "gather": best(gathered),
            "digest": best(lambda: checksum(state)),
            "copy": best(lambda: {name: tensor.cpu() for name, tensor in state.items()}),
            "put": best(lambda: ray.put(Weights.pack(0, state))),
        }


class Rollout(RolloutActor):
    """With clocks for its half of the way."""

    def times(self, weights: list[Any]) -> dict[str, float]:
        """weights: one reference."""
        from actors.weights import checksum

        def loaded() -> None:
            self.sampler.engine._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(state.items())})

        found = {"get": best(lambda: ray.get(weights[0]).unpack())}
        state = ray.get(weights[0]).unpack()
        self.sampler.engine.trunk.received = SimpleNamespace(add=lambda name, tensor: None)
        return found | {"load": best(loaded), "confirm": best(lambda: checksum(state))}


def best(work: Callable[[], Any], repeats: int = 3) -> float:
    """Seconds of the fastest call."""
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def write_janus(folder: Path, gb: float) -> None:
    """A checkpoint of random numbers: the language model's share is as near to `gb` as whole layers come."""
    config = tiny_config(hidden=HIDDEN)
    text = config.text_config
    text.vocab_size, text.intermediate_size = VOCABULARY, INTERMEDIATE
    text.num_attention_heads = text.num_key_value_heads = 16
    text.head_dim = HIDDEN // 16
    text.num_hidden_layers = max(1, round((gb * GB - 4 * VOCABULARY * HIDDEN) / LAYER_BYTES))
    config.dtype = torch.bfloat16
    with torch.device("meta"):
        model = JanusForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(0)
    noise = (0.02 * torch.randn(1 << 24, generator=generator)).bfloat16()
    state = {}
    for name, tensor in model.state_dict().items():  # random numbers are slow to make: repeated, each time shifted
        shifts = torch.randint(len(noise), (-(-tensor.numel() // len(noise)),), generator=generator).tolist()
        state[name] = torch.cat([noise.roll(shift) for shift in shifts])[: tensor.numel()].view(tensor.shape)
    model.save_pretrained(folder, state_dict=state)
    tiny_tokenizer().save_pretrained(folder)


def spawn(actor_class: type, role: str, *arguments: Any) -> Any:
    """An actor with one CPU, in the environment of a run."""
    environment = actor_environment(Role(role, 1, 1, 0), {})
    return ray.remote(actor_class).options(num_cpus=1, runtime_env=environment).remote(*arguments)


def measure(gb: float, repeats: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        write_janus(Path(name), gb)
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=int((2.5 * gb + 0.5) * GB),
        )
        policy = PolicyConfig(path=name, max_plan_tokens=32, max_prompt_tokens=32)
        engine = RolloutConfig(num_gpus=0, max_sequences=4, kv_cache_gb=0.125)
        learner = spawn(Learner, "learner", policy, LearnerConfig(zero_stage=1), 0, 1, 1.0, 1.0, 1)
        rollout = spawn(Rollout, "rollout", policy, engine)
        size = wait_for(learner.load.remote(name), "learner", "load", TIMEOUT_S)
        wait_for(rollout.__ray_ready__.remote(), "rollout", "start", TIMEOUT_S)
        ways = []
        for version in range(repeats + 1):
            begin = time.perf_counter()
            weights, digest = learner.publish.options(num_returns=2).remote(version)
            published = wait_for(digest, "learner", "publish", TIMEOUT_S)
            sent = time.perf_counter()
            confirmed = wait_for(rollout.take_version.remote(weights), "rollout", "load", TIMEOUT_S)
            ways.append((time.perf_counter() - begin, sent - begin))
            assert tuple(confirmed) == (version, published)
        parts = wait_for(learner.times.remote(), "learner", "times", TIMEOUT_S)
        parts |= wait_for(rollout.times.remote([weights]), "rollout", "times", TIMEOUT_S)
        ray.shutdown()
    whole, publish = min(ways[1:])
    return {
        "GB": round(size, 3),
        "cpus": len(os.sched_getaffinity(0)),
        "parts": {name: rate(size, seconds) for name, seconds in parts.items()},
        "publish": rate(size, publish),
        "take_version": rate(size, whole - publish),
        "whole": rate(size, whole),
        "first": rate(size, ways[0][0]),
        "digests_of_whole": round((parts["digest"] + parts["confirm"]) / whole, 3),
    }


def rate(gb: float, seconds: float) -> dict[str, float]:
    return {"s": round(seconds, 4), "GB_per_s": round(gb / seconds, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, required=True, help="of a version; at least 1")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result = json.dumps(measure(options.gb, options.repeat), indent=1)
    print(result)
    if options.out:
        options.out.write_text(result + "\n")


if __name__ == "__main__":
    main()
