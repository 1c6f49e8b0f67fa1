"""When a stage's rounds end: enough tokens above τ, little left to gain, a cap reached, no arm left, the last round."""

from typing import Literal

import numpy as np

from quad_tasks.records import Stage
from quad_tasks.runtime.progress import notice
from quad_tasks.stages.bandit.cost import cheapest_unscored
from quad_tasks.stages.bandit.ledger import LedgerState, read_ledger, selected_key
from quad_tasks.stages.bandit.plan_round import find_room, read_scorer
from quad_tasks.stages.bandit.round_settings import RoundSettings, scored_limit
from quad_tasks.storage import rounds
from quad_tasks.storage.keys import choice_manifest_key
from quad_tasks.storage.store import Store

StopReason = Literal["exhausted", "budget", "max_rounds", "max_scored", "max_cost", "little_left"]


def rounds_committed(store: Store, stage: Stage) -> int:
    """Count the stage's committed rounds: the next round's number.

    A last round that lost its tables is taken back, as long as nothing was chosen by it.
    """
    if not store.exists(choice_manifest_key(selected_key(stage))):
        dropped = rounds.drop_hollow_round(store, stage.run, stage.number)
        if dropped is not None:
            notice(f"stage {stage.number} round {dropped}: its tables are gone, it is done again")
    return rounds.count_rounds(store, stage.run, stage.number)


def cost_so_far(store: Store, stage: Stage) -> float | None:
    """Return what the run has cost up to a stage's last round, as a share of scoring the whole pool exactly."""
    committed = rounds_committed(store, stage)
    cost = rounds.read_round(store, stage.run, stage.number, committed - 1).info.cost if committed else None
    return cost.share if cost else None


def stop_reason(store: Store, stage: Stage, number: int, settings: RoundSettings) -> StopReason | None:
    """Say why a stage ends before round `number`, or None where it goes on."""
    if number == 0:
        return None
    ledger = read_ledger(store, stage, number, settings.bandit.discount)
    if np.array_equal(ledger.state.cursor, ledger.state.n_documents):
        return "exhausted"
    if ledger.accepted_tokens >= settings.wanted_tokens:
        return "budget"
    enough = settings.bandit.stop_when_left
    if enough is not None and ledger.left is not None and ledger.left <= enough:
        return "little_left"
    if number >= settings.bandit.max_rounds:
        return "max_rounds"
    if len(ledger.scored_S) >= scored_limit(settings, ledger.n_documents):
        return "max_scored"
    return "max_cost" if ledger.cut or not _can_pay(store, stage, settings, ledger) else None


def way_to_stop(store: Store, stage: Stage, number: int, settings: RoundSettings) -> float:
    """Compute how far a stage is on the way to whichever of its stops is nearest, in [0, 1]."""
    ledger, bandit = read_ledger(store, stage, number, settings.bandit.discount), settings.bandit
    drawn, there = int(ledger.state.cursor.sum()), int(ledger.state.n_documents.sum())
    done = [(ledger.accepted_tokens, settings.wanted_tokens), (number, bandit.max_rounds), (drawn, there)]
    done.append((len(ledger.scored_S), scored_limit(settings, ledger.n_documents)))
    shares = [part / whole for part, whole in done if whole > 0]
    if settings.cost_cap is not None:
        left = max(0.0, find_room(store, stage, settings, ledger).flops)
        shares.append(ledger.flops / (ledger.flops + left) if ledger.flops else 0.0)
    if bandit.stop_when_left is not None and ledger.left is not None and ledger.first_left is not None:
        to_go = ledger.first_left - bandit.stop_when_left
        shares.append((ledger.first_left - ledger.left) / to_go if to_go > 0 else 1.0)
    return float(np.clip(max(shares), 0.0, 1.0))


def _can_pay(store: Store, stage: Stage, settings: RoundSettings, ledger: LedgerState) -> bool:
    """Tell whether the stage can pay for the cheapest document that was not scored."""
    if settings.cost_cap is None:
        return True
    scorer = read_scorer(store, stage, settings)
    cheapest = cheapest_unscored(store, stage.version, settings.reading, scorer, ledger.scored_lengths_T)
    return cheapest <= find_room(store, stage, settings, ledger).flops
