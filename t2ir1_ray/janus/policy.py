"""Janus and Janus-Pro as the policy: loading, prompt formats, what is trained, saving.

One text model (Llama) serves both levels of chain of thought: `lm_head` gives the logits of the semantic-CoT,
`model.generation_head` those of the image tokens. Accepted checkpoints, from a folder or a hub id:

- transformers' layout (`model_type: janus`), e.g. `deepseek-community/Janus-Pro-7B` and the shipped shapes policy;
- DeepSeek's original layout (`model_type: multi_modality`), e.g. `deepseek-ai/Janus-Pro-7B`, see `janus.layout`.
"""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken
from torch import Tensor
from transformers import JanusConfig, JanusForConditionalGeneration, PreTrainedTokenizerBase

from t2ir1_ray.checkpoints import tokenizer as tokenizers
from t2ir1_ray.checkpoints.folder import read_config, refuse, resolve_checkpoint
from t2ir1_ray.checkpoints.random_weights import has_random_weights
from t2ir1_ray.checkpoints.weights import read_tensors
from t2ir1_ray.config import PolicyConfig
from t2ir1_ray.errors import UserError
from t2ir1_ray.janus import layout as janus_layout
from t2ir1_ray.janus.random_policy import random_policy
from t2ir1_ray.janus.rounding import round_as_engines

BEGIN_OF_IMAGE = "<begin_of_image>"
END_OF_IMAGE = "<end_of_image>"
IMAGE = "<image_placeholder>"
PAD = "<｜▁pad▁｜>"
FROZEN = ("model.vision_model.", "model.aligner.", "model.vqmodel.", "model.generation_")
"""Parameter name prefixes that are never trained, as in the official code (grpo.py)."""
CONTROL = re.compile(r"<[^<>\s]+>")
"""What a control token looks like; tokenizers also have added tokens that are letters."""
MAX_LAYERS = 1024
SHARD = "5GB"
"""Size of one file of weights at most: files are hashed side by side."""
WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class PromptFormat:
    """Text to token ids and back, in the format of Janus-Pro and T2I-R1 (not that of transformers' chat template).

    Special tokens inside a prompt or plan are ordinary text: only this class places control tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: PolicyConfig):
        self.tokenizer = tokenizer
        self.config = config
        # `split_special_tokens` leaves alone what a checkpoint has added without calling it special, e.g. <|User|>.
        added = [token for token in tokenizer.added_tokens_decoder.values() if CONTROL.fullmatch(token.content)]
        tokenizer.add_tokens([AddedToken(token.content, special=True) for token in added if not token.special], True)
        self.bos_id: int = tokenizer.bos_token_id
        self.eos_id: int = tokenizer.eos_token_id
        self.pad_id = self._special(PAD)
        self.boi_id = self._special(BEGIN_OF_IMAGE)
        control = {self.bos_id, self.eos_id, self.pad_id, self.boi_id}
        if len(control) < 4 or control & {None, tokenizer.unk_token_id}:
            raise UserError("policy.path: its tokenizer lacks bos_token or eos_token: not a Janus checkpoint")

    def plan_prompt_ids(self, prompt: str) -> list[int]:
        """Prompt of the semantic-CoT: `{system}\\n\\nUser: {instruction with the prompt}\\n\\nAssistant:`."""
        content = self.config.plan_template.replace("{prompt}", prompt)  # not str.format: prompts may hold braces
        return self._conversation(content, self.config.plan_system)

    def image_prompt_ids(self, prompt: str, plan: str | None) -> list[int]:
        """Prompt of the token-CoT: `User: {prompt}. {plan}\\n\\nAssistant:<begin_of_image>`; `plan=None`: no plan."""
        content = prompt if plan is None else f"{prompt}. {plan}"
        return [*self._conversation(content, ""), self.boi_id]

    def question_ids(self, question: str, image_tokens: int) -> list[int]:
        """A conversation about one image, `policy.question_template`, up to where the answer begins.

        image_tokens: placeholders that the vision tower's features will replace. Control tokens of the template count,
        those of the question are text. Raises UserError if the tokenizer has none for images.
        """
        image = [self.boi_id, *[self._special(IMAGE)] * image_tokens, self._special(END_OF_IMAGE)]
        before, after = (self._with_control(part, question) for part in self.config.question_template.split("{image}"))
        return [self.bos_id, *before, *image, *after]

    def unconditional_ids(self, image_prompt_ids: Sequence[int]) -> list[int]:
        return unconditional_ids(image_prompt_ids, self.pad_id)

    def plan_text(self, plan_ids: Sequence[int]) -> str:
        # Cleaning up would take spaces away that the plan has, whatever tokenizer_config.json prefers.
        return self.tokenizer.decode(plan_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _conversation(self, content: str, system: str) -> list[int]:
        text = f"User: {content}\n\nAssistant:"
        return [self.bos_id, *self._plain(f"{system}\n\n{text}" if system else text)]

    def _plain(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def _with_control(self, template: str, question: str) -> list[int]:
        ids: list[int] = []
        for piece in re.split(f"({CONTROL.pattern})", template):
            token = self.tokenizer.convert_tokens_to_ids(piece) if CONTROL.fullmatch(piece) else None
            known = token not in (None, self.tokenizer.unk_token_id)
            ids += [token] if known else self._plain(piece.replace("{question}", question))
        return ids

    def _special(self, token: str) -> int:
        index = self.tokenizer.convert_tokens_to_ids(token)
        if index is None or index == self.tokenizer.unk_token_id:
            raise UserError(f"policy.path: its tokenizer lacks the token {token}: not a Janus checkpoint")
        return index


def unconditional_ids(image_prompt_ids: Sequence[int], pad_id: int) -> list[int]:
    """The row that guidance subtracts: everything but the first and the last id replaced by padding tokens."""
    return [image_prompt_ids[0], *[pad_id] * (len(image_prompt_ids) - 2), image_prompt_ids[-1]]


def load_config(path: str) -> JanusConfig:
    """Model configuration of either layout, with untied embeddings (see the tie trap in `janus_layout.hf_config`)."""
    raw = read_config(resolve_checkpoint(path, "policy.path"), "policy.path")
    if raw.get("model_type") not in ("janus", "multi_modality"):
        raise UserError(
            f"policy.path: {path} is a {raw.get('model_type')!r:.80} model: give a Janus or Janus-Pro checkpoint"
        )
    with refuse(f"policy.path: {path}: its config.json describes no Janus model"):
        if raw["model_type"] == "multi_modality":
            config = janus_layout.hf_config(raw)
        else:
            config = JanusConfig.from_dict({**raw, "tie_word_embeddings": False})
        text, vision, vq = config.text_config, config.vision_config, config.vq_config
        depths = (text.num_hidden_layers, vision.num_hidden_layers, vision.depth)
        depths += (vq.num_hidden_layers, vq.num_res_blocks, len(vq.channel_multiplier))
        if max(depths) > MAX_LAYERS:
            raise ValueError(f"{max(depths)} layers")
    return config


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer, as its `tokenizer.json` says. Raises UserError if its files are bad."""
    return tokenizers.load_tokenizer(resolve_checkpoint(path, "policy.path"), "policy.path")


