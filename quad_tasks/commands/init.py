"""A first configuration for somebody's files: what their fields are called, and sizes that suit what is there.

Owns the guesses and says each one: which field was taken for what and why, what could not be decided, which shard
cannot be read. Refuses to overwrite a file. The configuration is written with its reasons as comments, and loads.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from quad_tasks.commands.estimates.advice import advised_arms, advised_pilot
from quad_tasks.commands.input_sample import Sample, look_at, value_at
from quad_tasks.commands.schema import write_schema
from quad_tasks.config.load import parse_config
from quad_tasks.config.schema import ConfigError, TrainingConfig
from quad_tasks.config.values import NAME_PATTERN
from quad_tasks.runtime.check_environment import check_inputs
from quad_tasks.storage.input_documents import InputError, expand_inputs

NAMES = {
    "text": ("text", "content", "body", "raw_content", "document", "article", "passage", "message", "code"),
    "id": ("id", "uid", "uuid", "guid", "doc_id", "docid", "document_id", "_id", "key", "hash", "url"),
    "source": ("source", "origin", "dataset", "subset", "corpus", "collection", "domain", "site", "category"),
    "metadata": ("metadata", "meta", "attributes", "extra"),
    "domain": ("domain",),
}
"""What each field is called elsewhere, likeliest first."""
BYTES_PER_TOKEN = 4.0
"""Of English by common tokenizers; `quad plan` counts with the run's own."""
LEAST_PRESENT = 0.9
"""Share of records that must have a field for it to be taken."""
LONGEST_LABEL = 100
"""Characters of a source's or an id's longest name."""
LEAST_STEPS = 12
"""Of a training; fewer than `FEWEST_STEPS` would be a finding."""
LONGEST_WINDOW = 512
MOST_SOURCES = 0.2
"""Distinct values per record, beyond which a field does not name sources."""


@dataclass
class Column:
    """What the sample holds in one field.

    Attributes:
        name: the field, dotted where nested.
        kinds: types seen.
        present: share of records that have it.
        distinct: distinct values per record that has it.
        characters: mean length as text.
        longest: greatest length as text.
    """

    name: str
    kinds: set[str]
    present: float
    distinct: float
    characters: float
    longest: int


@dataclass
class Inputs:
    """Some of the user's files and what their records' fields were taken for.

    Attributes:
        patterns: files or globs to be configured, those that can be read.
        sample: what was seen of them.
        columns: by field.
        fields: our name -> theirs, those found.
        undecided: what was not found, in words.
    """

    patterns: list[str]
    sample: Sample
    columns: list[Column]
    fields: dict[str, str]
    undecided: list[str] = field(default_factory=list)


def write_config(
    files: Sequence[str], out: Path, reference: Sequence[str] = (), heldout: Sequence[str] = (), run: str = "run"
) -> dict[str, Any]:
    """Look at files and write a commented configuration for them, and its JSON Schema beside it, for editors.

    Args:
        files: paths, URIs or globs of the pool's shards.
        out: where the configuration goes.
        reference: the same of the reference set.
        heldout: the same of held-out domains.
        run: the run's name.

    Returns:
        `config` (its path), `pool` (files, documents, tokens, columns), `fields` taken, `undecided`, `broken` files
        and `bad` records by reason.

    Raises:
        ConfigError: the file exists already, no file can be read, or a run cannot have this name.
        InputError: a pattern matches nothing.
    """
    if not re.fullmatch(NAME_PATTERN, run):
        raise ConfigError(f"--run: expected at most 80 letters, digits, _ . and -, found {run!r}")
    if out.exists():
        raise ConfigError(f"{out}: expected no file, found one; give another with --out")
    pool = _look(files, "pool")
    others = {name: _look(given, name) for name, given in (("reference", reference), ("heldout", heldout)) if given}
    undecided = [*pool.undecided, *(line for inputs in others.values() for line in inputs.undecided)]
    if not reference:
        undecided.append(
            "reference.inputs: what should the model become good at? Put a few hundred such texts in reference.jsonl"
        )
    text = _render(run, pool, others, undecided)
    parse_config(yaml.safe_load(text), str(out))
    out.write_text(f"{write_schema(out.absolute().parent)}\n{text}", encoding="utf-8")
    return {
        "config": str(out),
        "pool": {
            "files": pool.sample.files - len(pool.sample.broken),
            "documents": pool.sample.documents,
            "tokens": _tokens(pool),
            "counted": pool.sample.exact,
            "columns": [{**vars(column), "kinds": sorted(column.kinds)} for column in pool.columns],
        },
        "fields": pool.fields,
        "undecided": undecided,
        "broken": {uri: why for inputs in (pool, *others.values()) for uri, why in inputs.sample.broken.items()},
        "bad": dict(pool.sample.bad),
    }


