"""Time and memory of a decoupled softmax step with all labels and with sampled negatives.

    python bench/decoupled_labels.py [--most 100000]

One step: 32 rows of 64 numbers, a table of label embeddings with sparse gradients, five positives
a row; the loss, its gradients, and plain gradient descent on the labels that it touched. With all
labels every score is formed; sampled, those of the positives and of 1,000 labels drawn for the
batch. A time is the median of the steps, memory the sum of all that one step allocates, as torch's
profiler counts it. The last line is the ratio of both at the most labels.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from etude.losses import DecoupledSoftmaxLoss

DIM, BATCH, POSITIVES, SAMPLED, TEMPERATURE, LR = 64, 32, 5, 1000, 0.05, 0.1


def steps(n_labels: int) -> dict[str, Callable[[], None]]:
    """The two kinds of step, on the same data."""
    generator = torch.Generator().manual_seed(0)
    table = F.normalize(torch.randn(n_labels, DIM, generator=generator), dim=1)
    table.requires_grad_(True)
    rows = F.normalize(torch.randn(BATCH, DIM, generator=generator), dim=1).requires_grad_(True)
    positives = torch.zeros(BATCH, n_labels, dtype=torch.bool)
    ids = torch.randint(n_labels, (BATCH, POSITIVES), generator=generator)
    positives.scatter_(1, ids, True)
    loss = DecoupledSoftmaxLoss(temperature=TEMPERATURE, generator=generator)

    def descend() -> None:
        with torch.no_grad():
            assert table.grad is not None
            if table.grad.is_sparse:
                touched = table.grad.coalesce()
                table.index_add_(0, touched.indices()[0], touched.values(), alpha=-LR)
            else:
                table.add_(table.grad, alpha=-LR)
        table.grad = rows.grad = None

    def full() -> None:
        loss(rows @ table.T, positives).backward()  # type: ignore[no-untyped-call]
        descend()

    def encode(labels: torch.Tensor) -> torch.Tensor:
        return F.embedding(labels, table, sparse=True)

    def sampled() -> None:
        found = loss.sampled(rows, positives, encode, n_negatives=SAMPLED)
        found.backward()  # type: ignore[no-untyped-call]
        descend()

    return {"all labels": full, f"{SAMPLED} sampled": sampled}


def timed(step: Callable[[], None], n_steps: int) -> tuple[float, float]:
    """Median seconds of a step and the bytes that one step allocates."""
    seconds = []
    for i in range(n_steps + 2):
        started = time.perf_counter()
        step()
        if i >= 2:  # the first two warm up
            seconds.append(time.perf_counter() - started)
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    grown = sum(max(0, event.self_cpu_memory_usage) for event in profile.events())
    return statistics.median(seconds), float(grown)


def main() -> int:
    """Print a table and the ratios at the most labels."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--most", type=int, default=100_000)
    most = parser.parse_args().most
    torch.set_num_threads(1)
    print(f"{'labels':>9}  {'scores of':<14} {'ms a step':>10} {'MB allocated':>13}")
    last: list[tuple[float, float]] = []
    for n_labels in (n for n in (1_000, 10_000, 100_000, 1_000_000) if n <= most):
        last = []
        for name, step in steps(n_labels).items():
            last.append(timed(step, 20))
            seconds, grown = last[-1]
            print(f"{n_labels:>9}  {name:<14} {1e3 * seconds:>10.2f} {grown / 1e6:>13.2f}")
    if last:
        (slow, large), (fast, small) = last
        print(f"sampled against all: {slow / fast:.1f} times as fast, {large / small:.1f} times "
              "less memory")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
