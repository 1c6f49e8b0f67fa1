"""Replay a run's choices from its ledger: does every round follow from the rounds before it and the seed?

Owns the audit. Nothing is scored: the configuration, the seed, the pool version's arm index and the committed arms
tables give each round's pulls again, and they are compared with the committed ones. What is predicted of the pool on
the way lies in the run's folder, as a driver's does: so the run's lease is held meanwhile, and nothing of it stays.
Refuses to repair anything, and to look at a run that somebody drives.
"""

import itertools
from collections.abc import Sequence
from typing import Any

from quad_tasks.config.schema import RunConfig
from quad_tasks.records import Stage
from quad_tasks.runtime.run import hold_run_lease, pinned_pool
from quad_tasks.stages.bandit.draw_pulls import Draw
from quad_tasks.stages.bandit.plan_round import drop_predictions, plan_round
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
        LeaseHeld: another process drives the run.
        DigestMismatch: a table's bytes are not those committed.
    """
    store = open_store(config.workspace)
    version = pinned_pool(store, config.run)
    listed = [rounds.list_rounds(store, config.run, number) for number in range(config.training.stages)]
    if version is None or not any(listed):
        raise StoreKeyError(f"run {config.run!r} in {store.uri}: expected committed rounds, found none")
    with hold_run_lease(store, config.run):
        return [row for committed in listed for row in _replay_stage(store, config, version, committed)]


def _replay_stage(
    store: Store, config: RunConfig, version: str, committed: Sequence[rounds.RoundManifest]
) -> list[dict[str, Any]]:
    try:
        return [_replay_round(store, config, version, one) for one in committed]
    finally:
        if committed:
            drop_predictions(store, _stage_of(config, version, committed[-1]))


def _stage_of(config: RunConfig, version: str, committed: rounds.RoundManifest) -> Stage:
    # Which checkpoint and direction scored the documents has no part in the choice.
    return Stage(config.run, committed.stage, version, checkpoint="", direction=committed.info.direction)


def _replay_round(store: Store, config: RunConfig, version: str, committed: rounds.RoundManifest) -> dict[str, Any]:
    stage = _stage_of(config, version, committed)
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
