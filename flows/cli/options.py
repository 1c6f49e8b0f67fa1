"""Arguments and options that several commands take, and how they run a flow."""

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The run's configuration.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key: bandit.alpha=0.5.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show logs, and tracebacks of errors.")]
Workspace = Annotated[str, typer.Option(help="Path or URI the run is kept under.")]
Inputs = Annotated[
    list[str] | None, typer.Option(metavar="FILE", help="Files or globs; give it again for more of them.")
]
GOES_ON = "the same command goes on from the last commit"
Price = Annotated[float | None, typer.Option(min=0, help="What all machines cost an hour, in any currency.")]


def complete_run(context: typer.Context, incomplete: str) -> list[str]:
    """Complete a run's name from the workspace given before it, or the default one."""
    from quad_tasks.runtime.run import list_runs
    from quad_tasks.storage.errors import StorageError

    with suppress(StorageError):
        there = list_runs(context.params.get("workspace") or "workspace")
        return [name for name in there if name.startswith(incomplete)]
    return []


RunName = Annotated[str, typer.Argument(metavar="RUN", help="The run's name.", autocompletion=complete_run)]


def given_config(path: Path | str | None, overrides: list[str] | None) -> Any:
    """Load a configuration that need not be given; None without one.

    Raises:
        ConfigError: it cannot be read, or there is none for the overrides.
    """
    from quad_tasks.config.load import load_config
    from quad_tasks.config.schema import ConfigError

    if path is None and overrides:
        raise ConfigError(f"--set {overrides[0]}: expected a configuration whose key it overrides, found none given")
    return None if path is None else load_config(path, overrides or ())


def loading() -> AbstractContextManager[None]:
    """Say that a command loads what it computes with, which takes seconds, while it does."""
    from quad_tasks.runtime.progress import working

    return working("load libraries")


def run_selection(config: Any, as_json: bool) -> None:
    """Run the whole selection and print its headline."""
    with loading():
        from flows.cli.printing import print_report
        from flows.select_data import select_data

    run_flow(select_data, config)
    print_report(config, as_json)


def run_until(config: Any, until: Literal["fit", "bandit", "train"]) -> str:
    """Run the selection up to a step of its current stage; return the key of what that step made."""
    with loading():
        from flows.select_data import select_data

    return str(run_flow(select_data, config, until))


def run_flow(flow: Callable[..., Any], *arguments: Any) -> Any:
    """Run a flow from the command line: no heartbeats, since nobody watches for zombies here.

    Raises:
        KeyboardInterrupt: as it came, and says that what was committed stays.
    """
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        try:
            return flow(*arguments)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(GOES_ON) from None
