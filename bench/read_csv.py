"""How long, and in how much memory, etude reads a CSV of 100,000 rows by 100 columns.

Run: python bench/read_csv.py [--rows N] [--columns N]
Limits: 3 s, 2 GB. The file is written to a temporary folder; the reading is measured in a fresh
process: wall time of ``load_dataset`` without the import of etude, and the process's peak memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

READ = """
import json, resource, sys, time
start = time.perf_counter()
from etude.lab.data import load_dataset
imported, cpu = time.perf_counter(), time.process_time()
data = load_dataset(sys.argv[1])
read = time.perf_counter()
unit = 1 if sys.platform == "darwin" else 1024
print(json.dumps({
    "shape": list(data.x.shape), "classes": data.n_classes, "import_s": imported - start,
    "read_s": read - imported, "cpu_s": time.process_time() - cpu,
    "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
}))
"""


def write_csv(path: Path, rows: int, columns: int, seed: int = 0) -> None:
    """Normal numbers with six decimals, and a target of three classes in the last column."""
    generator = np.random.default_rng(seed)
    names = [f"x{j}" for j in range(columns - 1)] + ["y"]
    with path.open("w") as file:
        file.write(",".join(names) + "\n")
        for start in range(0, rows, 1000):
            n = min(1000, rows - start)
            x = generator.standard_normal((n, columns - 1))
            y = generator.integers(0, 3, n)
            file.writelines(
                ",".join(f"{v:.6f}" for v in row) + f",{label}\n"
                for row, label in zip(x.tolist(), y.tolist(), strict=True)
            )


def measure(path: Path) -> dict[str, float]:
    """Read the file in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def main() -> int:
    """Print the figures; status 1 where a limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--columns", type=int, default=100)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        write_csv(path, asked.rows, asked.columns)
        found = measure(path)
        size = path.stat().st_size
    print(f"file         {size / 1e6:8.1f} MB, {asked.rows:,} x {asked.columns}")
    print(f"import       {found['import_s']:8.2f} s")
    print(f"read         {found['read_s']:8.2f} s   (limit 3)")
    print(f"  processor  {found['cpu_s']:8.2f} s   (much less than the above: the machine is busy)")
    print(f"peak memory  {found['peak_bytes'] / 1e9:8.2f} GB  (limit 2)")
    return int(found["read_s"] > 3 or found["peak_bytes"] > 2e9)


if __name__ == "__main__":
    sys.exit(main())