def load_state_dict(path: str) -> dict[str, Tensor]:
    """All tensors of the checkpoint under transformers' names, on the CPU, in the dtype they are stored in."""
    folder = resolve_checkpoint(path, "policy.path")
    if has_random_weights(folder):
        return random_policy(load_config(path))
    tensors = read_tensors(folder, "policy.path")
    if any(name.startswith("gen_vision_model.") for name in tensors):
        return janus_layout.to_hf(tensors)
    return tensors


def image_codebook(path: str) -> np.ndarray:
    """(V, D) float32: what each image token stands for in the VQ model."""
    return load_state_dict(path)["model.vqmodel.quantize.embedding.weight"].float().numpy().copy()


def checked_tensors(path: str, config: JanusConfig) -> dict[str, Tensor]:
    """The checkpoint's tensors, exactly those that the model has. Raises UserError if one is missing or misshaped.

    Tensors are mapped from the files, not read, so this is also the cheap check of a large checkpoint.
    """
    stored = load_state_dict(path)
    with refuse(f"policy.path: {path}: its config.json describes no Janus model"), torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in JanusForConditionalGeneration(config).state_dict().items()}
    tensors = {name: tensor for name, tensor in stored.items() if name in shapes}
    missing = sorted(shapes.keys() - tensors.keys())
    if missing:
        raise UserError(f"policy.path: {path} lacks {len(missing)} tensors, first {missing[0]}: download it again")
    for name, tensor in tensors.items():
        if tensor.shape != shapes[name]:
            raise UserError(
                f"policy.path: {path} has {name} of shape {tuple(tensor.shape)}, its config.json says "
                f"{tuple(shapes[name])}: weights and configuration are not of one model"
            )
        if tensor.dtype not in WEIGHT_DTYPES:
            raise UserError(
                f"policy.path: {path} has {name} in {tensor.dtype}: give a checkpoint that is not quantized"
            )
    return tensors


def load_model(path: str, dtype: str = "float32", device: str = "cpu") -> JanusForConditionalGeneration:
    """The whole model in evaluation mode, every tensor from the checkpoint; in bfloat16 it rounds as samplers do."""
    config = load_config(path)
    model = JanusForConditionalGeneration.from_pretrained(
        None,
        config=config,
        state_dict=checked_tensors(path, config),
        dtype=getattr(torch, dtype),
        attn_implementation="sdpa",
    )
    if dtype != "float32":
        round_as_engines(model)
    return model.to(device).eval()


def freeze(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Freeze all but the language model and `lm_head`; return the trainable parameters by name."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(FROZEN))
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def image_size(config: JanusConfig) -> tuple[int, int]:
    """(number of image tokens, side of the image in pixels)."""
    grid = config.vq_config.num_patches
    return grid * grid, grid * 2 ** (len(config.vq_config.channel_multiplier) - 1)


def save_policy(source: str, trained: dict[str, Tensor], out: Path) -> None:
    """Write a folder that `JanusForConditionalGeneration.from_pretrained` loads: `source` with `trained` in place.

    Tensors keep the dtype they had in `source`; tokenizer, processor and generation files are copied. No model is
    built: what is not trained goes from file to file, and memory holds no more than `trained`.
    """
    stored = load_state_dict(source)
    with torch.device("meta"):
        model = JanusForConditionalGeneration(load_config(source))
    merged = {name: trained.get(name, stored[name]).to(stored[name].dtype) for name in model.state_dict()}
    dtype = next(iter(merged.values())).dtype  # of which config.json speaks
    model.to(dtype).save_pretrained(out, state_dict=merged, max_shard_size=SHARD)
    for file in resolve_checkpoint(source, "policy.path").iterdir():
        if file.suffix in (".json", ".jinja", ".txt") and not (out / file.name).exists() and "index" not in file.name:
            shutil.copy(file, out / file.name)
