"""How much of a comparison's wall time is fit, predict and score: at least 95 % is the aim.

    python bench/overhead.py

Both arms of the task train on the digits; every fit takes well over 0.2 s. The clock runs from
the first trial to the last row in the ledger; reading the data and the report are not in it.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from etude.lab.execute import units
from etude.lab.ledger import Ledger
from etude.lab.plan import make_plan
from etude.lab.row import Run
from etude.lab.trial import Trial, now

AIM = 0.95


def main() -> int:
    """Print the share; exit status 1 below the aim."""
    plan, data = make_plan("digits", methods=["comp_sum_loss"], seeds=3, tune=2)
    with tempfile.TemporaryDirectory() as folder:
        book = Ledger(str(Path(folder) / "ledger.sqlite"))
        book.start(Run(id=plan.id, command="bench", spec=plan.spec(), started=now()))
        busy, fits, started = 0.0, [], time.perf_counter()
        for seed, name in units(plan):
            trial = Trial(plan, data, name, seed, [], book.add)
            trial.run()
            busy += trial.busy_s
        wall = time.perf_counter() - started
        fits = [row.fit_s for row in book.rows(plan.id)]
    share = busy / wall
    print(
        f"{share:.1%} of {wall:.1f} s inside fit, predict and score; shortest fit {min(fits):.2f} s"
    )
    return 0 if share >= AIM else 1


if __name__ == "__main__":
    sys.exit(main())
