"""Extensions: the product's own and a stranger's are found by one mechanism, pass one contract, and drive a run."""

import importlib
import json
import re
import struct
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from mds import read_mds
from small_pool import small_config

from quad_tasks import plugins, testing
from quad_tasks.commands.export.export_selection import export_selection
from quad_tasks.commands.schema import configuration_schema
from quad_tasks.config.load import parse_config
from quad_tasks.config.schema import ConfigError
from quad_tasks.core.clustering.embedders import EmbedderInputs
from quad_tasks.plugins import OWN, PluginConflict, UnknownPlugin, load_plugin, plugin_names
from quad_tasks.stages.bandit.ledger import load_arms, read_scores
from quad_tasks.storage.input_documents import read_documents
from quad_tasks.storage.input_files import InputError
from quad_tasks.storage.pool_versions import list_versions
from quad_tasks.storage.rounds import read_round
from quad_tasks.storage.store import open_store

TOY = Path(__file__).parent / "toy_plugin"
SETTINGS = {"dimension": 4, "max_tokens": 64, "encoder": "", "pooling": "mean"}


@pytest.fixture
def toy(monkeypatch):
    """The toy package, installed."""
    monkeypatch.syspath_prepend(str(TOY))
    importlib.invalidate_caches()
    plugins._installed.cache_clear()
    yield
    plugins._installed.cache_clear()
    sys.modules.pop("quad_toy", None)


@pytest.mark.parametrize("kind", OWN)
def test_every_own_extension_is_found_by_its_name(kind):
    assert plugin_names(kind) == tuple(OWN[kind])
    assert all(load_plugin(kind, name) is not None for name in OWN[kind])


@pytest.mark.parametrize("name", OWN["policies"])
def test_own_policies_keep_the_contract(name):
    testing.check_policy(name)


@pytest.mark.parametrize("name", OWN["scorers"])
def test_own_scorers_keep_the_contract(name):
    testing.check_scorer(name)


def column(folder, *names):
    """Return the first of these columns that the shards of a folder have."""
    tables = [pq.read_table(path) for path in sorted((folder / "data").glob("*.parquet"))]
    name = next(name for name in names if name in tables[0].column_names)
    return [value for table in tables for value in table[name].to_pylist()]


def texts_of_lines(folder):
    for path in sorted((folder / "data").iterdir()):
        with zstandard.open(path, "rt", encoding="utf-8") as file:
            yield from (json.loads(line)["text"] for line in file)


def ids_of_megatron(folder):
    """Read Megatron pairs of 16-bit ids by the description of their format."""
    for path in sorted((folder / "data").glob("*.bin")):
        index = path.with_suffix(".idx").read_bytes()
        code, n, _ = struct.unpack_from("<BQQ", index, 17)
        assert code == 8
        lengths = struct.unpack_from(f"<{n}i", index, 34)
        ids = np.frombuffer(path.read_bytes(), dtype="<u2")
        yield from (part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1]))


READ = {
    "parquet": lambda folder: column(folder, "input_ids", "text"),
    "hf": lambda folder: column(folder, "input_ids", "text"),
    "jsonl.zst": texts_of_lines,
    "mds": lambda folder: [sample["tokens"] if "tokens" in sample else sample["text"] for sample in read_mds(folder)],
    "megatron": ids_of_megatron,
}


@pytest.mark.parametrize("name", OWN["exporters"])
def test_own_exporters_keep_the_contract(name):
    testing.check_exporter(name, READ[name])


RECORDS = [{"id": "1", "text": "one"}, {"id": "2", "text": "two words"}, {"id": "3", "text": "three"}]


def parquet_bytes():
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(RECORDS), sink)
    return sink.getvalue().to_pybytes()


def arrow_bytes():
    sink, table = pa.BufferOutputStream(), pa.Table.from_pylist(RECORDS)
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


FILES = {
    "jsonl": (
        b'{"id": "1", "text": "one"}\n{"id": \n[]\n{"id": "3"}\n',
        [RECORDS[0], "invalid_json", "not_an_object", {"id": "3"}],
    ),
    "txt": (b"a whole text\nof two lines", [{"text": "a whole text\nof two lines"}]),
    "csv": (b"id,text\n1,one\n2,two words\n3,three\n", RECORDS),
    "tsv": (b"id\ttext\n1\tone\n2\ttwo words\n3\tthree\n", RECORDS),
    "parquet": (parquet_bytes(), RECORDS),
    "arrow": (arrow_bytes(), RECORDS),
}


