"""The nodes of the connected cluster: their names for a person, and a question to each of them."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def node_names() -> dict[str, str]:
    """Node id -> `node ADDRESS (HOSTNAME)` of all living nodes, with a piece of the id where that is not enough."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    names = {n["NodeID"]: f"node {n['NodeManagerAddress']} ({n['NodeManagerHostname']})" for n in alive}
    alike = Counter(names.values())
    return {node: f"{name[:-1]}, {node[:6]})" if alike[name] > 1 else name for node, name in names.items()}


def ask_nodes(question: Callable[..., Any], arguments: Mapping[str, tuple[Any, ...]]) -> dict[str, ray.ObjectRef]:
    """Start `question` on nodes, with arguments by node id; node id -> reference. It takes none of their CPUs."""
    task = ray.remote(num_cpus=0)(question)
    return {
        node: task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(*values)
        for node, values in arguments.items()
    }
