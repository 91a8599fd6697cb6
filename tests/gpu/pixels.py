"""VQ decoding of images: rate and memory, with and without TF32 in its convolutions."""

from collections.abc import Iterator

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.janus.modeling_janus import JanusVQVAE

from actors.image_decoder import to_pixels
from t2ir1_ray.fitting.memory import VQ_MAPS
from t2ir1_ray.janus.policy import image_size
from tests.gpu.measure import DEVICE, GB, clock, peak_gb
from tests.gpu.models import SIZES, janus_config
from tests.tiny_janus import tiny_config


@torch.inference_mode()
def figures(tiny: bool) -> Iterator[dict[str, object]]:
    config = tiny_config() if tiny else janus_config(SIZES["1B"])
    tokens, side = image_size(config)
    torch.manual_seed(0)
    with DEVICE:
        vq = JanusVQVAE(config.vq_config).eval()
    for images in (2,) if tiny else (16, 64):
        ids = torch.randint(config.vq_config.num_embeddings, (images, tokens), device=DEVICE)
        with FlopCounterMode(display=False) as counter:
            to_pixels(vq, ids[:1])
        tflop = counter.get_total_flops() * images / 1e12
        maps = images * side**2 * config.vq_config.base_channels * 4 / GB
        pixels = {}
        for tf32 in (True, False):
            torch.backends.cudnn.allow_tf32 = tf32
            pixels[tf32] = to_pixels(vq, ids)
            peak = peak_gb(lambda: to_pixels(vq, ids))  # noqa: B023
            taken = clock(lambda: to_pixels(vq, ids), 3, 0)  # noqa: B023
            yield {
                "images": images,
                "tf32": tf32,
                "s": taken,
                "images_per_s": images / taken,
                "TFLOP_per_s": tflop / taken,
                "peak_GB": peak,
                "formula_GB": VQ_MAPS * maps,
            }
        off = (pixels[True].int() - pixels[False].int()).abs()
        yield {
            "images": images,
            "largest_tf32_difference": int(off.max()),
            "changed_pixels": float((off > 0).float().mean()),
        }
