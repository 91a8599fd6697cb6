"""Janus' language model as vLLM sees it: a Llama, with the image modules riding along for the image decoder.

One set of weights serves both: vLLM decodes plans with the Llama, `image_decoder.ImageDecoder` borrows the same
modules for the image tokens.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch import Tensor, nn
from transformers import JanusConfig
from transformers.models.janus.configuration_janus import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAEAlignerMLP, JanusVQVAEHead
from vllm.config import VllmConfig
from vllm.model_executor.models.llama import LlamaForCausalLM

from actors.weights import fingerprint
from t2ir1_ray.errors import RunError
from t2ir1_ray.storage import cache_folder, write_whole

ARCHITECTURE = "JanusTrunk"
_PREFIXES = {"model.language_model.": "model.", "lm_head.": "lm_head.", "model.generation_": "generation_"}


class JanusTrunk(LlamaForCausalLM):
    """The parts of Janus that make tokens; vision tower and VQ model are left out."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        vq = JanusVQVAEConfig(**vllm_config.model_config.hf_config.vq_config)
        self.generation_embeddings = nn.Embedding(vq.num_embeddings, vq.embed_dim)
        self.generation_aligner = JanusVQVAEAlignerMLP(vq)
        self.generation_head = JanusVQVAEHead(vq)
        self.received: dict[str, str] = {}  # fingerprints of what the latest update brought, by transformers' names

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Accepts transformers' names of the whole Janus model and keeps what it has modules for."""
        return super().load_weights(self._renamed(weights))

    def _renamed(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights:
            self.received[name] = fingerprint(tensor)
            for old, new in _PREFIXES.items():
                if name.startswith(old):
                    yield new + name.removeprefix(old), tensor


@contextmanager
def engine_folder(config: JanusConfig) -> Iterator[Path]:
    """A folder with the `config.json` from which vLLM builds a JanusTrunk; weights are pushed afterwards.

    It is named by its content and stays in the user's cache: vLLM finds compiled code again by the model's path, and
    would compile at every start for one that is new. Where the cache cannot be written it is a temporary one.
    """
    text = config.text_config.to_dict()
    text.update(architectures=[ARCHITECTURE], vq_config=config.vq_config.to_dict(), tie_word_embeddings=False)
    content = json.dumps(text, sort_keys=True)
    folder = cache_folder() / "engine" / hashlib.sha256(content.encode()).hexdigest()[:32]
    with ExitStack() as stack:
        try:
            write_whole(folder / "config.json", content)
        except RunError:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            write_whole(folder / "config.json", content)
        yield folder
