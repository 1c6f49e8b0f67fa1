"""`quad verify|clean|inspect|report|export|compare`: what is asked of a run that there is."""

from typing import Annotated, Any

import typer
from rich.console import Console

from flows.cli.options import AsJson, Debug, RunName, Workspace, complete_run
from flows.cli.terminal import FAILED, print_body, print_rows, session

SHIFTS_SHOWN = 20


def verify(run: RunName, workspace: Workspace = "workspace", as_json: AsJson = False, debug: Debug = False) -> None:
    """Check a run's digests and that documents in = set aside + unpulled + rejected + selected.

    Example: quad verify lambada
    """
    with session(True, debug):
        from quad_tasks.commands.verify import verify_run
        from quad_tasks.runtime.run import load_run

        result = verify_run(load_run(workspace, run))
        if not as_json:
            aside, rejected = sum(result["set_aside"].values()), sum(result["rejected"].values())
            print(
                f"{result['documents_in']:,} documents in = {aside:,} set aside + {result['unpulled']:,} unpulled"
                f" + {rejected:,} rejected + {result['selected']:,} selected"
            )
        print_body(result if as_json else {**result, "orphans": len(result["orphans"])}, as_json)
        if result["orphans"] and not as_json:
            removes = f"`quad clean {run}` removes it once it is an hour old"
            print(f"left behind by interrupted attempts, {removes}:", *result["orphans"], sep="\n")
        if not (result["balanced"] and result["scored_once"] and result["within_budget"]):
            raise typer.Exit(FAILED)


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
        from flows.cli.printing import by_kind
        from quad_tasks.commands.clean import clean_run
        from quad_tasks.runtime.run import load_run

        result = clean_run(load_run(workspace, run), dry_run)
        print_body(result if as_json else by_kind(result), as_json)


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
        from flows.cli.printing import print_story
        from quad_tasks.commands.inspect import inspect_document
        from quad_tasks.runtime.run import load_run

        story = inspect_document(load_run(workspace, run), document_id)
        print_body(story, True) if as_json else print_story(story)


def report(run: RunName, workspace: Workspace = "workspace", as_json: AsJson = False, debug: Debug = False) -> None:
    """Print a finished run's headline and the path of its report.

    Example: quad report lambada
    """
    with session(True, debug):
        from flows.cli.printing import print_report
        from quad_tasks.runtime.run import load_run

        print_report(load_run(workspace, run), as_json)


def export(
    context: typer.Context,
    run: RunName,
    out: Annotated[str, typer.Option(help="Folder, a path or URI, the export is written to.")],
    format: Annotated[str, typer.Option(help="parquet, jsonl.zst, hf, mds, megatron, or an extension's.")] = "parquet",
    tokenize: Annotated[
        bool, typer.Option("--tokenize", help="Write token ids too; megatron has them always.")
    ] = False,
    shard_size: Annotated[int, typer.Option(metavar="BYTES", min=1, help="Text bytes after which a file ends.")] = 256
    * 2**20,
    license: Annotated[str, typer.Option(help="Licence identifier of the dataset card.")] = "other",
    influence: Annotated[
        bool, typer.Option("--influence", help="Write influence.parquet instead: every pool document's influence.")
    ] = False,
    workspace: Workspace = "workspace",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write the selection for training, in the pool's own field names.

    Example: quad export lambada --format hf --out dataset --license cc-by-4.0
    """
    with session(True, debug):
        from quad_tasks.commands.export.export_influence import export_influence
        from quad_tasks.commands.export.export_selection import export_selection
        from quad_tasks.runtime.run import load_run

        if influence:
            _refuse_given(context, "format", "tokenize", "shard_size", "license")
            print_body(export_influence(load_run(workspace, run), out), as_json)
            return
        written = export_selection(load_run(workspace, run), out, format, shard_size, license, tokenize)
        summary: dict[str, Any] = {
            key: written[key] for key in ("run", "format", "rows", "tokens", "token_ids") if key in written
        }
        print_body(written if as_json else {**summary, "files": len(written["files"]), "folder": out}, as_json)


def _refuse_given(context: typer.Context, *names: str) -> None:
    """Refuse options that only a selection is written by.

    Raises:
        ConfigError: one of them was given.
    """
    from quad_tasks.config.schema import ConfigError

    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            raise ConfigError(
                f"--{name.replace('_', '-')}: expected it without --influence, which writes one Parquet file of "
                "every document's influence"
            )


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
        from quad_tasks.commands.compare import compare_runs

        compared = compare_runs(workspace, run_a, run_b)
        if as_json:
            print_body(compared, as_json)
            return
        print_body({name: count for name, count in compared["overlap"].items() if count is not None}, as_json)
        if compared["overlap"]["jaccard"] is None:
            print("their pools have other names (pool.name): ids do not tell which documents both chose")
        for name in ("outcome", "mixture", "config"):
            rows = [row for row in compared[name] if row.get("shift") != 0]
            if rows:
                shown = largest_shifts(rows) if name == "mixture" else rows
                more = f", the {len(shown)} largest shifts of {len(rows)}" if len(shown) < len(rows) else ""
                Console().print(f"\n{name}{more}")
                print_rows(shown)


def largest_shifts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of a mixture that shifted most, in their order: by source, then by arm."""
    largest = sorted(range(len(rows)), key=lambda i: -abs(rows[i]["shift"]))[:SHIFTS_SHOWN]
    return [rows[i] for i in sorted(largest)]
