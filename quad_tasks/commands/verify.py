"""Check a run against its own records: every file it rests on, the sum of all documents, and what it published.

Every manifest that is reachable from the run is read and every file these name is digested. Nothing else in a run's
folder decides anything: the records of leases are claimed anew by whoever works next, and what interrupted attempts
left is removed by `quad clean`.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from quad_tasks.commands.clean import find_leftovers, find_unfinished
from quad_tasks.config.schema import RunConfig
from quad_tasks.manifests.run import DocumentCounts
from quad_tasks.runtime.run import pinned_pool
from quad_tasks.stages.bandit.ledger import list_stage_rounds
from quad_tasks.stages.selection.publish import compare_published, count_documents, read_selection
from quad_tasks.storage.errors import StorageError
from quad_tasks.storage.keys import manifest_key, report_key, report_page_key, selection_folder
from quad_tasks.storage.manifest import DigestMismatch, check_file
from quad_tasks.storage.manifest_tree import THREADS, Tree, walk_run
from quad_tasks.storage.rounds import read_round_table
from quad_tasks.storage.store import Store, StoreKeyError, open_store

DERIVED = {
    "events": "of a run, for people and alerts: no result rests on what happened when",
    "events.jsonl": "the same in one file, written anew by whoever ends driving the run",
    "lease": "records of who works in a folder: claimed anew by whoever works there next",
    "hashes": "of a shard's texts and ids, sealed each: computed anew from its documents where they are gone",
    "numbers": "of a pool's versions, that each was given: a refresh gives none it finds here or in a version",
    "predictions": "of a pool, sealed each: made anew by the process that plans a stage's next round",
}
"""Folders and files that no manifest names, because no result rests on them, and how they come again."""
MOST_SHOWN = 20


class DamagedRun(DigestMismatch):
    """Files of a run are gone, or are not those that were committed."""


def verify_run(config: RunConfig) -> dict[str, Any]:
    """Recompute a finished run's digests and counts, and compare them with what it published.

    Returns:
        `documents_in` and its parts, `balanced`, manifests, files, parts and tokens checked, and `orphans`: what
        `quad clean` would remove.

    Raises:
        DamagedRun: a file is gone, is not what was committed, or is not what was published; each is named.
        StoreKeyError: the run published nothing yet.
    """
    store, run = open_store(config.workspace), config.run
    if not store.exists(manifest_key(selection_folder(run))):
        raise StoreKeyError(
            f"run {run!r} in {store.uri}: expected a published selection, found none yet: "
            f"`quad resume {run}` goes on with it"
        )
    tree = walk_run(store, run)
    _refuse(store, run, find_damage(store, run, tree))
    version = str(pinned_pool(store, run))
    manifest = read_selection(store, run)
    counts = count_documents(store, run, config.training.stages, version)
    _refuse(store, run, _compare(manifest, counts, store, run, config, version))
    return {
        **counts.model_dump(),
        "balanced": counts.balanced,
        "scored_once": _scored_once(store, run, config.training.stages),
        "within_budget": manifest.n_tokens <= manifest.budget_tokens,
        "tokens": manifest.n_tokens,
        "manifests": len(tree.manifests),
        "files": len(tree.files),
        "parts": len(manifest.parts),
        "orphans": _orphans(store, config),
    }


def _scored_once(store: Store, run: str, stages: int) -> bool:
    """Say whether no document was scored twice along one direction; a refitted one may score a document again."""
    scored: dict[str, list[int]] = {}
    for number in range(stages):
        for committed in list_stage_rounds(store, run, number):
            positions = read_round_table(store, committed, "scores")["position"].to_pylist()
            scored.setdefault(committed.info.direction, []).extend(positions)
    return all(len(set(positions)) == len(positions) for positions in scored.values())


def find_damage(store: Store, run: str, tree: Tree) -> dict[str, str]:
    """Digest every file a run rests on.

    Args:
        store: the workspace.
        run: its name.
        tree: what the run rests on.

    Returns:
        A message for each manifest or file that is gone or changed, by key.
    """
    problems = dict(tree.problems)
    if manifest_key(selection_folder(run)) in tree.manifests:
        for key, recorded in read_selection(store, run).manifests.items():
            found = tree.manifests.get(key)
            if found is None and key not in problems:
                problems[key] = f"{key!r} in {store.uri}: expected the manifest that was published from, found none"
            elif found is not None and found != recorded:
                problems[key] = f"{key!r} in {store.uri}: expected digest {recorded}, got {found}"
    with ThreadPoolExecutor(THREADS) as readers:
        checked = readers.map(lambda item: (item[0], _damage(store, *item)), tree.files.items())
    problems |= {key: problem for key, problem in checked if problem}
    for key in (report_key(run), report_page_key(run)):
        if key not in tree.files and key not in problems and store.exists(key):
            problems[key] = f"{key!r} in {store.uri}: expected a manifest that names it, found none"
    return problems


def _damage(store: Store, key: str, sha256: str | None) -> str | None:
    """Say what is wrong with a file; None: nothing. Without a digest, of an earlier version, it has to be there."""
    try:
        if sha256 is None:
            store.size(key)
        else:
            check_file(store, key, sha256)
    except StorageError as error:
        return str(error)
    return None


def _compare(
    manifest: DocumentCounts, counts: DocumentCounts, store: Store, run: str, config: RunConfig, version: str
) -> dict[str, str]:
    """Compare what was published with what the ledger, the choices and the pool give."""
    key = manifest_key(selection_folder(run))
    problems = {
        f"{key}:{name}": f"{key!r} in {store.uri}: expected {name} {getattr(counts, name)}, found it published as "
        f"{getattr(manifest, name)}"
        for name in DocumentCounts.model_fields
        if getattr(manifest, name) != getattr(counts, name)
    }
    different = compare_published(store, run, config.training.stages, config.selection.part_bytes, version)
    return problems | {
        part: f"{part!r} in {store.uri}: expected the documents that were chosen, found others" for part in different
    }


def _refuse(store: Store, run: str, problems: Mapping[str, str]) -> None:
    if not problems:
        return
    lines = [problem for _, problem in sorted(problems.items())]
    more = [f"and {len(lines) - MOST_SHOWN} more"] if len(lines) > MOST_SHOWN else []
    raise DamagedRun(
        "\n".join(
            [
                f"run {run!r} in {store.uri}: expected every file as committed, found {len(lines)} that are not:",
                *lines[:MOST_SHOWN],
                *more,
                "bring them back from a copy, or run the configuration again in a new workspace",
            ]
        )
    )


def _orphans(store: Store, config: RunConfig) -> list[str]:
    """List what interrupted attempts left behind: keys that no manifest names, and unfinished local files."""
    keys = [key for found in find_leftovers(store, config).values() for key in found]
    return keys + [str(path) for path in find_unfinished(store, config)]
