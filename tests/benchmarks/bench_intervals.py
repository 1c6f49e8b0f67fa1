"""How often a gain's 95 % interval holds the true gain: simulated seeds and measured documents, each with effects.

    python tests/benchmarks/bench_intervals.py [--trials N] [--out FILE]

Prints, and writes with `--out`: `cases`, each with the share `covered`; `between`: the least and the most of them.
"""

import argparse
import itertools
import json
import shlex
import sys
from pathlib import Path

sys.path += [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from bench_selection import describe_environment
from planted_gains import share_covered

REPEATS, DOCUMENTS = (1, 2, 3, 5), (8, 16, 30, 60, 200)
SEED_DEVIATIONS = (0.0, 0.05, 0.2)
DEGREES = (None, 4.0)
"""Documents' effects: normal, and with the heavy ends of Student's t of four degrees of freedom."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    for repeats, documents, degrees in itertools.product(REPEATS, DOCUMENTS, DEGREES):
        for deviation in SEED_DEVIATIONS[: 1 if repeats == 1 else None]:  # one seed tells nothing of others
            covered = share_covered(repeats, documents, deviation, arguments.trials, degrees)
            rows.append(
                {"seeds": repeats, "documents": documents, "seed_deviation": deviation, "degrees": degrees,
                 "covered": round(covered, 4)}
            )  # fmt: skip
    shares = sorted(row["covered"] for row in rows)
    command = shlex.join(["python", "tests/benchmarks/bench_intervals.py", *sys.argv[1:]])
    body = {"environment": describe_environment(command), "trials": arguments.trials,
            "between": [shares[0], shares[-1]], "cases": rows}  # fmt: skip
    text = json.dumps(body, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
