"""Time and memory of one training step as the classes grow from a thousand to a million.

    python bench/extreme_classification.py [--most 1000000]

Four output layers of 64 inputs, one batch of 32, plain gradient descent on the layer and the
gradient for the network below: the factored Z-loss, the same Z-loss and cross-entropy with all
outputs formed, and sampled softmax with 1,000 sampled classes. A time is the median of the steps;
memory is the sum of all that one step allocates, as torch's profiler counts it.
The aim: the factored step costs at 10^6 classes at most 1.5 times what it costs at 10^4; for this
both layers step in turn, a few steps each, so that whatever else the machine does slows both.
Folding U into V, which does touch every class, is timed apart; folds within the steps are counted.
The last lines are that growth and how many times faster than log-softmax the largest layer is.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from etude.losses import FactoredZLoss, ZLoss

DIM, BATCH, SAMPLED, LR, AIM = 64, 32, 1000, 0.1, 1.5
Step = Callable[[Tensor, Tensor], object]


def dense(weight: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Step:
    """A step with all K outputs."""

    def step(h: Tensor, target: Tensor) -> Tensor:
        below, w = h.clone().requires_grad_(True), weight.detach().requires_grad_(True)
        back, slope = torch.autograd.grad(loss(F.linear(below, w), target), (below, w))
        weight.sub_(slope, alpha=LR)
        return back

    return step


def sampled(weight: Tensor) -> Step:
    """Sampled softmax: the targets and SAMPLED uniform classes, corrected for their odds."""

    def step(h: Tensor, target: Tensor) -> Tensor:
        others = torch.randint(len(weight), (SAMPLED,))
        rows = torch.cat((target, others))
        below, w = h.clone().requires_grad_(True), weight[rows].requires_grad_(True)
        own = (below * w[: len(h)]).sum(1, keepdim=True)
        odds = torch.log(torch.tensor(SAMPLED / len(weight)))
        rest = below @ w[len(h) :].T - odds
        rest = rest.masked_fill(others == target[:, None], -torch.inf)
        outputs = torch.cat((own, rest), dim=1)
        loss = F.cross_entropy(outputs, torch.zeros_like(target))
        back, slope = torch.autograd.grad(loss, (below, w))
        weight.index_add_(0, rows, slope, alpha=-LR)
        return back

    return step


def timed(
    step: Step, n_classes: int, n_steps: int, *, with_memory: bool = True
) -> tuple[float, float]:
    """Median seconds of a step and the bytes that one step allocates."""
    generator = torch.Generator().manual_seed(1)
    seconds = []
    for i in range(n_steps + 2):
        h = torch.randn(BATCH, DIM, generator=generator)
        target = torch.randint(n_classes, (BATCH,), generator=generator)
        started = time.perf_counter()
        step(h, target)
        if i >= 2:  # the first two warm up
            seconds.append(time.perf_counter() - started)
    if not with_memory:
        return statistics.median(seconds), 0.0
    with torch.profiler.profile(profile_memory=True) as profile:
        step(h, target)
    grown = sum(max(0, event.self_cpu_memory_usage) for event in profile.events())
    return statistics.median(seconds), float(grown)


def growth(small: FactoredZLoss, large: FactoredZLoss, sizes: tuple[int, int]) -> float:
    """Median seconds of the large layer's step over the small one's, stepping in turn."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(20):
        for layer, n_classes, spent in zip((small, large), sizes, seconds, strict=True):
            spent.append(timed(layer.step, n_classes, 10, with_memory=False)[0])
    return statistics.median(seconds[1]) / statistics.median(seconds[0])


def main() -> int:
    """Print a table; exit status 1 above the aim."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--most", type=int, default=1_000_000)
    most = parser.parse_args().most
    torch.set_num_threads(1)
    layers: dict[int, FactoredZLoss] = {}
    found: dict[str, float] = {}  # seconds at the most classes so far
    print(f"{'classes':>9}  {'layer':<20} {'ms a step':>10} {'MB allocated':>13}")
    for n_classes in (10**k for k in range(3, 7) if 10**k <= most):
        generator = torch.Generator().manual_seed(0)
        layer = FactoredZLoss(DIM, n_classes, lr=LR, generator=generator)
        arms: list[tuple[str, Step, int]] = [("factored Z-loss", layer.step, 200)]
        few = 30 if n_classes <= 10_000 else 3
        weight = layer.v.clone()
        arms += [
            ("dense Z-loss", dense(weight, ZLoss()), few),
            ("log-softmax", dense(weight, F.cross_entropy), few),
            ("sampled softmax", sampled(weight), 50),
        ]
        for name, step, n_steps in arms:
            seconds, grown = timed(step, n_classes, n_steps)
            found[name] = seconds
            if name == "factored Z-loss":
                name += f" ({layer.n_folds} folds)"
            print(f"{n_classes:>9}  {name:<24} {1e3 * seconds:>6.2f} {grown / 1e6:>13.2f}")
        started = time.perf_counter()
        layer.omega += 1e-9  # otherwise there is nothing to fold
        layer.fold()
        layers[n_classes] = layer
        print(f"{n_classes:>9}  {'one fold':<24} {1e3 * (time.perf_counter() - started):>6.2f}")
    if found:
        times = found["log-softmax"] / found["factored Z-loss"]
        print(f"factored Z-loss, {max(layers)} classes: {times:.1f} times as fast as log-softmax")
    if len(layers) < 2 or max(layers) <= 10_000:
        return 0
    ratio = growth(layers[10_000], layers[max(layers)], (10_000, max(layers)))
    print(f"factored Z-loss, {max(layers)} against 10000 classes: {ratio:.2f} (aim {AIM})")
    return 0 if ratio <= AIM else 1


if __name__ == "__main__":
    sys.exit(main())
