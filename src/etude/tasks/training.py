"""The one training loop: both arms of a seed see the same batches for the same steps or time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from etude.core import EtudeError

__all__ = ["n_steps_for", "optimize"]

BATCH = 64


def n_steps_for(n_rows: int) -> int:
    """Twenty passes over the rows, at least 200 and at most 1,000 steps."""
    return max(200, min(1000, 20 * n_rows // BATCH))


def optimize(
    parameters: Iterable[nn.Parameter],
    loss_of: Callable[[Tensor], Tensor],
    n_rows: int,
    *,
    seed: int,
    lr: float = 3e-3,
    weight_decay: float = 1e-4,
    n_steps: int | None = None,
    budget_s: float | None = None,
) -> int:
    """AdamW with a cosine decay to zero; returns the number of steps taken.

    `loss_of` maps the row numbers of a batch, (B,) int64, to a scalar loss. With `budget_s`
    the clock decides instead of `n_steps`, and the decay follows the clock.

    Raises:
        EtudeError: the loss is not finite (training diverged).
    """
    optimizer = torch.optim.AdamW(list(parameters), lr=lr, weight_decay=weight_decay)
    generator = torch.Generator().manual_seed(seed)
    total = n_steps_for(n_rows) if n_steps is None else n_steps
    started, step = time.perf_counter(), 0
    while True:
        order = torch.randperm(n_rows, generator=generator)
        for rows in torch.split(order, min(BATCH, n_rows)):
            if len(rows) < min(BATCH, n_rows):
                continue  # batches of one size: a short one would weigh its rows more
            done = step / total if budget_s is None else (time.perf_counter() - started) / budget_s
            if done >= 1:
                return step
            for group in optimizer.param_groups:
                group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * done))
            loss = loss_of(rows)
            if not torch.isfinite(loss):
                raise EtudeError(f"training diverged: the loss is {loss.item()} at step {step}")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step += 1


def _warm_up() -> None:
    """The first step of a process loads half of torch: let nobody's clock pay for it."""
    weight = nn.Parameter(torch.zeros(1))
    optimize([weight], lambda rows: weight.sum(), 1, seed=0, n_steps=1)


_warm_up()
