"""Which experts judge a benchmark's images: its own choice with the user's settings over it."""

import dataclasses
from collections.abc import Mapping, Sequence

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from t2ir1_ray.config import ExpertConfig
from t2ir1_ray.errors import UserError
from t2ir1_ray.fitting.inventory import is_hub_id, locate


def expert_configs(
    needs: Mapping[str, ExpertConfig], needed: set[str], overrides: Sequence[str], gpus: bool, remote: bool
) -> dict[str, ExpertConfig]:
    """The benchmark's judges with the user's `NAME.key=value` over their defaults. Raises UserError for a bad one.

    needs: all judges that the benchmark knows, `needed`: those that its prompts ask for.
    remote: the checkpoints are on a cluster, where this process cannot look.
    """
    share = {"num_gpus": 0.25, "num_cpus": 1.0} if gpus else {"num_gpus": 0.0, "num_cpus": 0.1}
    base = OmegaConf.create({name: OmegaConf.structured(dataclasses.replace(needs[name], **share)) for name in needs})
    OmegaConf.set_struct(base, True)
    try:
        if any("${" in override for override in overrides):
            raise ValueError("${...} is not replaced here")
        merged = OmegaConf.merge(base, OmegaConf.from_dotlist(list(overrides)))
        experts = {name: OmegaConf.to_object(merged[name]) for name in needs if name in needed}
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        names = ", ".join(needs) or "none"
        raise UserError(f"--expert: {str(error).splitlines()[0]} (its judges: {names})") from None
    for name, expert in experts.items():
        if not expert.path:
            raise UserError(
                f"--expert {name}.path: missing: give a {expert.kind} checkpoint (folder, file or hub id), or another "
                f"kind with --expert {name}.kind=KIND"
            )
        if not (is_hub_id(expert.path) or locate(expert.path) or remote):
            raise UserError(f"--expert {name}.path: {expert.path} does not exist: give a file, a folder or a hub id")
    return experts
