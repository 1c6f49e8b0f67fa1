"""`quad`: a thin face over the flows.

Exit codes: 0 done, 1 failed, 2 bad input or config. An error is one message, never a traceback, unless `--debug`.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

PREFECT_DEFAULTS = {
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DASK_LOGGING__DISTRIBUTED": "critical",
}
FAILED, BAD_INPUT = 1, 2

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__.split("\n", 1)[0])
pool_app = typer.Typer(no_args_is_help=True, help="The candidate pool.")
app.add_typer(pool_app, name="pool")
bandit_app = typer.Typer(no_args_is_help=True, help="The bandit's rounds.")
app.add_typer(bandit_app, name="bandit")

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The run's configuration.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key: bandit.alpha=0.5.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show logs, and tracebacks of errors.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="The run's name.")]
Workspace = Annotated[str, typer.Option(help="Path or URI the run is kept under.")]


@app.command()
def run(
    config: ConfigPath, overrides: Overrides = None, as_json: AsJson = False, quiet: Quiet = False, debug: Debug = False
) -> None:
    """Choose data: the whole run, going on where an earlier attempt stopped.

    Example: quad run config.yaml --set selection.budget_tokens=1_000_000
    """
    with _session(quiet, debug):
        from quad_tasks.config import load_config

        _select(load_config(config, overrides or ()), as_json)


@app.command()
def resume(
    run: RunName,
    workspace: Workspace = "workspace",
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Go on with an interrupted run from its last commit.

    Example: quad resume lambada --workspace s3://bucket/quad
    """
    with _session(quiet, debug):
        from quad_tasks.run import load_run

        _select(load_run(workspace, run), as_json)


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
    with _session(quiet, debug):
        from flows.demo import demo_config

        _select(demo_config(workspace), as_json)


@pool_app.command()
def refresh(
    config: ConfigPath, overrides: Overrides = None, as_json: AsJson = False, quiet: Quiet = False, debug: Debug = False
) -> None:
    """Ingest, embed and cluster what is new; print the pool version.

    Example: quad pool refresh config.yaml
    """
    with _session(quiet, debug):
        from flows.refresh_pool import refresh_pool
        from quad_tasks.config import load_config
        from quad_tasks.storage.manifest import read_manifest
        from quad_tasks.storage.store import open_store

        settings = load_config(config, overrides or ())
        version = _flow(refresh_pool, settings)
        body = read_manifest(open_store(settings.workspace), version)
        counts = {key: body[key] for key in ("documents", "tokens", "arms", "set_aside")}
        _print({"version": version, **counts}, as_json)


@app.command()
def verify(run: RunName, workspace: Workspace = "workspace", as_json: AsJson = False, debug: Debug = False) -> None:
    """Check a run's digests and that documents in = set aside + unpulled + rejected + selected.

    Example: quad verify lambada
    """
    with _session(True, debug):
        from quad_tasks.run import load_run
        from quad_tasks.verify import verify_run

        result = verify_run(load_run(workspace, run))
        if not as_json:
            aside, rejected = sum(result["set_aside"].values()), sum(result["rejected"].values())
            print(
                f"{result['documents_in']:,} documents in = {aside:,} set aside + {result['unpulled']:,} unpulled"
                f" + {rejected:,} rejected + {result['selected']:,} selected"
            )
        _print(result, as_json)
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
    with _session(True, debug):
        from quad_tasks.clean import clean_run
        from quad_tasks.run import load_run

        result = clean_run(load_run(workspace, run), dry_run)
        _print(result if as_json else _by_kind(result), as_json)


@app.command()
def status(run: RunName, workspace: Workspace = "workspace", as_json: AsJson = False, debug: Debug = False) -> None:
    """Say how far a run is, from its ledger alone.

    Example: quad status lambada
    """
    with _session(True, debug):
        from quad_tasks.run import load_run, run_status

        _print(run_status(load_run(workspace, run)), as_json)


@app.command()
def report(run: RunName, workspace: Workspace = "workspace", as_json: AsJson = False, debug: Debug = False) -> None:
    """Print a finished run's headline and the path of its report.

    Example: quad report lambada
    """
    with _session(True, debug):
        from quad_tasks.run import load_run

        _print_report(load_run(workspace, run), as_json)


@bandit_app.command()
def replay(run: RunName, workspace: Workspace = "workspace", as_json: AsJson = False, debug: Debug = False) -> None:
    """Choose every committed round's arms again from the ledger alone; exit 1 where a choice differs.

    Example: quad bandit replay lambada
    """
    with _session(True, debug):
        from flows.cluster import dask_cluster
        from quad_tasks.replay import replay_run
        from quad_tasks.run import load_run

        config = load_run(workspace, run)
        with dask_cluster(config.compute):
            rounds = replay_run(config)
        reproduced = all(r["reproduced"] for r in rounds)
        if as_json:
            _print({"run": run, "reproduced": reproduced, "rounds": rounds}, as_json)
        else:
            _print_rows(rounds)
        if not reproduced:
            raise typer.Exit(FAILED)


