"""How near to the Welch bound equiangular basis vectors come, and how long that takes.

    python bench/equiangular.py [--vectors 10000] [--dim 500] [--minutes 10]

No N > d unit vectors in d dimensions have a largest |cosine| below the Welch bound,
sqrt((N - d) / (d (N - 1))). From the loosest aim to the tightest, in multiples of that bound, the
vectors are generated with the seed 0; printed are the aim, the largest |cosine| measured in
float64, its ratio to the bound, and the seconds, for as long as the time given lasts. The last
line is the best that was reached; random vectors stand first for comparison.
"""

from __future__ import annotations

import argparse
import math
import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from etude.core import EtudeError
from etude.heads import generate_ebv

AIMS = (3.0, 2.5, 2.2, 2.0, 1.8, 1.65, 1.5)
SLICE = 1024  # rows of the Gram matrix held at a time


def coherence(vectors: Tensor) -> float:
    """The largest |cosine| of two different rows."""
    unit = F.normalize(vectors.double(), dim=1)
    largest = 0.0
    for start in range(0, len(unit), SLICE):
        cosines = unit[start : start + SLICE] @ unit.T
        cosines.diagonal(start).zero_()
        largest = max(largest, float(cosines.abs().max()))
    return largest


def main() -> int:
    """Print a table; exit status 1 if no aim was reached."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--vectors", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=500)
    parser.add_argument("--minutes", type=float, default=10.0)
    arguments = parser.parse_args()
    n, dim = arguments.vectors, arguments.dim
    bound = math.sqrt((n - dim) / (dim * (n - 1)))
    generator = torch.Generator().manual_seed(0)
    drawn = coherence(torch.randn(n, dim, generator=generator))
    print(f"{n} vectors in {dim} dimensions; the Welch bound is {bound:.4f}")
    print(f"{'aim':>8}  {'max |cosine|':>12}  {'of the bound':>12}  {'seconds':>8}")
    print(f"{'random':>8}  {drawn:>12.4f}  {drawn / bound:>12.2f}")
    best, started = math.inf, time.perf_counter()
    for aim in AIMS:
        begun = time.perf_counter()
        if begun - started > 60 * arguments.minutes:
            break
        try:
            vectors = generate_ebv(
                n, dim, aim * bound, n_steps=300, generator=torch.Generator().manual_seed(0)
            )
        except EtudeError as error:
            print(f"{aim * bound:>8.4f}  {error}")
            break
        reached, seconds = coherence(vectors), time.perf_counter() - begun
        best = min(best, reached)
        print(f"{aim * bound:>8.4f}  {reached:>12.4f}  {reached / bound:>12.2f}  {seconds:>8.1f}",
              flush=True)  # fmt: skip
    if best == math.inf:
        return 1
    print(f"best: {best:.4f}, {best / bound:.2f} times the Welch bound {bound:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
