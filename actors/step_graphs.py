"""CUDA graphs of steps: a replay launches in one go what otherwise takes a thousand launches."""

from collections.abc import Callable, Hashable, Sequence

import torch


class StepGraphs:
    """One graph per kind of step. Steps work on memory that stays where it is, and wait for nothing."""

    def __init__(self, enabled: bool):
        """enabled: False on CPUs, where steps run as they are."""
        self.enabled = enabled
        self._held: list[int] = []
        self.clear()

    def clear(self) -> None:
        """Forget all graphs: what they read or write has moved."""
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph | None] = {}  # None: ran once
        self._pool = torch.cuda.graph_pool_handle() if self.enabled else None

    def hold(self, addresses: Sequence[int]) -> None:
        """Where the weights lie that steps read."""
        if list(addresses) != self._held:
            self._held = list(addresses)
            self.clear()

    def run(self, kind: Hashable, step: Callable[[], None]) -> None:
        """The first step of a kind runs as it is, which also lets libraries choose and compile their kernels; the
        second one is captured."""
        if not self.enabled or kind not in self._graphs:
            step()
            self._graphs[kind] = None
            return
        graph = self._graphs[kind]
        if graph is None:
            graph = self._graphs[kind] = torch.cuda.CUDAGraph()
            # Other threads of this process (the engine's) may use the card meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                step()
        graph.replay()
