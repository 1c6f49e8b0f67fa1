"""Experiment "selfcheck": plant what is known in made-up pools, and check that runs find it and nothing else.

    lengths    a pool of one distribution, cut short and long, influences permuted among documents of a length: what is
               selected differs from random documents in its lengths alone, and the gain is 0
    planted    a pool of six domains, one of them the reference's, and of documents that hold measured text: the domain
               is found and gains, every such document is set aside
    shuffled   the same pool, influences permuted among all documents: the gain is 0

Permuted influences take the place of a run's own before anything is selected; the run "planted" is as any other. Each
permutation is a run of its own, compared with a random control of its own: what one of them selects by chance is no
part of the interval of a single selection. A gain of 0 is one whose interval holds 0.

Decided otherwise: influences of the pool "lengths" as they are. What stands out in one distribution is narrower than
the distribution, and teaches less: gains of -.025 (-.034 to -.015) and -.023 (-.033 to -.013) in two such pools.

Owns the pools' sizes, the runs' settings, and the verdicts; `flows.selfcheck` runs them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure
from pydantic import BaseModel

from quad_tasks.config.compute import ComputeConfig
from quad_tasks.config.load import parse_config
from quad_tasks.config.schema import RunConfig
from quad_tasks.core.evaluation.statistics import Interval
from quad_tasks.experiments.experiment import Tables
from quad_tasks.experiments.lab import plots
from quad_tasks.experiments.lab.planted import (
    Domain,
    Planted,
    Record,
    cut_text,
    draw_text,
    leak_text,
    make_domains,
    name_records,
)
from quad_tasks.manifests.run import Losses
from quad_tasks.runtime.run import pinned_pool
from quad_tasks.stages.bandit.ledger import read_chosen
from quad_tasks.stages.selection.paired_gain import check_equal_steps, paired_gain
from quad_tasks.storage.keys import losses_key, overlap_table_key, report_key, trained_key
from quad_tasks.storage.manifest import read_manifest
from quad_tasks.storage.pool_versions import read_version
from quad_tasks.storage.positions import read_part, read_table
from quad_tasks.storage.store import Store, open_store

SEED = 0
MEASURED = "measured"
"""The held-out domain whose loss is the reference loss."""
N_DOMAINS = 6
GOOD = "domain-0"
"""The planted domain: the reference's."""
SHORT_WORDS, LONG_WORDS = 24, 72
"""Words of a document cut short and cut long; at 8 words a document has too little context to be the same text."""
LENGTHS_WORDS = 24_192
"""Words of each of the two texts of one distribution; a multiple of both lengths."""
DOMAIN_DOCUMENTS = 320
LEAKS = 60
AROUND_WORDS = 12
"""Words around a measured text that a pool document hides."""
REFERENCE_DOCUMENTS = 120
MEASURED_DOCUMENTS = 120
REPEATS = 4
"""Permutations of influences, whose selections the first seed trains on, and random controls, each of its own seed."""
LEAST_SHARE = 0.8
"""Of the selected tokens that the planted domain must have; it has less than a sixth of the pool's."""
SETTINGS: dict[str, Any] = {
    "seed": SEED,
    "model": {
        "window_tokens": 128,
        "fresh": {
            "vocabulary": 600, "width": 64, "layers": 2, "heads": 2, "key_value_heads": 2, "mlp_width": 172,
            "train_tokens": 100_000,
        },
    },
    "embedding": {"dimension": 32},
    "clustering": {"arms": 24},
    "factors": {"sample_documents": 256},
    "bandit": {"pilot_documents": 256, "max_scored_share": 0.5, "scorer": "exact"},
    "selection": {"budget_tokens": 8_064, "general_share": 0.0},
    "training": {"seeds": REPEATS, "batch_tokens": 256},
}  # fmt: skip
ONE_ROUND: dict[str, Any] = {
    "bandit": {"pilot_documents": 960, "max_rounds": 1, "max_scored_share": 1.0, "scorer": "exact"}
}
"""Where influences are permuted: a pilot alone, since later rounds would narrow to arms by chance."""
LENGTHS: dict[str, Any] = {"selection": {**SETTINGS["selection"], "budget_tokens": 5_504}}
"""Of the pool "lengths": what its pilot puts above τ."""
ALONE: dict[str, Any] = {"training": {**SETTINGS["training"], "seeds": 1, "control": False}}
"""Of a run that is compared with another one's controls."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One check.

    Attributes:
        check: what was planted.
        expected: what must be found.
        found: what was.
        holds: whether it is what must be.
    """

    check: str
    expected: str
    found: str
    holds: bool


