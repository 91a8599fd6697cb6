"""What actors answer is looked at where it arrives: samples of the version that was asked for, and numbers only.

Either fault would train on noise without a sign, so it ends the run with the name of the sample.
"""

from collections.abc import Sequence

import numpy as np

from t2ir1_ray.errors import RunError
from t2ir1_ray.records.schema import ReferenceLogprobs, Rollouts


def check_rollouts(who: str, samples: Rollouts, version: int) -> None:
    """Raises RunError if a sample is of another policy version, or a log-prob of it is not finite."""
    for row in np.flatnonzero(samples.policy_version != version):
        found = samples.policy_version[row]
        raise RunError(f"{who}: {sample_name(samples, row)} is of policy version {found} instead of {version}")
    _check_finite(who, samples, samples.semantic_logprobs, samples.image_logprobs)


def check_reference(who: str, samples: Rollouts, reference: ReferenceLogprobs) -> None:
    """Raises RunError if a log-prob under the starting policy is not finite."""
    _check_finite(who, samples, reference.semantic, reference.image)


def sample_name(samples: Rollouts, row: int) -> str:
    """As errors name a sample."""
    return f"sample {samples.sample[row]} of prompt {samples.prompt_id[row]}"


def _check_finite(who: str, samples: Rollouts, semantic: Sequence[np.ndarray], image: np.ndarray) -> None:
    for kind, logprobs in (("plan", semantic), ("image", image)):
        for row, values in enumerate(logprobs):
            if not np.isfinite(values).all():
                raise RunError(f"{who}: {sample_name(samples, row)}: a log-prob of its {kind} is not finite")
