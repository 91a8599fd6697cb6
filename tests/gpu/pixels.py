"""VQ decoding of images: rate and memory, with and without TF32 in its convolutions."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.janus.modeling_janus import JanusVQVAE

from actors.image_decoder import to_pixels
from t2ir1_ray.fitting.memory import VQ_MAPS
from t2ir1_ray.janus.policy import image_size
from tests.gpu.measure import DEVICE, GB, clock, peak_gb
from tests.gpu.models import SIZES, drawn, janus_config
from tests.tiny_janus import tiny_config


@torch.inference_mode()
def figures(tiny: bool) -> Iterator[dict[str, object]]:
    config = tiny_config() if tiny else janus_config(SIZES["1B"])
    tokens, _ = image_size(config)
    with drawn(DEVICE.type, torch.float32):
        vq = JanusVQVAE(config.vq_config).eval()
    for images in (2,) if tiny else (16, 64):
        ids = torch.randint(config.vq_config.num_embeddings, (images, tokens), device=DEVICE)
        found = {}
        for tf32 in (True, False):
            torch.backends.cudnn.allow_tf32 = tf32
            found[tf32] = to_pixels(vq, ids).int()
            yield {"images": images, "tf32": tf32, **_decoding(vq, ids)}
        off = (found[True] - found[False]).abs()
        share = float((off > 0).float().mean())
        yield {"images": images, "largest_difference_by_tf32": int(off.max()), "share_of_values_that_differ": share}


def _decoding(vq: JanusVQVAE, ids: Tensor) -> dict[str, object]:
    images = len(ids)
    with FlopCounterMode(display=False) as counter:
        side = to_pixels(vq, ids[:1]).shape[1]
    peak = peak_gb(lambda: to_pixels(vq, ids))
    taken = clock(lambda: to_pixels(vq, ids), 3, 0)
    return {
        "s": taken,
        "images_per_s": images / taken,
        "TFLOP_per_s": counter.get_total_flops() * images / 1e12 / taken,
        "peak_GB": peak,
        "formula_GB": VQ_MAPS * images * side**2 * vq.config.base_channels * 4 / GB,
    }