@dataclass(frozen=True, slots=True)
class Leaks:
    """Documents that hold measured text: planted, set aside of these, and set aside though they hold none."""

    planted: int
    set_aside: int
    others_set_aside: int


@dataclass(frozen=True, slots=True)
class Shares:
    """What a source has of the pool's and of the selected tokens."""

    pool: float
    selected: float


@dataclass(frozen=True)
class Result:
    """Result of the experiment.

    Attributes:
        runs: names of the runs, by what they are for.
        gain: reference loss saved against the random control, nats per token: `lengths`, `planted`, `shuffled`.
        short: share of the documents cut short, in the pool "lengths" and the first of its runs.
        domain: share of the planted domain, in the run "planted".
        leaks: documents that hold measured text, in the run "planted".
        verdicts: the four.
    """

    runs: dict[str, str]
    gain: dict[str, Interval]
    short: Shares
    domain: Shares
    leaks: Leaks
    verdicts: list[Verdict]


@dataclass(frozen=True)
class Runs:
    """The configurations of the runs, and which documents of the run "planted" hold measured text.

    The first of `lengths` trains the controls of all of them; `planted` trains those of `shuffled`.
    """

    lengths: list[RunConfig]
    planted: RunConfig
    shuffled: list[RunConfig]
    leaked: frozenset[str]


class _Stage(BaseModel):
    gain: Interval


class _Report(BaseModel):
    """The part of a run's `report.json` that the experiment reads."""

    stages: list[_Stage]


def plant_lengths(seed: int = SEED) -> Planted:
    """Make a pool of one distribution, half of its words cut short and half cut long."""
    generator = np.random.default_rng([seed, 0])
    (domain,) = make_domains(1, generator)
    pool: list[Record] = []
    for name, n_words in (("short", SHORT_WORDS), ("long", LONG_WORDS)):
        pool += name_records(cut_text(draw_text(domain, LENGTHS_WORDS, generator), n_words), name)
    reference = _draw_records(domain, REFERENCE_DOCUMENTS, "reference", generator)
    return Planted(pool, reference, _draw_records(domain, MEASURED_DOCUMENTS, "measured", generator))


def plant_domains(seed: int = SEED) -> Planted:
    """Make a pool of six domains with the reference's among them, and of documents that hold measured text."""
    generator = np.random.default_rng([seed, 1])
    domains = make_domains(N_DOMAINS, generator)
    pool = [record for domain in domains for record in _draw_records(domain, DOMAIN_DOCUMENTS, domain.name, generator)]
    good = next(domain for domain in domains if domain.name == GOOD)
    reference = _draw_records(good, REFERENCE_DOCUMENTS, "reference", generator)
    measured = _draw_records(good, MEASURED_DOCUMENTS, "measured", generator)
    texts = [
        leak_text(record["text"], draw_text(domains[-1], AROUND_WORDS, generator), kind)
        for kind, record in enumerate(measured[:LEAKS])
    ]
    leaked = name_records(texts, "leaked")
    return Planted([*pool, *leaked], reference, measured, frozenset(record["id"] for record in leaked))


def _draw_records(domain: Domain, n_documents: int, source: str, generator: np.random.Generator) -> list[Record]:
    lengths = generator.integers(SHORT_WORDS, LONG_WORDS + 1, n_documents).tolist()
    return name_records([" ".join(draw_text(domain, n_words, generator)) for n_words in lengths], source)