def _look(files: Sequence[str], which: str) -> Inputs:
    check_inputs({f"{which}.inputs": files})
    uris = expand_inputs(files)
    sample = look_at(uris)
    if not sample.records:
        reasons = "\n".join(sample.broken.values()) or f"bad records: {dict(sample.bad)}"
        raise ConfigError(f"{which}: expected records, found none in {len(uris)} files\n{reasons}")
    patterns = _patterns(files, [uri for uri in uris if uri not in sample.broken], bool(sample.broken))
    inputs = Inputs(patterns, sample, _columns(sample.records), {})
    _find_fields(inputs, which)
    if sample.broken and any(set("*?[") & set(file) for file in files):
        inputs.undecided.append(
            f"{which}.inputs: files stand there one by one, since some are left out. Files added later are not seen "
            "until your pattern stands there again, and the broken files elsewhere"
        )
    return inputs


def _patterns(files: Sequence[str], good: Sequence[str], some_broken: bool) -> list[str]:
    """Keep what the user gave, unless a file of it is broken; name a folder's many files by a glob that is theirs."""
    given = [file if "://" in file else str(Path(file).absolute()) for file in files]
    patterns = list(good) if some_broken else given
    if len(patterns) < 4 or some_broken:
        return patterns
    folder, _, name = patterns[0].rpartition("/")
    glob = f"{folder}/*.{name.partition('.')[2]}"
    try:
        same = all(fnmatch(p, glob) for p in patterns) and set(expand_inputs([glob])) == set(good)
    except InputError:
        same = False
    return [glob] if same else patterns


def _columns(records: Sequence[dict[str, Any]]) -> list[Column]:
    values: dict[str, list[Any]] = {}
    for record in records:
        for name, value in record.items():
            values.setdefault(name, []).append(value)
            if isinstance(value, dict):
                for inner, nested in value.items():
                    values.setdefault(f"{name}.{inner}", []).append(nested)
    columns = []
    for name, given in values.items():
        held = [value for value in given if value is not None]
        if not held:
            continue
        as_text = [value if isinstance(value, str) else json.dumps(value, default=str) for value in held]
        lengths = [len(text) for text in as_text]
        present, distinct = len(held) / len(records), len(set(as_text)) / len(held)
        kinds = {_kind(value) for value in held}
        columns.append(Column(name, kinds, present, distinct, float(np.mean(lengths)), max(lengths)))
    return columns


def _kind(value: Any) -> str:
    names = {str: "text", bool: "boolean", int: "integer", float: "number", dict: "object", list: "list"}
    return names.get(type(value), type(value).__name__)


def _find_fields(inputs: Inputs, which: str) -> None:
    """Take each field by its name where that fits its values, else by its values."""
    columns = inputs.columns
    texts = [c for c in columns if c.kinds == {"text"} and c.present >= LEAST_PRESENT]
    labels = [c for c in texts if c.longest <= LONGEST_LABEL]
    whole = [c for c in columns if c.kinds <= {"text", "integer"} and c.present >= LEAST_PRESENT]
    unique = [c for c in whole if c.distinct > 1 - 1e-9 and c.longest <= 10 * LONGEST_LABEL]
    text = _named(texts, "text") or max(texts, key=lambda c: c.characters, default=None)
    if text is None:
        raise ConfigError(
            f"{which}: expected a field with text in most records, found "
            + (", ".join(f"{c.name} ({'/'.join(sorted(c.kinds))}, {c.present:.0%})" for c in columns) or "none")
        )
    inputs.fields["text"] = text.name
    unique = [c for c in unique if c is not text]
    identity = _named(unique, "id") or min((c for c in unique if c in labels), key=lambda c: c.longest, default=None)
    few = [c for c in labels if c.distinct <= MOST_SOURCES or c.distinct * len(inputs.sample.records) <= 1.5]
    source = _named(few, "source") or (few[0] if len(few) == 1 else None)
    metadata = _named([c for c in columns if "object" in c.kinds], "metadata")
    domain = _named(few, "domain") if which == "heldout" else None
    for ours, found in (("id", identity), ("source", source), ("metadata", metadata), ("domain", domain)):
        if found is not None:
            inputs.fields[ours] = found.name
    if which != "pool":
        return
    if identity is None:
        named = ", ".join(c.name for c in unique)
        inputs.undecided.append(
            "pool.fields.id: "
            + (f"which of {named} identifies a record?" if unique else "no field differs in every record;")
            + " Until then ids come from the texts"
        )
    if source is None:
        candidates = ", ".join(c.name for c in few)
        inputs.undecided.append(
            "pool.fields.source: "
            + (f"which of {candidates} names where a text came from?" if few else "no field names sources")
            + " Until then a document's source is its file's name"
        )


