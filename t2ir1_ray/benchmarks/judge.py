"""A vision language model behind an OpenAI-compatible endpoint, asked about images from threads of this process."""

import base64
import io
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import ray
from openai import OpenAI, OpenAIError
from PIL import Image

from t2ir1_ray.errors import RunError
from t2ir1_ray.records.schema import Rollouts

UNREADABLE_RETRIES = 3


class Judge:
    """Temperature 0. The key stays in this process; nothing is sent anywhere but to `base_url`."""

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str | None,
        threads: int = 8,
        max_tokens: int = 2000,
        extra_body: Mapping[str, Any] | None = None,
    ):
        """`extra_body`: further fields of every request, such as a model's own switches."""
        self.client = OpenAI(base_url=base_url, api_key=api_key or "none", max_retries=5, timeout=120)
        self.model, self.max_tokens, self.extra_body = model, max_tokens, extra_body
        self.pool = ThreadPoolExecutor(threads)

    def ask(
        self, rollouts: ray.ObjectRef, system: str, text: str, readable: Callable[[str], bool]
    ) -> "Future[list[str]]":
        """An answer per image; one that is not `readable` is asked for again, and stays as it is after three times.

        The future raises RunError if the endpoint cannot be reached or refuses.
        """
        return self.pool.submit(self._ask, rollouts, system, text, readable)

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)
        self.client.close()

    def _ask(self, rollouts: ray.ObjectRef, system: str, text: str, readable: Callable[[str], bool]) -> list[str]:
        return [
            self._answer(pixels, system, text, readable) for pixels in Rollouts.from_arrow(ray.get(rollouts)).pixels
        ]

    def _answer(self, pixels: np.ndarray, system: str, text: str, readable: Callable[[str], bool]) -> str:
        content = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": data_url(pixels)}}]
        messages: list[Any] = [{"role": "system", "content": system}, {"role": "user", "content": content}]
        answer = ""
        for _ in range(1 + UNREADABLE_RETRIES):
            try:
                reply = self.client.chat.completions.create(
                    model=self.model,
                    messages=messages,
                    temperature=0,
                    max_tokens=self.max_tokens,
                    extra_body=self.extra_body,
                )
            except OpenAIError as error:
                raise RunError(f"judge {self.client.base_url}: {' '.join(str(error).split())[:300]}") from None
            answer = (reply.choices[0].message.content if reply.choices else None) or ""
            if readable(answer):
                break
        return answer


def data_url(pixels: np.ndarray) -> str:
    """(H, W, 3) uint8 as a PNG in a data URL."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
