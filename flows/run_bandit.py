"""Flow: rounds of the bandit until the stage's budget is met; each round is a subflow and commits itself."""

from prefect import flow

from flows.cluster import dask_cluster
from quad_tasks.choose import read_findings, select_stage
from quad_tasks.config import RunConfig
from quad_tasks.draw import choose_round
from quad_tasks.findings import refuse_unwanted
from quad_tasks.gate import gate_refit
from quad_tasks.progress import notice, progress
from quad_tasks.pull import (
    accepted_tokens,
    calibrate_scorer,
    commit_round,
    rounds_committed,
    score_round,
    stop_reason,
    wanted_tokens,
)
from quad_tasks.records import Stage
from quad_tasks.states import read_pool_states
from quad_tasks.timing import timed


@flow(name="bandit-round", flow_run_name="stage {stage.number} round {number}")
def bandit_round(config: RunConfig, stage: Stage, number: int) -> None:
    """Choose arms, score their next documents, commit."""
    plan = choose_round(config, stage, number)
    scores = score_round(config, stage, plan)
    calibration = calibrate_scorer(config, stage, plan) if number == 0 else None
    commit_round(config, stage, number, plan, scores, calibration)


@flow(name="run-bandit", flow_run_name="{config.run} stage {stage.number}")
def run_bandit(config: RunConfig, stage: Stage) -> str:
    """Run the rounds that are still to do, then choose the stage's documents; return the key of what was chosen.

    Raises:
        UnwantedFinding: the stage has a finding of `diagnosis.stop_on`; nothing was trained on it.
    """
    with dask_cluster(config.compute), timed(config.workspace, config.run, "bandit"):
        read_pool_states(config, stage.version)
        number = rounds_committed(config, stage)
        if stop_reason(config, stage, number) is None:
            number = _run_rounds(config, stage, number)
        chosen = select_stage(config, gate_refit(config, stage))
    refuse_unwanted(config, read_findings(config, stage))
    return chosen


def _run_rounds(config: RunConfig, stage: Stage, number: int) -> int:
    """Run rounds from `number` on until the stage ends, as one bar; return how many there are then."""
    accepted = accepted_tokens(config, stage, number)
    with progress(f"stage {stage.number}: rounds", wanted_tokens(config), "tokens above τ") as advance:
        advance(accepted)
        while (reason := stop_reason(config, stage, number)) is None:
            bandit_round(config, stage, number)
            number += 1
            before, accepted = accepted, accepted_tokens(config, stage, number)
            advance(accepted - before)
    notice(f"stage {stage.number}: {number} rounds, ended by {reason}")
    return number
