"""`quad`: a thin face over the flows.

Exit codes: 0 done, 1 failed, 2 bad input or config. An error is one message, never a traceback, unless `--debug`.
"""

from importlib.metadata import version
from multiprocessing import forkserver
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.options import (
    AsJson,
    ConfigPath,
    Debug,
    Inputs,
    Overrides,
    Price,
    Quiet,
    RunName,
    Workspace,
    given_config,
    loading,
    run_flow,
    run_selection,
)
from flows.cli.parts import bandit_app, influence_app, pool_app, train
from flows.cli.results import clean, compare, export, inspect, report, verify
from flows.cli.terminal import BAD_INPUT, FAILED, print_body, print_rows, session
from flows.cli.watch import events, metrics, status

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


def _print_version(asked: bool) -> None:
    if asked:
        print(version("quad-data"))
        raise typer.Exit


@app.callback()
def quad(
    show_version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and end.")
    ] = False,
) -> None:
    """Choose pretraining data by influence and diversity. `quad demo` shows it; `quad init FILES` begins with yours."""


app.add_typer(pool_app, name="pool")
app.add_typer(influence_app, name="influence")
app.add_typer(bandit_app, name="bandit")
app.command()(train)

EXPERIMENTS = "end-to-end, bandit, sampling, homogeneity, attention, sensitivity, stages, diversity or selfcheck."


