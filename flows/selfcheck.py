"""Flow: the experiment "selfcheck": whole runs on planted pools, some with their influences permuted."""

from uuid import uuid4

from flows.select_data import select_data
from quad_tasks.config.compute import ComputeConfig
from quad_tasks.config.schema import ConfigError, RunConfig
from quad_tasks.experiments.experiment import Experiment
from quad_tasks.experiments.selfcheck import Result, describe, draw, find_failures, lay_out, prepare, shuffle_influence
from quad_tasks.records import Stage
from quad_tasks.runtime.run import hold_run_lease, pinned_pool, starting_checkpoint
from quad_tasks.stages.bandit.commit_round import commit_round
from quad_tasks.stages.bandit.plan_round import plan_round
from quad_tasks.stages.bandit.round_settings import round_settings
from quad_tasks.stages.bandit.score_round import score_round
from quad_tasks.storage.store import open_store


def measure_selfcheck(workspace: str, config: RunConfig | None, quick: bool) -> Result:
    """Make every run anew; return what was found of what was planted.

    Args:
        workspace: path or URI the runs are kept under.
        config: says where they compute; the pools are planted, whatever it names.
        quick: refused: there is one size.

    Raises:
        ConfigError: a small size is asked for.
    """
    if quick:
        raise ConfigError("--quick: the self-check has one size; leave it out")
    compute = config.compute if config else ComputeConfig()
    runs = prepare(workspace, compute, f"selfcheck-{uuid4().hex[:8]}")
    select_data(runs.planted)
    for repeats, within_source in ((runs.lengths, True), (runs.shuffled, False)):
        for number, settings in enumerate(repeats):
            commit_shuffled_round(settings, number, within_source)
            select_data(settings, until="train")
    return describe(runs)


def commit_shuffled_round(config: RunConfig, number: int, within_source: bool) -> None:
    """Score the pilot of a run and commit it with its influences permuted; the run goes on from there.

    Args:
        config: of the run.
        number: of the permutation.
        within_source: whether documents of a source exchange influences among themselves alone.
    """
    direction = select_data(config, until="fit")
    store, settings = open_store(config.workspace), round_settings(config, 0)
    version = pinned_pool(store, config.run)
    assert version is not None, "a run that is fitted keeps to a pool version"
    stage = Stage(config.run, 0, version, starting_checkpoint(store, version), direction)
    with hold_run_lease(store, config.run):
        plan = plan_round(store, stage, 0, settings)
        scores = shuffle_influence(score_round(store, stage, plan, settings.use), [config.seed, number], within_source)
        commit_round(store, stage, 0, settings, plan, scores)


SELFCHECK = Experiment(
    "effects planted in made-up pools, found or not: four verdicts",
    Result,
    measure_selfcheck,
    lay_out,
    draw,
    find_failures,
)