@app.command()
def experiment(
    name: Annotated[str, typer.Argument(metavar="NAME", help="bandit: regret of every policy on known arms.")],
    workspace: Workspace = "workspace",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer repetitions: minutes.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run a shipped experiment; print its table, what it shows, and where its drawings are.

    Example: quad experiment bandit --quick
    """
    with _session(quiet, debug):
        from flows.run_experiment import run_experiment
        from quad_tasks.experiments.bandit import tables
        from quad_tasks.storage.manifest import read_manifest
        from quad_tasks.storage.store import open_store

        key = _flow(run_experiment, name, workspace, quick)
        store = open_store(workspace)
        result = read_manifest(store, key)
        if as_json:
            _print({**result, "result": str(store.local_path(key) or f"{store.uri}/{key}")}, as_json)
            return
        for title, rows in tables(result).items():
            Console().print(f"\n{title}")
            _print_rows(rows)
        print(f"\n{store.local_path(key) or f'{store.uri}/{key}'}")


def main() -> None:
    """Run the command line."""
    app()


def _select(config: Any, as_json: bool) -> None:
    from flows.select_data import select_data

    _flow(select_data, config)
    _print_report(config, as_json)


def _flow(flow: Callable[..., Any], *arguments: Any) -> Any:
    """Run a flow from the command line: no heartbeats, since nobody watches for zombies here."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        return flow(*arguments)


@contextmanager
def _session(quiet: bool, debug: bool) -> Iterator[None]:
    """Set up a command's process and turn errors into one message and an exit code."""
    for name, value in PREFECT_DEFAULTS.items():
        os.environ.setdefault(name, "INFO" if debug and "LOGGING" in name else value)
    if quiet:
        os.environ["QUAD_QUIET"] = "1"
    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        _fail("interrupted; `quad resume` goes on from the last commit", FAILED)
    except Exception as error:
        if debug:
            raise
        _fail(str(error) or type(error).__name__, _exit_code(error))


def _exit_code(error: Exception) -> int:
    from quad_tasks.config import ConfigError
    from quad_tasks.core.blocks import UnsupportedLayer
    from quad_tasks.core.model import ModelError
    from quad_tasks.storage.faults import InvalidKey, StoreKeyError, UnsupportedStore
    from quad_tasks.storage.manifest import ManifestMismatch
    from quad_tasks.storage.readers import InputError

    bad = (ConfigError, InputError, ModelError, UnsupportedLayer, UnsupportedStore, InvalidKey, StoreKeyError)
    return BAD_INPUT if isinstance(error, (*bad, ManifestMismatch)) else FAILED


def _fail(message: str, code: int) -> None:
    print(f"quad: {message}", file=sys.stderr)
    raise typer.Exit(code)


def _print(body: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(body, indent=1))
        return
    table = Table(show_header=False, box=None)
    for key, value in body.items():
        table.add_row(key.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value))
    Console().print(table)


def _by_kind(cleaned: dict[str, Any]) -> dict[str, Any]:
    """Give each kind of leftovers a line, and their sum the last one."""
    rows = {kind: f"{n['objects']:,} ({n['size_bytes']:,} bytes)" for kind, n in cleaned["leftovers"].items()}
    verb = "would be removed" if cleaned["dry_run"] else "removed"
    return {**rows, verb: f"{cleaned['objects']:,} ({cleaned['size_bytes']:,} bytes)"}


def _print_rows(rows: Sequence[dict[str, Any]]) -> None:
    table = Table(*(key.replace("_", " ") for key in rows[0]), box=None)
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)


def _print_report(config: Any, as_json: bool) -> None:
    from quad_tasks.storage.store import open_store

    store = open_store(config.workspace)
    key = f"runs/{config.run}/report"
    body = json.loads(store.get(f"{key}/report.json"))
    if as_json:
        print(json.dumps(body))
        return
    last = body["stages"][-1]
    rows: dict[str, Any] = {
        "run": body["run"],
        "pool": f"{body['pool']['documents']:,} documents, {body['pool']['tokens']:,} tokens",
        "scored": f"{body['scored']['documents']:,} documents ({body['scored']['share']:.1%})",
        "selected": f"{body['selected']['documents']:,} documents, {body['selected']['tokens']:,} tokens"
        f" (budget {body['selected']['budget_tokens']:,})",
        "reference loss": ", ".join(
            f"{last[kind]['reference_loss']:.4f} {kind}" for kind in ("before", "selected", "random") if kind in last
        ),
        "findings": ", ".join(f["signature"] for f in body["findings"]) or "none",
        "time": f"{sum(body['time_s'].values()):.0f} s",
        "peak memory": f"{body['peak_memory_bytes'] / 2**30:.2f} GiB",
        "report": store.local_path(f"{key}/index.html") or f"{store.uri}/{key}/index.html",
    }
    _print(rows, False)
