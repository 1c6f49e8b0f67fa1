"""The sections of a configuration that are never part of a result's identity: where it runs, at what it stops."""

from typing import Literal

from pydantic import Field

from quad_tasks.config.uris import Uri
from quad_tasks.config.values import Positive, Section, Signature, SizeBytes


class ComputeConfig(Section):
    """Where it runs; never part of a result's identity."""

    workers: Positive = Field(2, description="Processes of the local Dask cluster.")
    threads_per_worker: Positive = Field(1, description="BLAS threads of each worker.")
    dask_address: Uri | None = Field(
        None, description="An existing Dask scheduler; None: DASK_SCHEDULER_ADDRESS, or a local one."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where models run; auto: a GPU where there is one."
    )
    training_processes: Positive = Field(
        1, description="Processes of one machine that share each training; with GPUs a device each."
    )
    memory_limit: SizeBytes | None = Field(
        None,
        description="Most memory that all processes may hold together, in bytes or as `10GB`. Fewer models are trained "
        "at once to keep to it; a plan that cannot keep to it, and a fit whose sums alone are more, are refused. null: "
        "what the machine has, and a plan that needs more says so.",
    )


class DiagnosisConfig(Section):
    """What a run makes of its findings; never part of a result's identity."""

    stop_on: tuple[Signature, ...] = Field(
        (),
        description="Findings at which a run ends as failed: before the first fit, before a stage is trained, or after "
        "the report is written.",
    )
