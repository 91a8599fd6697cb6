"""Log-probs of the sampler beside those of the learner on the same tokens: what an update sees as another policy."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from actors.image_decoder import ImageDecoder
from actors.image_state import ImageState, KeyValueMemory
from actors.image_step import one_token, read_prompts
from learner.logprobs import score_rollouts
from learner.packing import Sequences
from t2ir1_ray.janus.policy import unconditional_ids
from t2ir1_ray.janus.rounding import round_as_engines
from tests.gpu.models import Size, random_janus, random_prompts
from tests.torch_trunk import TorchTrunk

PAD = 2
MODEL = Size(1024, 4, 2816)
BRANCHES = 4  # plans of a prompt


def figures(tiny: bool) -> Iterator[dict[str, object]]:
    torch.backends.cuda.enable_cudnn_sdp(False)
    prompts, image_tokens, plan_tokens = (2, 36, 6) if tiny else (4, 576, 80)
    for dtype in (torch.float32, torch.bfloat16):
        janus = random_janus(None if tiny else MODEL, dtype, scale=3.0)
        trunk = TorchTrunk(janus)
        distinct = random_prompts(prompts, 12 if tiny else 90, 5, trunk.lm_head.out_features)
        rows = [prompt for prompt in distinct for _ in range(BRANCHES)]
        plans, plan_logprobs = sampled_plans(trunk, rows, plan_tokens)
        free = [unconditional_ids(prompt, PAD) for prompt in rows]
        images = ImageDecoder(trunk, PAD, image_tokens).generate(rows, free, range(len(rows)), 5.0, 1.0)
        given = [np.array(prompt, np.int32) for prompt in rows]
        samples = Sequences(given, list(plans.cpu().numpy()), given, images.ids.cpu().numpy())
        if dtype != torch.float32:
            round_as_engines(janus)
        semantic, image = score_rollouts(janus, samples, tokens_per_batch=8192)
        pairs = {"semantic": (plan_logprobs, np.stack(semantic)), "image": (images.logprobs, image)}
        for segment, (sampler, learner) in pairs.items():
            off = np.abs(sampler.cpu().numpy() - learner)
            yield {
                "dtype": str(dtype).removeprefix("torch."),
                "segment": segment,
                "mean_abs_difference": float(off.mean()),
                "max_abs_difference": float(off.max()),
                "mean_logprob": float(learner.mean()),
            }


@torch.inference_mode()
def sampled_plans(trunk: TorchTrunk, prompts: Sequence[Sequence[int]], count: int) -> tuple[Tensor, Tensor]:
    """(B, count) token ids and their log-probs, drawn with the image decoder's cache: token by token, as vLLM does."""
    columns = max(map(len, prompts)) + count
    memory = KeyValueMemory(trunk)
    memory.grow(len(prompts), columns)
    state = ImageState(trunk, memory.view(len(prompts), columns), len(prompts), 0)
    state.begin(prompts, state.uniforms)
    hidden = read_prompts(trunk, state, prompts, [], PAD)
    tokens, logprobs = [], []
    for _ in range(count):
        scores = trunk.lm_head(hidden).float().log_softmax(-1)
        ids = torch.multinomial(scores.exp(), 1)
        tokens.append(ids)
        logprobs.append(scores.gather(1, ids))
        hidden = one_token(trunk, state.cache, trunk.model.embed_tokens(ids[:, 0]), state.lengths, state.columns)
        state.lengths += 1
    return torch.cat(tokens, 1), torch.cat(logprobs, 1)