def prepare(workspace: str, compute: ComputeConfig, name: str) -> Runs:
    """Write both pools into the workspace, and configure the runs.

    Args:
        workspace: path or URI.
        compute: where the runs compute.
        name: of this self-check; no other one shares its pools or runs.
    """
    store, planted = open_store(workspace), plant_domains()
    where = {"workspace": workspace, "compute": compute.model_dump()}
    one = {**where, **_write_inputs(store, f"{name}-lengths", plant_lengths())}
    other = {**where, **_write_inputs(store, f"{name}-planted", planted)}
    return Runs(
        lengths=[
            _configure(f"{name}-lengths-{number}", one, ONE_ROUND | LENGTHS | (ALONE if number else {}))
            for number in range(REPEATS)
        ],
        planted=_configure(f"{name}-planted", other, {}),
        shuffled=[_configure(f"{name}-shuffled-{number}", other, ONE_ROUND | ALONE) for number in range(REPEATS)],
        leaked=planted.leaked,
    )


def _write_inputs(store: Store, name: str, planted: Planted) -> dict[str, Any]:
    """Write a pool's files; return the sections of a configuration that name them."""
    files = {"pool": planted.pool, "reference": planted.reference, MEASURED: planted.measured}
    uris = {}
    for kind, records in files.items():
        key = f"experiments/selfcheck/inputs/{name}/{kind}.jsonl"
        store.put(key, "".join(json.dumps(record) + "\n" for record in records).encode())
        uris[kind] = str(store.local_path(key) or f"{store.uri}/{key}")
    heldout = {"documents_per_domain": MEASURED_DOCUMENTS, "reference_domain": MEASURED}
    return {
        "pool": {"name": name, "inputs": [uris["pool"]]},
        "reference": {"inputs": [uris["reference"]]},
        "heldout": {"inputs": [uris[MEASURED]], **heldout},
    }


def _configure(run: str, inputs: Mapping[str, Any], changes: Mapping[str, Any]) -> RunConfig:
    return parse_config({"run": run, **inputs, **SETTINGS, **changes}, f"self-check {run}")


def shuffle_influence(tables: Sequence[pa.Table], seed: Sequence[int], within_source: bool) -> list[pa.Table]:
    """Permute influences among the documents of a round: what a score says of its document is lost.

    Args:
        tables: the round's scores, a table a chunk.
        seed: of the permutation.
        within_source: whether documents of a source exchange influences among themselves alone.
    """
    generator, joined = np.random.default_rng(seed), pa.concat_tables(tables)
    influence = joined["influence"].to_numpy().copy()
    source = np.array(joined["source"].to_pylist() if within_source else [""] * len(influence))
    for one in np.unique(source):
        influence[source == one] = generator.permutation(influence[source == one])
    parts = np.split(influence, np.cumsum([len(table) for table in tables])[:-1])
    return [
        table.set_column(table.schema.get_field_index("influence"), "influence", pa.array(part))
        for table, part in zip(tables, parts, strict=True)
    ]


def describe(runs: Runs) -> Result:
    """Read what the runs found of what was planted, and judge it."""
    store = open_store(runs.planted.workspace)
    report = _Report.model_validate_json(store.get(report_key(runs.planted.run)))
    gain = {
        "lengths": _gain_of_repeats(store, runs.lengths[0], runs.lengths),
        "planted": report.stages[-1].gain,
        "shuffled": _gain_of_repeats(store, runs.planted, runs.shuffled),
    }
    aside = set(read_table(store, overlap_table_key(runs.planted.run), ["id"])["id"].to_pylist())
    leaks = Leaks(len(runs.leaked), len(aside & runs.leaked), len(aside - runs.leaked))
    short, domain = _shares(store, runs.lengths[0].run, "short"), _shares(store, runs.planted.run, GOOD)
    names = {"planted": runs.planted.run}
    for kind, configs in (("lengths", runs.lengths), ("shuffled", runs.shuffled)):
        names |= {f"{kind} {number}": config.run for number, config in enumerate(configs)}
    return Result(names, gain, short, domain, leaks, judge(gain, short, domain, leaks))


