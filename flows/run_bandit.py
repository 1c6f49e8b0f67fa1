"""Flow: rounds of the bandit until the stage's budget is met; each round is a subflow and commits itself."""

from dataclasses import replace

from flows.dask_cluster import dask_cluster
from quad_tasks.config.schema import RunConfig
from quad_tasks.records import Stage
from quad_tasks.runtime.events import timed
from quad_tasks.runtime.findings import refuse_unwanted
from quad_tasks.runtime.prefect_runs import flow
from quad_tasks.runtime.progress import notice, progress
from quad_tasks.stages.bandit.commit_round import commit_round
from quad_tasks.stages.bandit.ledger import read_choice
from quad_tasks.stages.bandit.pilot import calibrate_scorer
from quad_tasks.stages.bandit.plan_round import drop_predictions, plan_round
from quad_tasks.stages.bandit.round_settings import round_settings
from quad_tasks.stages.bandit.score_round import score_round
from quad_tasks.stages.bandit.stopping import cost_so_far, rounds_committed, stop_reason, way_to_stop
from quad_tasks.stages.influence.extract_states import extract_states
from quad_tasks.stages.selection.gate_refit import gate_refit
from quad_tasks.stages.selection.select_documents import select_documents, stage_selection
from quad_tasks.stages.selection.train import training_run
from quad_tasks.storage.store import Store, open_store

WHOLE_WAY = 100
"""Steps of the rounds' bar."""


@flow(name="bandit-round", flow_run_name="stage {stage.number} round {number}")
def bandit_round(config: RunConfig, stage: Stage, number: int) -> None:
    """Choose arms, score their next documents, commit."""
    store, settings = open_store(config.workspace), round_settings(config, stage.number)
    plan = plan_round(store, stage, number, settings)
    scores = score_round(store, stage, plan, settings.use)
    calibration = calibrate_scorer(store, stage, plan, settings, scores) if number == 0 else None
    commit_round(store, stage, number, settings, plan, scores, calibration)


@flow(name="run-bandit", flow_run_name="{config.run} stage {stage.number}")
def run_bandit(config: RunConfig, stage: Stage) -> str:
    """Run the rounds that are still to do, then select the stage's documents; return the key of the selection.

    Raises:
        UnwantedFinding: the stage has a finding of `diagnosis.stop_on`; nothing was trained on it.
    """
    store = open_store(config.workspace)
    with dask_cluster(config.compute), timed(store, config.run, "bandit"):
        if config.bandit.features == "hidden_states":
            extract_states(store, stage.version, config.model_use())
        how = replace(stage_selection(config, stage.number), rounds=_run_rounds(store, config, stage))
        drop_predictions(store, stage)
        chosen = select_documents(store, gate_refit(store, stage, training_run(config), how), how)
    refuse_unwanted(config.run, read_choice(store, chosen).findings, config.diagnosis.stop_on)
    return chosen


def _run_rounds(store: Store, config: RunConfig, stage: Stage) -> int:
    """Run the rounds that are not committed yet until the stage ends, as one bar; return how many it has then."""
    settings, number = round_settings(config, stage.number), rounds_committed(store, stage)
    if stop_reason(store, stage, number, settings) is not None:
        return number
    way = way_to_stop(store, stage, number, settings)
    with progress(f"stage {stage.number}: rounds", WHOLE_WAY, "% of the way to the nearest stop") as advance:
        advance(round(WHOLE_WAY * way))
        while (reason := stop_reason(store, stage, number, settings)) is None:
            bandit_round(config, stage, number)
            number += 1
            before, way = way, way_to_stop(store, stage, number, settings)
            advance(round(WHOLE_WAY * way) - round(WHOLE_WAY * before))
    share = cost_so_far(store, stage)
    spent = "" if share is None else f", at {share:.1%} of the model FLOPs of scoring the whole pool"
    notice(f"stage {stage.number}: {number} rounds, ended by {reason}{spent}")
    return number
