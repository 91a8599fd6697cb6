"""Schedules of learning rate and beta over the optimisation steps, from torch's own building blocks."""

import torch
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR


def schedule(optimizer: torch.optim.Optimizer, kind: str, warmup: int, steps: int) -> LRScheduler:
    """Warm-up over `warmup` steps (the first already moves: 1, 2, ... parts of warmup + 1), then `kind` until `steps`.

    kind: constant; linear or cosine towards 0, which would be reached at step `steps` + 1.
    """
    left = max(steps - warmup, 1)
    after = {
        "constant": lambda: ConstantLR(optimizer, 1.0),
        "linear": lambda: LinearLR(optimizer, 1.0, 0.0, left),
        "cosine": lambda: CosineAnnealingLR(optimizer, left),
    }[kind]
    if not warmup:
        return after()
    return SequentialLR(optimizer, [LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup), after()], [warmup])


class ScheduledValue:
    """A number with a schedule of its own, such as the weight of the KL term."""

    def __init__(self, value: float, kind: str, steps: int):
        self._optimizer = torch.optim.SGD([torch.zeros(1)], lr=value)  # schedulers move an optimizer's rate
        self._schedule = schedule(self._optimizer, kind, 0, steps)

    @property
    def value(self) -> float:
        return float(self._optimizer.param_groups[0]["lr"])

    def step(self) -> None:
        self._optimizer.step()
        self._schedule.step()
