"""`quad`: a thin face over the flows.

Exit codes: 0 done, 1 failed, 2 bad input or config. An error is one message, never a traceback, unless `--debug`.
"""

from importlib.metadata import version
from multiprocessing import forkserver
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from flows.options import (
    AsJson,
    ConfigPath,
    Debug,
    Inputs,
    Overrides,
    Price,
    Quiet,
    RunName,
    Workspace,
    complete_run,
    run_flow,
    run_selection,
)
from flows.parts import bandit_app, influence_app, pool_app, train
from flows.terminal import FAILED, print_body, print_rows, session

SHIFTS_SHOWN = 20

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

EXPERIMENTS = "end-to-end, bandit, sampling, homogeneity, attention, sensitivity, stages or diversity."


@app.command()
def init(
    files: Annotated[list[str], typer.Argument(metavar="FILES...", help="The pool's shards: paths, URIs or globs.")],
    reference: Inputs = None,
    heldout: Inputs = None,
    out: Annotated[Path, typer.Option(help="Where the configuration goes.")] = Path("config.yaml"),
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Look at a sample of your files and write a commented configuration for them.

    Example: quad init 'shards/*.jsonl.zst' --reference wanted.jsonl --out config.yaml
    """
    with session(True, debug):
        from flows.printing import print_first_config
        from quad_tasks.initialise import write_config

        result = write_config(files, out, reference or (), heldout or ())
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
        from quad_tasks.config_reference import as_row, list_keys, render_reference

        rows = [as_row(key) for key in list_keys(prefix)]
        if markdown:
            print(render_reference(), end="")
        elif as_json:
            print_body({"keys": rows}, as_json)
        else:
            print_rows(rows)


@app.command()
def plan(
    config: ConfigPath,
    overrides: Overrides = None,
    price_per_hour: Price = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Say what a run will take, stage by stage, before anything is spent.

    Example: quad plan config.yaml --price-per-hour 2.50
    """
    with session(quiet, debug):
        from quad_tasks.config_file import load_config

        _plan(load_config(config, overrides or ()), price_per_hour, as_json)


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
        from quad_tasks.config_file import load_config

        settings = load_config(config, overrides or ())
        if dry_run:
            _plan(settings, None, as_json)
        else:
            run_selection(settings, as_json)


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
        from quad_tasks.run import load_run

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


@app.command()
def verify(run: RunName, workspace: Workspace = "workspace", as_json: AsJson = False, debug: Debug = False) -> None:
    """Check a run's digests and that documents in = set aside + unpulled + rejected + selected.

    Example: quad verify lambada
    """
    with session(True, debug):
        from quad_tasks.run import load_run
        from quad_tasks.verify import verify_run

        result = verify_run(load_run(workspace, run))
        if not as_json:
            aside, rejected = sum(result["set_aside"].values()), sum(result["rejected"].values())
            print(
                f"{result['documents_in']:,} documents in = {aside:,} set aside + {result['unpulled']:,} unpulled"
                f" + {rejected:,} rejected + {result['selected']:,} selected"
            )
        print_body(result if as_json else {**result, "orphans": len(result["orphans"])}, as_json)
        if result["orphans"] and not as_json:
            print(f"left behind by interrupted attempts, `quad clean {run}` removes it:", *result["orphans"], sep="\n")
        if not (result["balanced"] and result["scored_once"] and result["within_budget"]):
            raise typer.Exit(FAILED)


@app.command()
def clean(
    run: RunName,
    workspace: Workspace = "workspace",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be removed.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Remove what interrupted attempts left behind and no manifest names, while nobody drives the run.

    Example: quad clean lambada --dry-run
    """
    with session(True, debug):
        from flows.printing import by_kind
        from quad_tasks.clean import clean_run
        from quad_tasks.run import load_run

        result = clean_run(load_run(workspace, run), dry_run)
        print_body(result if as_json else by_kind(result), as_json)


@app.command()
def status(run: RunName, workspace: Workspace = "workspace", as_json: AsJson = False, debug: Debug = False) -> None:
    """Say how far a run is, from its ledger alone.

    Example: quad status lambada
    """
    with session(True, debug):
        from quad_tasks.run import load_run, run_status

        print_body(run_status(load_run(workspace, run)), as_json)


@app.command()
def inspect(
    run: RunName,
    document_id: Annotated[str, typer.Argument(metavar="DOCUMENT_ID", help="The document's id in the pool.")],
    workspace: Workspace = "workspace",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Tell one document's story: where it stands, its arm, its rounds, its influence, why it was taken or not.

    Example: quad inspect lambada dup-0001
    """
    with session(True, debug):
        from flows.printing import print_story
        from quad_tasks.inspect import inspect_document
        from quad_tasks.run import load_run

        story = inspect_document(load_run(workspace, run), document_id)
        print_body(story, True) if as_json else print_story(story)


@app.command()
def report(run: RunName, workspace: Workspace = "workspace", as_json: AsJson = False, debug: Debug = False) -> None:
    """Print a finished run's headline and the path of its report.

    Example: quad report lambada
    """
    with session(True, debug):
        from flows.printing import print_report
        from quad_tasks.run import load_run

        print_report(load_run(workspace, run), as_json)


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
    """Run a shipped experiment; print its tables, what it shows, and where its drawings are.

    Example: quad experiment diversity --config config.yaml
    """
    with session(quiet, debug):
        from flows.printing import print_experiment
        from flows.run_experiment import find_experiment, run_experiment
        from quad_tasks.config_file import load_config

        find_experiment(name)
        given = load_config(config, overrides or ()) if config else None
        where = workspace or (given.workspace if given else "workspace")
        print_experiment(where, run_flow(run_experiment, name, given, where, quick), as_json)


@app.command()
def export(
    run: RunName,
    out: Annotated[str, typer.Option(help="Folder, a path or URI, the export is written to.")],
    format: Annotated[str, typer.Option(help="parquet, jsonl.zst, or hf: a Hugging Face dataset folder.")] = "parquet",
    shard_size: Annotated[int, typer.Option(metavar="BYTES", help="Text bytes after which a file ends.")] = 256 * 2**20,
    license: Annotated[str, typer.Option(help="Licence identifier of the dataset card.")] = "other",
    workspace: Workspace = "workspace",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write the selection for training, in the pool's own field names.

    Example: quad export lambada --format hf --out dataset --license cc-by-4.0
    """
    with session(True, debug):
        from quad_tasks.config import ConfigError
        from quad_tasks.export import FORMATS, export_selection
        from quad_tasks.run import load_run

        if format not in FORMATS:
            raise ConfigError(f"--format: expected one of {', '.join(FORMATS)}, found {format!r}")
        written = export_selection(load_run(workspace, run), out, format, shard_size, license)
        summary = {key: written[key] for key in ("run", "format", "rows", "tokens")}
        print_body(written if as_json else {**summary, "files": len(written["files"]), "folder": out}, as_json)


@app.command()
def compare(
    run_a: Annotated[str, typer.Argument(metavar="RUN_A", help="A finished run.", autocompletion=complete_run)],
    run_b: Annotated[str, typer.Argument(metavar="RUN_B", help="Another one.", autocompletion=complete_run)],
    workspace: Workspace = "workspace",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Compare two finished runs: what both chose, the mixture, the outcome, the configuration.

    Example: quad compare lambada lambada-joint
    """
    with session(True, debug):
        from quad_tasks.compare import compare_runs

        compared = compare_runs(workspace, run_a, run_b)
        if as_json:
            print_body(compared, as_json)
            return
        print_body(compared["overlap"], as_json)
        for name in ("outcome", "mixture", "config"):
            rows = [row for row in compared[name] if row.get("shift") != 0]
            if rows:
                more = f", the {SHIFTS_SHOWN} largest shifts of {len(rows)}" if len(rows) > SHIFTS_SHOWN else ""
                Console().print(f"\n{name}{more if name == 'mixture' else ''}")
                print_rows(rows[:SHIFTS_SHOWN] if name == "mixture" else rows)


def main() -> None:
    """Run the command line."""
    app()


def _plan(config: Any, price_per_hour: float | None, as_json: bool) -> None:
    """Plan a run; the processes that measure are forked from one that imports beside this one."""
    forkserver.set_forkserver_preload(["quad_tasks.probe"])
    forkserver.ensure_running()
    from flows.printing import print_plan
    from quad_tasks.plan import plan_run

    result = plan_run(config, price_per_hour)
    print_body(result, True) if as_json else print_plan(result)


if __name__ == "__main__":
    main()
