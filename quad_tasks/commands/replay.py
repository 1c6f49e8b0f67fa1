"""Replay a run's choices from its ledger: does every round follow from the rounds before it and the seed?

Owns the audit. Nothing is scored: the configuration, the seed, the pool version's arm index and the committed arms
tables give each round's pulls again, and they are compared with the committed ones. Refuses to repair anything.
"""

import itertools
from typing import Any

from quad_tasks.config.schema import RunConfig
from quad_tasks.records import Stage
from quad_tasks.runtime.run import pinned_pool
from quad_tasks.stages.bandit.draw_pulls import Draw
from quad_tasks.stages.bandit.plan_round import plan_round
from quad_tasks.stages.bandit.round_settings import round_settings
from quad_tasks.storage import rounds
from quad_tasks.storage.store import Store, StoreKeyError, open_store


def replay_run(config: RunConfig) -> list[dict[str, Any]]:
    """Choose every committed round's pulls again.

    Returns:
        By round: `stage`, `round`, `kind`, `pulls` committed, and `reproduced`, whether the same arms at the same
        cursors with as many documents were chosen again, and the same documents for what was predicted of them.

    Raises:
        StoreKeyError: the run has committed no round.
        DigestMismatch: a table's bytes are not those committed.
    """
    store = open_store(config.workspace)
    version = pinned_pool(store, config.run)
    replayed = [
        _replay_round(store, config, version, committed)
        for number in range(config.training.stages)
        for committed in rounds.list_rounds(store, config.run, number)
        if version is not None
    ]
    if not replayed:
        raise StoreKeyError(f"run {config.run!r} in {store.uri}: expected committed rounds, found none")
    return replayed


def _replay_round(store: Store, config: RunConfig, version: str, committed: rounds.RoundManifest) -> dict[str, Any]:
    # Which checkpoint and direction scored the documents has no part in the choice.
    stage = Stage(config.run, committed.stage, version, checkpoint="", direction=committed.info.direction)
    pulls = rounds.read_round_table(store, committed, "pulls")
    scored = rounds.read_round_table(store, committed, "scores")["position"].to_pylist()
    drawn = list(zip(*(pulls[name].to_pylist() for name in Draw._fields), strict=True))
    plan = plan_round.fn(store, stage, committed.round, round_settings(config, committed.stage))
    return {
        "stage": committed.stage,
        "round": committed.round,
        "kind": committed.info.kind,
        "pulls": len(drawn),
        "reproduced": plan.draws == drawn and list(itertools.chain(*plan.chunks)) == scored,
    }
