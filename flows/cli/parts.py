"""`quad pool|influence|bandit ...` and `quad train`: one part of a run at a time.

Each part works on the run's current stage, the first that is not trained, does what is missing before it, and commits
to the same ledger: `quad run` goes on from there.
"""

from typing import Annotated, Any

import typer
from rich.console import Console

from flows.cli.options import (
    AsJson,
    ConfigPath,
    Debug,
    Overrides,
    Quiet,
    RunName,
    Workspace,
    loading,
    run_flow,
    run_until,
)
from flows.cli.terminal import FAILED, print_body, print_rows, session

pool_app = typer.Typer(no_args_is_help=True, help="The candidate pool.")
influence_app = typer.Typer(no_args_is_help=True, help="Curvature and the reference direction.")
bandit_app = typer.Typer(no_args_is_help=True, help="The bandit's rounds.")


@pool_app.command()
def refresh(
    config: ConfigPath, overrides: Overrides = None, as_json: AsJson = False, quiet: Quiet = False, debug: Debug = False
) -> None:
    """Ingest, embed and cluster what is new; print the pool version.

    Example: quad pool refresh config.yaml
    """
    with session(quiet, debug):
        from quad_tasks.config.load import load_config

        settings = load_config(config, overrides or ())
        with loading():
            from flows.refresh_pool import refresh_pool
            from quad_tasks.storage.pool_versions import read_version
            from quad_tasks.storage.store import open_store

        version = run_flow(refresh_pool, settings)
        pool = read_version(open_store(settings.workspace), version)
        counts = pool.model_dump(include={"documents", "tokens", "arms", "set_aside"})
        print_body({"version": version, **counts}, as_json)


@pool_app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="POOL", help="The pool's name (pool.name).")] = "pool",
    workspace: Workspace = "workspace",
    arms: Annotated[int, typer.Option(min=0, help="Arms listed, largest first.")] = 20,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show a pool: its versions, what was set aside and why, its sources, its largest arms and their terms.

    Example: quad pool show lambada --arms 10
    """
    with session(True, debug):
        from quad_tasks.commands.show_pool import describe_pool

        described = describe_pool(workspace, name, arms)
        if as_json:
            print_body(described, as_json)
            return
        console = Console()
        for title in ("versions", "set_aside", "sources", "arms"):
            if described[title]:
                console.print(f"\n{title.replace('_', ' ')}", style="bold")
                print_rows(described[title])


@pool_app.command()
def prune(
    name: Annotated[str, typer.Argument(metavar="POOL", help="The pool's name (pool.name).")] = "pool",
    workspace: Workspace = "workspace",
    keep: Annotated[int, typer.Option(min=1, help="How many of the last versions stay.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be removed.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Remove old versions of a pool that no run keeps to, and what they alone were made from.

    Example: quad pool prune lambada --keep 2 --dry-run
    """
    with session(True, debug):
        from quad_tasks.stages.pool.prune_pool import prune_pool

        result = prune_pool(workspace, name, keep, dry_run)
        if as_json:
            print_body(result, as_json)
            return
        print_rows(result["versions"])
        verb = "would be removed" if dry_run else "removed"
        print_body({f"objects {verb}": result["objects"], f"bytes {verb}": result["size_bytes"]}, as_json)


@influence_app.command()
def fit(
    config: ConfigPath, overrides: Overrides = None, as_json: AsJson = False, quiet: Quiet = False, debug: Debug = False
) -> None:
    """Fit the factors and the reference direction of a run's current stage.

    Example: quad influence fit config.yaml
    """
    with session(quiet, debug):
        from quad_tasks.config.load import load_config

        settings = load_config(config, overrides or ())
        direction = run_until(settings, "fit")
        from quad_tasks.stages.influence.fit_direction import read_direction
        from quad_tasks.stages.influence.fit_factors import read_factors
        from quad_tasks.storage.store import open_store

        store = open_store(settings.workspace)
        made = read_direction(store, direction)
        body: dict[str, Any] = {
            "run": settings.run,
            "direction": direction,
            "factors": made.factors,
            "checkpoint": made.checkpoint,
        }
        if made.factors is None:
            print_body(body | {"adapted": made.adapted}, as_json)
            return
        factors = read_factors(store, made.factors)
        body |= {"blocks": len(factors.blocks), "sample_documents": factors.sample_documents}
        print_body(body | {"block_names": list(factors.blocks)} if as_json else body, as_json)


@bandit_app.command()
def run(
    config: ConfigPath, overrides: Overrides = None, as_json: AsJson = False, quiet: Quiet = False, debug: Debug = False
) -> None:
    """Run the rounds of a run's current stage and choose its documents; train nothing.

    Example: quad bandit run config.yaml --set bandit.max_rounds=20
    """
    with session(quiet, debug):
        from quad_tasks.config.load import load_config
        from quad_tasks.runtime.status import stage_summary
        from quad_tasks.storage.store import open_store

        settings = load_config(config, overrides or ())
        chosen = run_until(settings, "bandit")
        stage = int(chosen.split("/")[-2].removeprefix("stage-"))
        print_body(stage_summary(open_store(settings.workspace), settings.run, stage), as_json)


@bandit_app.command()
def replay(run: RunName, workspace: Workspace = "workspace", as_json: AsJson = False, debug: Debug = False) -> None:
    """Choose every committed round's arms again from the ledger alone; exit 1 where a choice differs.

    Example: quad bandit replay lambada
    """
    with session(True, debug):
        from flows.dask_cluster import dask_cluster
        from quad_tasks.commands.replay import replay_run
        from quad_tasks.runtime.run import load_run

        config = load_run(workspace, run)
        with dask_cluster(config.compute):
            rounds = replay_run(config)
        reproduced = all(r["reproduced"] for r in rounds)
        if as_json:
            print_body({"run": run, "reproduced": reproduced, "rounds": rounds}, as_json)
        else:
            print_rows(rounds)
        if not reproduced:
            raise typer.Exit(FAILED)


def train(
    config: ConfigPath, overrides: Overrides = None, as_json: AsJson = False, quiet: Quiet = False, debug: Debug = False
) -> None:
    """Train on the current stage's selection and on its random control, and print what both gave.

    Example: quad train config.yaml
    """
    with session(quiet, debug):
        from quad_tasks.config.load import load_config
        from quad_tasks.runtime.status import read_losses
        from quad_tasks.storage.store import open_store

        settings = load_config(config, overrides or ())
        checkpoint = run_until(settings, "train")
        rows = read_losses(open_store(settings.workspace), settings.training, checkpoint)
        if as_json:
            print_body({"run": settings.run, "trained": rows}, as_json)
        else:
            print_rows(rows)
