"""Exports: what was published, in the user's own names, that other tools open; the same bytes every time."""

import json

import pyarrow.parquet as pq
import pytest
import zstandard
from small_pool import stored
from typer.testing import CliRunner

from flows.cli.app import app
from quad_tasks.commands.export.export_selection import UNFINISHED, _claim_folder, _same_export, export_selection
from quad_tasks.config.schema import ConfigError
from quad_tasks.storage.positions import read_table
from quad_tasks.storage.store import Store, StoreKeyError, open_store


def published(config):
    return read_table(open_store(config.workspace), f"runs/{config.run}/selection/part-00000.parquet").to_pylist()


def renamed(config, **fields):
    names = config.pool.fields.model_copy(update=fields)
    return config.model_copy(update={"pool": config.pool.model_copy(update={"fields": names})})


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_dataset_folder_opens_with_the_users_names(small_run, tmp_path):
    from datasets import load_dataset

    config = renamed(small_run, id="uid", text="body", source="origin")
    export_selection(config, str(tmp_path / "out"), "hf", license="cc-by-4.0")
    opened = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    rows = published(small_run)
    assert opened["uid"][:] == [row["id"] for row in rows]
    assert opened["body"][:] == [row["text"] for row in rows]
    assert opened["quad_influence"][:] == [row["influence"] for row in rows]
    assert opened.info.license == "" or "cc-by-4.0" in opened.info.license
    card = (tmp_path / "out/README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-4.0\n")
    assert "size_categories:\n- n<1K" in card


