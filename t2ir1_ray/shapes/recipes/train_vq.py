"""Recipe of the shapes policy's image tokenizer: transformers' JanusVQVAE, 24 x 24 pixels to 6 x 6 codes of 256.

transformers' own forward passes no gradient to the encoder, so the straight-through step is here. Decoding normalises
codes and encoding does not (as in Janus), so latents and codes are normalised in training and the normalised codebook
is what is stored. Two things are essential for the language model that learns the codes: the consistency loss, which
gives equal content equal codes, and merging near-equal codes afterwards; without them background tokens are random.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAE

from t2ir1_ray.shapes.recipes.corrupt import random_scene
from t2ir1_ray.shapes.world import BACKGROUND, COLORS, SHAPES, TEXTURES, Scene, read_scene, render

STEPS = 2000
BATCH = 16
CODES = 256
MERGE_COSINE = 0.97
CONTINUOUS_STEPS = 60
"""Steps before quantisation starts; the codebook is then initialised from latents."""


def vq_config(hidden: int) -> JanusVQVAEConfig:
    """0.2 M parameters; `hidden` is the width of the language model that reads the codes."""
    return JanusVQVAEConfig(
        embed_dim=8,
        num_embeddings=CODES,
        latent_channels=64,
        base_channels=32,
        channel_multiplier=[1, 1, 1],
        num_res_blocks=0,
        num_patches=6,
        projection_dim=hidden,
        image_token_embed_dim=hidden,
        num_hidden_layers=2,
    )


def train_vq(
    hidden: int, seed: int = 0, progress: Callable[[str], None] | None = None, steps: int = STEPS
) -> JanusVQVAE:
    """Train from scratch (about 120 CPU-seconds); returns the model with a normalised, merged codebook."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    model = JanusVQVAE(vq_config(hidden)).train()
    codebook = model.quantize.embedding.weight
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
    usage = torch.zeros(CODES)
    for step in range(steps):
        scenes = [random_scene(rng, rng.choice((1, 2, 3, 4, 6, 9, 9))) for _ in range(BATCH)]
        pixels = to_tensor([render(scene) for scene in scenes])
        latents = F.normalize(model.quant_conv(model.encoder(pixels)), dim=1)
        flat = latents.permute(0, 2, 3, 1).flatten(0, 2)
        if step == CONTINUOUS_STEPS:
            picked = flat.detach()[torch.randint(len(flat), (CODES,), generator=generator)]
            codebook.data.copy_(picked + 0.05 * torch.randn(picked.shape, generator=generator))
        if step < CONTINUOUS_STEPS:
            quantized, commitment, codes = flat, flat.new_zeros(()), None
        else:
            quantized, commitment, codes = straight_through(flat, codebook)
        grid = quantized.view(BATCH, 6, 6, -1).permute(0, 3, 1, 2)
        loss = reconstruction_loss(model.decoder(model.post_quant_conv(grid)), pixels) + commitment
        loss = loss + consistency_loss(flat, content_classes(scenes))
        for group in optimizer.param_groups:
            rise, fall = min(1.0, (step + 1) / 50), min(1.0, max(0.03, (steps - step) / (0.4 * steps)))
            group["lr"] = 1e-3 * rise * fall
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if codes is not None:
            usage = 0.99 * usage + torch.bincount(codes, minlength=CODES)
            if step % 20 == 0 and step < 0.7 * steps:
                usage = restart_dead_codes(codebook, usage, flat.detach(), codes, generator)
        if progress and (step + 1) % 100 == 0:
            progress(f"vq {step + 1}/{steps} loss {loss.item():.4f}")
    codebook.data.copy_(merge_codes(F.normalize(codebook.data, dim=-1), usage))
    refine_decoder(model, rng, 3 * steps // 4, progress)
    return model.eval().requires_grad_(False)


def refine_decoder(
    model: JanusVQVAE, rng: random.Random, steps: int, progress: Callable[[str], None] | None = None
) -> None:
    """Train the decoder on the merged codes, which it has not seen; encoder and codes stay as they are."""
    decoding = [*model.post_quant_conv.parameters(), *model.decoder.parameters()]
    optimizer = torch.optim.AdamW(decoding, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(steps):
        images = [render(random_scene(rng, rng.choice((1, 2, 3, 4, 6, 9, 9)))) for _ in range(BATCH)]
        chosen = model.quantize.embedding.weight.detach()[encode(model, images).clone()]
        grid = chosen.view(BATCH, 6, 6, -1).permute(0, 3, 1, 2)
        loss = reconstruction_loss(model.decoder(model.post_quant_conv(grid)), to_tensor(images))
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * max(0.02, 1 - step / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if progress and (step + 1) % 100 == 0:
            progress(f"vq decoder {step + 1}/{steps} loss {loss.item():.4f}")


def to_tensor(images: Sequence[np.ndarray]) -> Tensor:
    """(N, 24, 24, 3) uint8 -> (N, 3, 24, 24) float32 in -1..1."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def straight_through(flat: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(M, D) normalised latents -> quantised latents with the latents' gradient, VQ loss, (M,) codes."""
    normal = F.normalize(codebook, dim=-1)
    codes = (flat @ normal.T).argmax(1)
    chosen = normal[codes]
    to_codes = ((chosen - flat.detach()) ** 2).sum(1).mean()
    to_latents = ((chosen.detach() - flat) ** 2).sum(1).mean()
    return flat + (chosen - flat).detach(), to_codes + 0.25 * to_latents, codes


def reconstruction_loss(decoded: Tensor, pixels: Tensor) -> Tensor:
    """L1 + L2, object pixels five times as heavy as background."""
    background = pixels.new_tensor(BACKGROUND).view(1, 3, 1, 1) / 127.5 - 1
    weight = 1 + 4 * ((pixels - background).abs().sum(1, keepdim=True) > 0.1).float()
    difference = decoded - pixels
    return (weight * (difference.abs() + difference**2)).mean()


def content_classes(scenes: Sequence[Scene]) -> Tensor:
    """(N * 36,) int64: what each code stands for (which quarter of which object; 0 is background)."""
    classes = np.zeros((len(scenes), 6, 6), np.int64)
    quarter = np.array([[0, 1], [2, 3]])
    for index, scene in enumerate(scenes):
        for item in scene:
            kind = (TEXTURES.index(item.texture) * len(COLORS) + list(COLORS).index(item.color)) * len(SHAPES)
            kind = 1 + kind + SHAPES.index(item.shape)
            classes[index, 2 * item.row : 2 * item.row + 2, 2 * item.col : 2 * item.col + 2] = 4 * kind + quarter
    return torch.from_numpy(classes).flatten()


def consistency_loss(flat: Tensor, classes: Tensor) -> Tensor:
    """Squared distance of every latent to the batch mean of its content class."""
    sums = flat.new_zeros(int(classes.max()) + 1, flat.shape[1]).index_add_(0, classes, flat.detach())
    return ((flat - F.normalize(sums + 1e-6, dim=-1)[classes]) ** 2).sum(1).mean()


def restart_dead_codes(
    codebook: Tensor, usage: Tensor, flat: Tensor, codes: Tensor, generator: torch.Generator
) -> Tensor:
    """Move codes that nothing uses onto the worst-coded latents; returns the updated usage."""
    dead = (usage < 1).nonzero().flatten()
    if not len(dead):
        return usage
    error = 1 - (flat * F.normalize(codebook.data, dim=-1)[codes]).sum(1)
    picked = torch.multinomial(error.clamp_min(1e-6), len(dead), replacement=True, generator=generator)
    noise = 0.02 * torch.randn(len(dead), flat.shape[1], generator=generator)
    codebook.data[dead] = flat[picked] + noise
    return usage.index_fill(0, dead, 5.0)


def merge_codes(codebook: Tensor, usage: Tensor) -> Tensor:
    """Give every code the vector of the most used code within MERGE_COSINE of it.

    Encoding takes the first of equal codes, so duplicates are never produced again.
    """
    merged = codebook.clone()
    taken = torch.zeros(len(codebook), dtype=torch.bool)
    for code in usage.argsort(descending=True).tolist():
        if taken[code]:
            continue
        near = (codebook @ codebook[code] > MERGE_COSINE) & ~taken
        merged[near] = codebook[code]
        taken |= near
    return merged


@torch.inference_mode()
def encode(model: JanusVQVAE, images: Sequence[np.ndarray], batch: int = 64) -> Tensor:
    """(N, 36) int64 codes of uint8 images."""
    normal = model.quantize.embedding.weight
    parts = []
    for start in range(0, len(images), batch):
        latents = F.normalize(model.quant_conv(model.encoder(to_tensor(images[start : start + batch]))), dim=1)
        scores = latents.permute(0, 2, 3, 1).flatten(1, 2) @ normal.T
        # Merged codes are equal up to rounding: take the first within it, so that equal content has equal codes.
        parts.append((scores >= scores.amax(-1, keepdim=True) - 1e-5).float().argmax(-1))
    return torch.cat(parts)


@torch.inference_mode()
def decode(model: JanusVQVAE, codes: Tensor, batch: int = 64) -> np.ndarray:
    """(N, 36) int64 -> (N, 24, 24, 3) uint8, as the rollout actors do it."""
    parts = [model.decode(part) for part in codes.split(batch)]
    pixels = ((torch.cat(parts).permute(0, 2, 3, 1) + 1) / 2 * 255).clamp(0, 255)
    return pixels.to(torch.uint8).numpy()


def reconstruction_quality(model: JanusVQVAE, count: int = 500, seed: int = 7) -> dict[str, float]:
    """Share of fresh scenes that are read back exactly after encoding and decoding, and how many codes they use."""
    rng = random.Random(seed)
    scenes = [random_scene(rng, rng.choice((1, 2, 2, 3, 3, 4))) for _ in range(count)]
    codes = encode(model, [render(scene) for scene in scenes])
    exact = [read_scene(pixels).shows(scene) for pixels, scene in zip(decode(model, codes), scenes, strict=True)]
    return {"vq_reconstructions_exact": float(np.mean(exact)), "vq_codes_used": float(len(codes.unique()))}
