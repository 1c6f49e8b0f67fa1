"""`quad verify`: every damage to every file of a finished run is found and named; published is what was chosen."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
from small_pool import round_info
from typer.testing import CliRunner

from flows.cli.app import app
from quad_tasks.commands.verify import DERIVED, DamagedRun, _scored_once, find_damage, verify_run
from quad_tasks.config.schema import RunConfig
from quad_tasks.storage import rounds
from quad_tasks.storage.keys import manifest_key, selection_folder
from quad_tasks.storage.manifest import DigestMismatch
from quad_tasks.storage.manifest_tree import walk_run
from quad_tasks.storage.store import open_store

MANY_FILES = 100
FLIPPED_BIT = 4


@dataclass(frozen=True)
class Copy:
    """A finished run in a folder of its own, to be damaged."""

    config: RunConfig
    folder: Path

    def files(self) -> list[Path]:
        """Return all files but those that `DERIVED` says come again."""
        found = [path for path in self.folder.rglob("*") if path.is_file() and path.stat().st_size]
        return sorted(path for path in found if not set(path.parts) & set(DERIVED))

    def damage(self) -> set[str]:
        """Return the keys `quad verify` finds damaged."""
        store = open_store(self.config.workspace)
        if not store.exists(manifest_key(selection_folder(self.config.run))):
            return {manifest_key(selection_folder(self.config.run))}  # verify says that nothing is published
        return set(find_damage(store, self.config.run, walk_run(store, self.config.run)))


@pytest.fixture(scope="module")
def finished(small_run, tmp_path_factory):
    """A copy of the small run, made once: each test puts back what it damages."""
    folder = tmp_path_factory.mktemp("finished") / "workspace"
    shutil.copytree(small_run.workspace, folder)
    for path in folder.glob("runs/*"):
        if path.name != small_run.run:
            shutil.rmtree(path)
    return Copy(small_run.model_copy(update={"workspace": str(folder)}), folder)


@pytest.fixture
def pristine(finished):
    """The copy, whose run's folder is put back as it was."""
    run = finished.folder / "runs" / finished.config.run
    kept = finished.folder.parent / "kept"
    shutil.copytree(run, kept)
    yield finished
    shutil.rmtree(run)
    kept.rename(run)


def flip(data: bytes) -> bytes:
    """Return the bytes with one bit in the middle changed."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ FLIPPED_BIT]) + data[middle + 1 :]


def test_an_untouched_run_has_no_damage(finished):
    assert finished.damage() == set()
    result = verify_run(finished.config)
    assert result["balanced"]
    assert result["files"] + result["manifests"] == len(finished.files())


@pytest.mark.slow
def test_every_damage_to_every_single_file_is_found_by_its_key(finished):
    files, missed = finished.files(), []
    assert len(files) > MANY_FILES
    for path in files:
        data, key = path.read_bytes(), path.relative_to(finished.folder).as_posix()
        path.write_bytes(flip(data))
        flipped = finished.damage()
        path.write_bytes(data[: len(data) // 2])
        cut = finished.damage()
        path.unlink()
        gone = finished.damage()
        path.write_bytes(data)
        # a manifest that is gone takes along what it names: the chain above it is broken in any case
        missed += [(key, how) for how, found in (("flip", flipped), ("cut", cut)) if key not in found]
        missed += [(key, "gone")] if not gone else []
    assert missed == []


def test_all_that_is_damaged_is_named_with_what_to_do(pristine):
    parts = [pristine.folder / f"runs/small/stage-00/{name}" for name in ("selected.parquet", "random-0.json")]
    for path in parts:
        path.write_bytes(flip(path.read_bytes()))
    with pytest.raises(DamagedRun, match=r"found 2 that are not:\n(.*\n)*bring them back from a copy") as raised:
        verify_run(pristine.config)
    assert all(path.name in str(raised.value) for path in parts)
    result = CliRunner().invoke(app, ["verify", "small", "--workspace", pristine.config.workspace])
    assert result.exit_code == 1
    assert "selected.parquet" in result.stderr


def test_another_sealed_table_in_the_place_of_a_choice_is_neither_verified_nor_published(pristine):
    from quad_tasks.runtime.run import pinned_pool
    from quad_tasks.stages.selection.publish import publish_selection, published

    store, stage = open_store(pristine.config.workspace), pristine.folder / "runs/small/stage-00"
    shutil.copy(stage / "random-0.parquet", stage / "selected.parquet")
    with pytest.raises(DamagedRun, match=r"selected\.parquet' in .*expected digest [0-9a-f]{64}, got"):
        verify_run(pristine.config)
    shutil.rmtree(pristine.folder / "runs/small/selection")
    with pytest.raises(DigestMismatch, match=r"selected\.parquet' in .*expected digest [0-9a-f]{64}, got"):
        publish_selection.fn(store, published(pristine.config), pinned_pool(store, "small"))


@pytest.mark.parametrize(("directions", "once"), [("ab", True), ("aa", False)])
def test_a_document_is_scored_once_along_a_direction_and_again_along_a_refitted_one(tmp_path, directions, once):
    store = open_store(str(tmp_path))
    for number, direction in enumerate(directions):
        tables = {"scores": pa.table({"position": [3, 7 + number]})}
        rounds.commit_round(store, "r", number, 0, tables, round_info(direction=direction))
    assert _scored_once(store, "r", 2) is once