def test_lines_carry_what_quad_knows_under_metadata(small_run, tmp_path):
    config = renamed(small_run, text="content.body")
    summary = export_selection(config, str(tmp_path), "jsonl.zst")
    with zstandard.open(tmp_path / summary["files"][0]["name"], "rt", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    rows = published(small_run)
    assert [line["content"]["body"] for line in lines] == [row["text"] for row in rows]
    assert lines[0]["id"] == rows[0]["id"]
    assert lines[0]["metadata"]["quad"]["influence"] == rows[0]["influence"]
    assert summary["tokens"] == sum(line["metadata"]["quad"]["n_tokens"] for line in lines)
    assert summary["tokens"] == sum(line["metadata"]["token_count"] for line in lines)
    manifest = stored(open_store(small_run.workspace), "runs/small/selection/manifest.json")
    assert {line["added"] for line in lines} == {manifest["volatile"]["created"]}


def test_files_are_cut_at_a_size_of_text_and_hold_every_document_once(small_run, tmp_path):
    summary = export_selection(small_run, str(tmp_path), shard_bytes=600)
    sizes, ids = [], []
    for file in summary["files"]:
        table = pq.read_table(tmp_path / file["name"])
        assert table.num_rows == file["rows"]
        ids += table["id"].to_pylist()
        sizes.append(sum(len(text.encode()) for text in table["text"].to_pylist()))
    assert ids == [row["id"] for row in published(small_run)]
    assert len(sizes) > 2
    longest = max(len(row["text"].encode()) for row in published(small_run))
    assert all(600 <= size <= 600 + 600 // 16 + longest for size in sizes[:-1])
    mixture = json.loads((tmp_path / "mixture.json").read_text())
    assert sum(source["weight"] for source in mixture.values()) == pytest.approx(1)


@pytest.mark.parametrize("format", ["parquet", "jsonl.zst", "hf"])
def test_an_export_is_the_same_again_also_after_an_interruption(small_run, tmp_path, format):
    for name in ("one", "two"):
        export_selection(small_run, str(tmp_path / name), format)
    one = contents(tmp_path / "one")
    assert one == contents(tmp_path / "two")
    body = json.loads((tmp_path / "two/export.json").read_text())
    del body["files"]
    (tmp_path / "two/export.json").rename(tmp_path / "two/export.unfinished.json")
    (tmp_path / "two/export.unfinished.json").write_text(json.dumps(body))
    next((tmp_path / "two/data").iterdir()).write_bytes(b"half")
    export_selection(small_run, str(tmp_path / "two"), format)
    assert one == contents(tmp_path / "two")


def test_another_export_is_not_written_over(small_run, tmp_path):
    export_selection(small_run, str(tmp_path), "parquet")
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match="expected an empty folder or the same export"):
        export_selection(small_run, str(tmp_path), "hf")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("theirs", ["README.md", "data/part-00000.parquet", "notes.txt"])
def test_a_folder_with_files_of_the_users_is_refused_before_anything_is_written(small_run, tmp_path, theirs):
    path = tmp_path / theirs
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"mine")
    command = ["export", small_run.run, "--workspace", small_run.workspace, "--format", "hf", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert f"expected an empty folder, found {theirs}: nothing was written" in result.stderr
    assert contents(tmp_path) == {theirs: b"mine"}


def test_an_interrupted_export_of_another_kind_is_not_gone_on_with(small_run, tmp_path):
    (tmp_path / "export.unfinished.json").write_text('{"run": "another"}')
    with pytest.raises(ConfigError, match=r"found another export that was interrupted \(export\.unfinished\.json\)"):
        export_selection(small_run, str(tmp_path), "parquet")


def test_another_licence_is_another_export(small_run, tmp_path):
    export_selection(small_run, str(tmp_path), "hf", license="cc-by-4.0")
    with pytest.raises(ConfigError, match="expected an empty folder or the same export"):
        export_selection(small_run, str(tmp_path), "hf", license="mit")


def test_files_an_interrupted_export_of_other_sizes_left_are_named(small_run, tmp_path, monkeypatch):
    monkeypatch.setattr("quad_tasks.commands.export.export_selection.BATCH_ROWS", 2)
    export_selection(small_run, str(tmp_path), shard_bytes=600)
    (tmp_path / "export.json").unlink()
    with pytest.raises(ConfigError, match=r"expected an empty folder, found data/part-00000\.parquet and \d+ more"):
        export_selection(small_run, str(tmp_path))
    assert not (tmp_path / "export.json").exists()


def test_a_run_without_a_selection_is_named(small_run, tmp_path):
    empty = small_run.model_copy(update={"run": "empty"})
    with pytest.raises(StoreKeyError, match=r"run 'empty' in .*: expected a published selection, found none"):
        export_selection(empty, str(tmp_path))


def test_the_command_prints_what_it_wrote(small_run, tmp_path):
    command = ["export", small_run.run, "--workspace", small_run.workspace, "--out", str(tmp_path), "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == len(published(small_run))


def test_two_fields_that_end_alike_keep_their_whole_names(small_run, tmp_path):
    summary = export_selection(renamed(small_run, id="key.value", text="content.value"), str(tmp_path))
    table = pq.read_table(tmp_path / summary["files"][0]["name"])
    assert table.column_names[:4] == ["key.value", "content.value", "source", "metadata"]
    assert table["content.value"].to_pylist() == [row["text"] for row in published(small_run)]


@pytest.mark.parametrize("data", [b"not json", b"[1]", b"{}", b'"text"'])
def test_a_file_of_somebody_elses_that_has_an_exports_name_is_no_export(tmp_path, data):
    target = open_store(str(tmp_path))
    for name in ("export.json", UNFINISHED):
        target.put(name, data)
    with pytest.raises(ConfigError, match=r"expected an empty folder or the same export, found another one"):
        _same_export(target, {"run": "small"}, str(tmp_path))
    with pytest.raises(ConfigError, match="expected an empty folder, found another export"):
        _claim_folder(target, str(tmp_path), {"run": "small"})


def test_a_finished_export_whose_files_are_gone_is_not_called_whole(tmp_path):
    target = open_store(str(tmp_path))
    body = {"run": "small"}
    target.put("export.json", json.dumps({**body, "files": [{"name": "data/part-00000.parquet"}]}).encode())
    with pytest.raises(ConfigError, match=r"found no data/part-00000\.parquet: name another"):
        _same_export(target, body, str(tmp_path))
    target.put("data/part-00000.parquet", b"rows")
    assert _same_export(target, body, str(tmp_path))["run"] == "small"


def test_of_two_exports_that_begin_at_once_in_one_folder_the_second_is_refused(tmp_path, monkeypatch):
    one, two = open_store(str(tmp_path)), Store(str(tmp_path))
    listings = iter([[], [UNFINISHED]])
    monkeypatch.setattr(two, "list", lambda: next(listings))  # it looks before the first one begins
    _claim_folder(one, str(tmp_path), {"format": "hf"})
    with pytest.raises(ConfigError, match="expected an empty folder, found another export"):
        _claim_folder(two, str(tmp_path), {"format": "parquet"})
    assert json.loads(one.get(UNFINISHED)) == {"format": "hf"}


def test_a_licence_that_no_file_would_say_is_refused(small_run, tmp_path):
    with pytest.raises(ConfigError, match=r"--license: expected a format that writes it, as hf does, found 'parquet'"):
        export_selection(small_run, str(tmp_path), license="mit")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tokenize", [False, True])
def test_a_card_lists_every_column(small_run, tmp_path, tokenize):
    summary = export_selection(small_run, str(tmp_path), "hf", tokenize=tokenize)
    rows = [line for line in (tmp_path / "README.md").read_text().splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in row.split("|")[1].replace("`", "").replace(" ", "").split(",")}
    assert listed == set(pq.read_schema(tmp_path / summary["files"][0]["name"]).names)
