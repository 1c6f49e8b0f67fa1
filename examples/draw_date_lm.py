"""Draw DATE-LM's subset from influences: one sequence in ten by Gumbel-top-k, as its `methods/select_data.py` does.

    quad export date-lm --workspace date-lm/workspace --influence --out date-lm/influence
    python examples/draw_date_lm.py date-lm/influence/influence.parquet date-lm/pool date-lm

writes under `date-lm/` the scores, `metrics.npy`, one a sequence in the order of the pool, which DATE-LM's own script
takes in place of any method's (`metrics_format: npy`), and the numbers of the sequences drawn, `selected.npy`.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq

SHARE = 10
"""Of so many sequences one is drawn."""
TEMPERATURE, SEED = 0.5, 42
"""DATE-LM's own."""


def main() -> None:
    """Write the scores and what is drawn by them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name in ("influence", "pool", "folder"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--temperature", type=float, default=TEMPERATURE)
    parser.add_argument("--seed", type=int, default=SEED)
    asked = parser.parse_args()
    scores, without = order_scores(asked.influence, ds.dataset(asked.pool).count_rows())
    drawn = gumbel_top_k(scores, len(scores) // SHARE, asked.temperature, np.random.default_rng(asked.seed))
    np.save(asked.folder / "metrics.npy", scores)
    np.save(asked.folder / "selected.npy", drawn)
    print(f"{len(drawn):,} of {len(scores):,} sequences drawn; {without:,} had no influence and count as the lowest")


def order_scores(influence: Path, n_sequences: int) -> tuple[np.ndarray, int]:
    """Put influences in the order of the sequences; one that was set aside, as a duplicate is, has the lowest.

    Returns:
        [N] float64, and how many had none.
    """
    table = pq.read_table(influence, columns=["id", "influence"])
    scores = np.full(n_sequences, np.nan)
    scores[np.array(table["id"].to_pylist(), dtype=np.int64)] = table["influence"].to_numpy()
    without = np.isnan(scores)
    scores[without] = scores[~without].min()
    return scores, int(without.sum())


def gumbel_top_k(scores: np.ndarray, k: int, temperature: float, generator: np.random.Generator) -> np.ndarray:
    """Draw k items without replacement, each in turn by a softmax of standardised scores over the temperature.

    The largest sums of logit and standard Gumbel noise are that draw (arXiv 1903.06059).

    Returns:
        [k] numbers of the items drawn, ascending.
    """
    logits = (scores - scores.mean()) / scores.std() / temperature
    return np.sort(np.argpartition(logits + generator.gumbel(size=len(logits)), -k)[-k:])


if __name__ == "__main__":
    main()