@pytest.mark.parametrize("name", OWN["readers"])
def test_own_readers_keep_the_contract(name):
    testing.check_reader(name, *FILES[name])


def test_a_strangers_reader_keeps_the_contract_and_is_used(toy, tmp_path):
    lines = b"1=one\n2=two words\nbroken\n3=three\n"
    testing.check_reader("pairs", lines, [*RECORDS[:2], "no_equals_sign", RECORDS[2]])
    (tmp_path / "a.pairs").write_text("a=some text\n")
    assert [document.text for document in read_documents(str(tmp_path / "a.pairs"))] == ["some text"]
    with pytest.raises(InputError, match=r"expected a file ending in one of .*\.arrow, \.pairs$"):
        list(read_documents(str(tmp_path / "a.other")))


def test_a_strangers_exporter_keeps_the_contract_and_is_used(toy, small_run, tmp_path):
    testing.check_exporter("plain", lambda folder: (folder / "data/all.txt").read_text().split("\0")[:-1])
    summary = export_selection(small_run, str(tmp_path / "out"), "plain")
    assert len((tmp_path / "out/data/all.txt").read_text().split("\0")) == summary["rows"] + 1
    with pytest.raises(ConfigError, match=r"expected one of parquet, .*, megatron, plain, found 'other'"):
        export_selection(small_run, str(tmp_path / "other"), "other")


def test_a_strangers_extensions_keep_the_contract(toy):
    testing.check_embedder(load_plugin("embedders", "letters"), EmbedderInputs(SETTINGS, "cpu", {}, lambda: None))
    testing.check_policy("fewest-first")
    testing.check_scorer("largest")
    with pytest.raises(AssertionError, match="values within 25% of exact scores"):
        testing.check_scorer("half", floor=1.0)


def test_a_configuration_names_a_strangers_extension_only_where_it_is_installed(corpus, request):
    body = small_config(corpus, "workspace", embedding__method="letters")
    with pytest.raises(
        ConfigError, match=r"embedding\.method: expected one of ngrams, encoder, model, found 'letters'"
    ):
        parse_config(body, "here")
    request.getfixturevalue("toy")
    assert parse_config(body, "here").embedding.method == "letters"
    defined = configuration_schema()["$defs"]
    listed = defined["EmbeddingConfig"]["properties"]["method"]["enum"]
    assert listed == ["ngrams", "encoder", "model", "letters"]
    listed = defined["BanditConfig"]["properties"]["scorer"]["enum"]
    assert listed == ["exact", "low_rank", "forward_only", "half", "largest", "auto", "conditional_loss"]


def test_an_unknown_name_is_answered_with_those_there_are():
    with pytest.raises(
        UnknownPlugin, match="policies: expected one of paper, released, thompson, contextual, found 'x'"
    ):
        load_plugin("policies", "x")


def test_a_name_that_is_taken_is_refused(monkeypatch):
    monkeypatch.setattr(plugins, "_installed", lambda kind: frozenset({("paper", "elsewhere:paper")}))
    with pytest.raises(PluginConflict, match="one extension named 'paper', found elsewhere:paper beside it"):
        plugin_names("policies")


@pytest.mark.slow
def test_a_run_is_driven_by_a_strangers_embedder_policy_and_scorer(toy, dask_client, corpus, tmp_path):
    from flows.select_data import select_data

    changes = {"embedding__method": "letters", "bandit__preset": "fewest-first", "training__stages": 1}
    changes |= {"bandit__scorer": "largest", "bandit__scorer_floor": 0.5, "bandit__calibration_documents": 8}
    changes["bandit__max_cost_share"] = 2.0  # so that the trial is worth its cost
    config = parse_config(small_config(corpus, str(tmp_path), **changes), "toy")
    select_data(config, until="bandit")
    store = open_store(config.workspace)
    ((version, _),) = list_versions(store, config.pool.name)
    assert len(load_arms(store, version)["centroid"][0].as_py()) == 26
    assert read_scores(store, config.run, 1).num_rows > config.bandit.pilot_documents
    pilot, first = (read_round(store, config.run, 0, number).info for number in (0, 1))
    said = r"scored by largest, at 97% of exact scoring's FLOPs and a rank correlation of \d\.\d{4} with exact scoring"
    assert re.match(said, pilot.calibration.reason)
    assert first.scorer == {"scorer": "largest"}
