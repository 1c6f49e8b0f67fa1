"""Flow: run one of the shipped experiments, by name."""

import time
from typing import Any

from flows.dask_cluster import dask_cluster
from flows.end_to_end import END_TO_END
from flows.selfcheck import SELFCHECK
from quad_tasks.config.compute import ComputeConfig
from quad_tasks.config.schema import ConfigError, RunConfig
from quad_tasks.experiments.attention import ATTENTION
from quad_tasks.experiments.bandit import BANDIT
from quad_tasks.experiments.diversity import DIVERSITY
from quad_tasks.experiments.experiment import Experiment, write_result
from quad_tasks.experiments.homogeneity import HOMOGENEITY
from quad_tasks.experiments.sampling import SAMPLING
from quad_tasks.experiments.sensitivity import SENSITIVITY
from quad_tasks.experiments.stages import STAGES
from quad_tasks.runtime.prefect_runs import flow

EXPERIMENTS: dict[str, Experiment[Any]] = {
    "end-to-end": END_TO_END,
    "bandit": BANDIT,
    "sampling": SAMPLING,
    "homogeneity": HOMOGENEITY,
    "attention": ATTENTION,
    "sensitivity": SENSITIVITY,
    "stages": STAGES,
    "diversity": DIVERSITY,
    "selfcheck": SELFCHECK,
}
"""Every shipped experiment, in the order of the method's list."""


@flow(name="run-experiment", flow_run_name="{name}")
def run_experiment(
    name: str, config: RunConfig | None = None, workspace: str | None = None, quick: bool = False
) -> str:
    """Run an experiment on a Dask cluster; return the key of its `result.json`.

    Args:
        name: of the experiment.
        config: names the pool, the reference and the held-out domains; none: the demo's corpus.
        workspace: path or URI the result is stored under; none: the configuration's, else `workspace`.
        quick: the small size, minutes on two cores.

    Raises:
        ConfigError: there is no such experiment.
    """
    experiment = find_experiment(name)
    where = workspace or (config.workspace if config else "workspace")
    with dask_cluster(config.compute if config else ComputeConfig()):
        started = time.perf_counter()
        measured = experiment.measure(where, config, quick)
        return write_result(where, name, experiment, quick, measured, time.perf_counter() - started)


def find_experiment(name: str) -> Experiment[Any]:
    """Find an experiment by its name.

    Raises:
        ConfigError: there is no such experiment.
    """
    if name not in EXPERIMENTS:
        raise ConfigError(f"experiment: expected one of {', '.join(EXPERIMENTS)}, found {name!r}")
    return EXPERIMENTS[name]