@app.command()
def init(
    files: Annotated[list[str], typer.Argument(metavar="FILES...", help="The pool's shards: paths, URIs or globs.")],
    reference: Inputs = None,
    heldout: Inputs = None,
    run: Annotated[str, typer.Option(metavar="NAME", help="The run's name, which other commands ask for.")] = "run",
    out: Annotated[Path, typer.Option(help="Where the configuration goes.")] = Path("config.yaml"),
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Look at a sample of your files and write a commented configuration for them.

    Example: quad init 'shards/*.jsonl.zst' --reference wanted.jsonl --run novels --out config.yaml
    """
    with session(True, debug):
        from flows.cli.printing import print_first_config
        from quad_tasks.commands.init import write_config

        result = write_config(files, out, reference or (), heldout or (), run)
        print_body(result, True) if as_json else print_first_config(result)


@app.command()
def keys(
    prefix: Annotated[str, typer.Argument(metavar="[SECTION]", help="A section or key; all without it.")] = "",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/configuration.md.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List the keys of a configuration with their defaults, ranges and meanings.

    Example: quad keys bandit
    """
    with session(True, debug):
        from quad_tasks.commands.keys import as_row, list_keys, render_reference

        rows = [as_row(key) for key in list_keys(prefix)]
        if markdown:
            print(render_reference(), end="")
        elif as_json:
            print_body({"keys": rows}, as_json)
        else:
            print_rows(rows)


@app.command()
def schema(debug: Debug = False) -> None:
    """Print the JSON Schema of a configuration, for editors and other tools.

    Example: quad schema > quad.schema.json
    """
    with session(True, debug):
        from quad_tasks.commands.schema import configuration_schema

        print_body(configuration_schema(), True)


@app.command()
def plan(
    config: ConfigPath,
    overrides: Overrides = None,
    price_per_hour: Price = None,
    device: Annotated[
        str | None, typer.Option(help="Plan the model's work for this GPU: a100, h100, h200 or l40s. None: as here.")
    ] = None,
    documents: Annotated[
        str | None, typer.Option(metavar="N", help="Take the inputs as a sample of a pool of N documents, such as 1e9.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Plan for this many workers. None: compute.workers.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Say what a run will take, stage by stage, before anything is spent.

    Example: quad plan config.yaml --documents 1e8 --workers 64 --device h100
    """
    with session(quiet, debug):
        from quad_tasks.commands.input_sample import parse_documents
        from quad_tasks.config.load import load_config

        count = None if documents is None else parse_documents(documents)
        _plan(load_config(config, overrides or ()), price_per_hour, as_json, device, count, workers)


@app.command()
def run(
    config: ConfigPath,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the plan, spend nothing.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Choose data: the whole run, going on where an earlier attempt stopped.

    Example: quad run config.yaml --set selection.budget_tokens=1_000_000
    """
    with session(quiet, debug):
        from quad_tasks.config.load import load_config

        settings = load_config(config, overrides or ())
        if dry_run:
            _plan(settings, None, as_json)
        else:
            _refuse_unfit(settings)
            run_selection(settings, as_json)


@app.command()
def doctor(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG.yaml]", help="A run's configuration; none: this machine alone.")
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Check configuration, checkpoint, inputs and environment; a line each: ok, or what is wrong and what to do.

    Example: quad doctor config.yaml
    """
    with session(True, debug):
        from quad_tasks.commands.doctor import examine

        rows = examine(given_config(config, overrides))
        if as_json:
            print_body({"checks": rows}, as_json)
        else:
            print_body({row["check"]: f"{'ok   ' if row['ok'] else 'WRONG'}  {row['found']}" for row in rows}, False)
        if not all(row["ok"] for row in rows):
            raise typer.Exit(BAD_INPUT)


@app.command()
def resume(
    run: RunName,
    workspace: Workspace = "workspace",
    overrides: Overrides = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Go on with an interrupted run from its last commit, on as many workers as you like.

    Example: quad resume lambada --workspace s3://bucket/quad --set compute.workers=8
    """
    with session(quiet, debug):
        from quad_tasks.runtime.run import load_run

        run_selection(load_run(workspace, run, overrides or ()), as_json)


@app.command()
def demo(
    workspace: Annotated[Path, typer.Option(help="Where the demo's corpus and run are kept.")] = Path("demo"),
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run the whole method on text every Python installation has.

    Example: quad demo
    """
    with session(quiet, debug):
        from flows.demo import demo_config

        run_selection(demo_config(workspace), as_json)


app.command()(verify)
app.command()(clean)
app.command()(status)
app.command()(events)
app.command()(metrics)
app.command()(inspect)
app.command()(report)


@app.command()
def experiment(
    name: Annotated[str, typer.Argument(metavar="NAME", help=EXPERIMENTS)],
    config: Annotated[
        str | None, typer.Option(help="Whose pool, reference and held-out data; none: the demo's.")
    ] = None,
    overrides: Overrides = None,
    workspace: Annotated[str | None, typer.Option(help="Path or URI; none: the configuration's.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The small size: minutes on 2 cores.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run a shipped experiment; print its tables, what it shows, and where its drawings are; exit 1 if a check fails.

    Example: quad experiment diversity --config config.yaml
    """
    with session(quiet, debug):
        with loading():
            from flows.cli.printing import print_experiment
            from flows.run_experiment import find_experiment, run_experiment

        find_experiment(name)
        given = given_config(config, overrides)
        where = workspace or (given.workspace if given else "workspace")
        if print_experiment(where, run_flow(run_experiment, name, given, where, quick), as_json):
            raise typer.Exit(FAILED)


app.command()(export)
app.command()(compare)


def main() -> None:
    """Run the command line."""
    app()


def _refuse_unfit(config: Any, elsewhere: bool = False) -> None:
    """Check in seconds what would end the run later; the same checks as `quad doctor`."""
    from quad_tasks.runtime.progress import working

    with working("check environment" if config is None else "check configuration and environment"):
        from quad_tasks.commands.doctor import refuse_unfit

        refuse_unfit(config, elsewhere)


def _plan(
    config: Any,
    price_per_hour: float | None,
    as_json: bool,
    device: str | None = None,
    documents: int | None = None,
    workers: int | None = None,
) -> None:
    """Plan a run; the processes that measure are forked from one that imports beside this one."""
    _refuse_unfit(None)  # Prefect, which is imported below, fails on a home that it cannot read
    forkserver.set_forkserver_preload(["quad_tasks.commands.estimates.probe"])
    forkserver.ensure_running()
    _refuse_unfit(config, device is not None or workers is not None)  # before the imports below, which take longer
    with loading():
        from flows.cli.printing import print_plan
        from quad_tasks.commands.plan import plan_run

    result = plan_run(config, price_per_hour, device, documents, workers)
    print_body(result, True) if as_json else print_plan(result)


if __name__ == "__main__":
    main()