def _named(columns: Sequence[Column], what: str) -> Column | None:
    """Find the column of a known name; for an id, else one whose name ends in one: `doc_uid`."""
    own = [(column.name.rpartition(".")[2].lower(), column) for column in columns]
    exact = [column for name in NAMES[what] for found, column in own if found == name]
    ending = [column for name in NAMES["id"] for found, column in own if found.endswith((f"_{name}", f"-{name}"))]
    return next(iter([*exact, *(ending if what == "id" else ())]), None)


def _tokens(inputs: Inputs) -> int:
    sample = inputs.sample
    texts = [t for r in sample.records if isinstance(t := value_at(r, inputs.fields["text"]), str)]
    share = sum(len(text.encode(errors="replace")) for text in texts) / max(1, sample.kept_bytes)
    return round(sample.record_bytes * share / BYTES_PER_TOKEN)


def _render(run: str, pool: Inputs, others: dict[str, Inputs], undecided: Sequence[str]) -> str:
    """Write the configuration with its reasons."""
    documents, tokens = pool.sample.documents, max(1, _tokens(pool))
    files = pool.sample.files - len(pool.sample.broken)
    counted = "counted" if pool.sample.exact else f"estimated from {pool.sample.files_read} files"
    arms = advised_arms(documents)
    per_arm, pilot = documents / arms, advised_pilot(arms, documents)
    m = 16 if per_arm >= 64 else 4
    budget = _round(max(1, tokens // 20))
    lengths = sorted(len(str(value_at(r, pool.fields["text"]))) / BYTES_PER_TOKEN for r in pool.sample.records)
    window = int(np.clip(2 ** math.ceil(math.log2(max(2, lengths[len(lengths) * 3 // 4]))), 64, LONGEST_WINDOW))
    seen = "\n".join(
        f"#   {_printable(c.name)}: {'/'.join(sorted(c.kinds))}, in {c.present:.0%} of the records, "
        f"{c.characters:,.0f} characters"
        for c in pool.columns
    )
    notes = [*undecided, *(f"left out, cannot be read: {why}" for why in pool.sample.broken.values())]
    if pool.sample.bad:
        notes.append(f"bad records, which a run sets aside: {dict(pool.sample.bad)}")
    open_questions = "".join(f"# To decide: {_printable(note)}\n" for note in notes)
    reference = others.get("reference")
    heldout = others.get("heldout")
    inputs = reference.patterns if reference else ["reference.jsonl"]
    return f"""\
# Written by `quad init`: {files} files, {documents:,} documents ({counted}), about {tokens:,} tokens of four bytes.
# Fields seen:
{seen}
{open_questions}# `quad keys` explains every key; `quad plan` says what a run takes before anything is spent.
{yaml.safe_dump({"run": run}).strip()}   # the name that other commands ask for: quad status {run}
workspace: workspace   # a folder, or s3://bucket/prefix
pool:
  inputs: {_flow(pool.patterns)}
  fields: {_flow(pool.fields)}   # our names: yours
reference:   # what the model should become good at
  inputs: {_flow(inputs)}
  fields: {_flow(reference.fields if reference else {})}
{_heldout(heldout)}model:
  source: fresh   # a small model trained on a sample of the pool; better: the Hugging Face id or path of yours
  window_tokens: {window}   # three quarters of the texts fit, longer ones are read window by window
  fresh: {{train_tokens: {min(1_500_000, max(1000, _round(tokens // 4)))}}}
clustering:
  arms: {arms}   # about {per_arm:,.0f} documents each
factors:
  sample_documents: {min(768, max(8, documents // 4))}
bandit:
  pilot_documents: {pilot}   # scored at random first: their influence sets the threshold
  arms_per_round: {min(8, arms)}   # k
  documents_per_pull: {m}   # m: more tells arms apart better, and costs more
selection:
  budget_tokens: {budget}   # a twentieth of the pool
{_training(budget)}"""


def _training(budget: int) -> str:
    """Make the steps of a small budget small: one step or two train nothing."""
    if budget >= LEAST_STEPS * TrainingConfig().batch_tokens:
        return ""
    return f"training:\n  batch_tokens: {max(1, _round(budget // LEAST_STEPS))}   # {LEAST_STEPS} steps or more\n"


def _heldout(heldout: Inputs | None) -> str:
    if heldout is None:
        return '# heldout: {inputs: ["heldout/*.jsonl"]}   # other domains, to see what the gain costs them\n'
    inputs, fields = _flow(heldout.patterns), _flow(heldout.fields)
    return f"heldout:   # other domains, to see what the gain costs them\n  inputs: {inputs}\n  fields: {fields}\n"


def _flow(value: Any) -> str:
    """Write a list or a mapping on one line; JSON is YAML."""
    return _printable(json.dumps(value, ensure_ascii=False))


def _printable(text: str) -> str:
    """Escape, as YAML does within quotes, what it takes for a line's end or refuses in a file."""
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in text)


def _round(n: int) -> int:
    """Keep two digits."""
    size: int = 10 ** max(0, len(str(n)) - 2)
    return max(1, n // size * size)