def _gain_of_repeats(store: Store, control: RunConfig, repeats: Sequence[RunConfig]) -> Interval:
    """Compare what each run selected with a random control of its own, those that one run trained."""
    random = [_losses(store, control.run, f"random-{number}") for number in range(len(repeats))]
    selected = [_losses(store, config.run, "selected-0") for config in repeats]
    check_equal_steps([one.training for one in [*random, *selected] if one.training])
    gain = paired_gain([one.documents for one in random], [one.documents for one in selected], {})
    assert gain is not None  # many documents are planted
    return gain


def _losses(store: Store, run: str, name: str) -> Losses:
    return read_manifest(Losses, store, losses_key(trained_key(run, 0, name)))


def _shares(store: Store, run: str, source: str) -> Shares:
    version = pinned_pool(store, run)
    assert version is not None, "a run that has selected keeps to a pool version"
    parts = [read_part(store, part, ["source", "n_tokens"]) for part in read_version(store, version).parts]
    return Shares(_share(pa.concat_tables(parts), source), _share(read_chosen(store, run, 1), source))


def _share(documents: pa.Table, source: str) -> float:
    """Return a source's share of the tokens of some documents."""
    n_tokens = documents["n_tokens"].to_numpy()
    own = np.array(documents["source"].to_pylist()) == source
    return float(n_tokens[own].sum() / max(1, n_tokens.sum()))


def judge(gain: Mapping[str, Interval], short: Shares, domain: Shares, leaks: Leaks) -> list[Verdict]:
    """Give the four verdicts.

    Args:
        gain: by run, as in `Result`.
        short: share of the documents cut short.
        domain: share of the planted domain.
        leaks: documents that hold measured text.
    """
    found = {name: f"{one.mean:+.3f} ({one.low:+.3f} to {one.high:+.3f})" for name, one in gain.items()}
    is_zero = {name: one.low <= 0 <= one.high for name, one in gain.items()}
    return [
        Verdict(
            "one distribution, cut to two lengths",
            "gain 0",
            f"gain {found['lengths']}; short documents {short.pool:.1%} of the pool, {short.selected:.1%} selected",
            is_zero["lengths"],
        ),
        Verdict(
            "documents that hold measured text",
            f"{leaks.planted} set aside, no other",
            f"{leaks.set_aside} set aside, {leaks.others_set_aside} others",
            (leaks.set_aside, leaks.others_set_aside) == (leaks.planted, 0),
        ),
        Verdict("influences permuted among documents", "gain 0", f"gain {found['shuffled']}", is_zero["shuffled"]),
        Verdict(
            "one domain in six is the reference's",
            f"gain above 0, at least {LEAST_SHARE:.0%} selected",
            f"gain {found['planted']}; {domain.pool:.1%} of the pool, {domain.selected:.1%} selected",
            gain["planted"].low > 0 and domain.selected >= LEAST_SHARE,
        ),
    ]


def find_failures(result: Result) -> list[str]:
    """Name the checks that do not hold."""
    return [verdict.check for verdict in result.verdicts if not verdict.holds]


def lay_out(result: Result) -> Tables:
    """Lay out the verdicts; a gain is reference loss saved, nats per token, with its 95 % interval."""
    rows = [
        {
            "planted": verdict.check,
            "expected": verdict.expected,
            "found": verdict.found,
            "": "holds" if verdict.holds else "FAILS",
        }
        for verdict in result.verdicts
    ]
    return {"What was planted, and what was found (gain: nats per token less than random, 95 % interval)": rows}


def draw(result: Result) -> dict[str, Figure]:
    """Draw the three gains with their intervals."""
    figure, (axes,) = plots.page_figure(1.6)
    colours = [plots.GREY, plots.RED, plots.GREY]
    plots.draw_bars(axes, list(result.gain), list(result.gain.values()), colours)
    axes.axvline(0, color=plots.BLACK, linewidth=0.9, linestyle=":")
    plots.label(axes, "reference loss saved against random tokens (nats per token)")
    return {"selfcheck": figure}
