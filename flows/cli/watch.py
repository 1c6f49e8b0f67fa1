"""`quad status`, `quad events`, `quad metrics`: look at runs, from this machine or another, without touching them."""

import json
import time
from typing import Annotated

import typer

from flows.cli.options import AsJson, Debug, RunName, Workspace
from flows.cli.terminal import session

WATCH_S = 5.0
"""Between two looks at a run."""


def status(
    run: RunName,
    workspace: Workspace = "workspace",
    watch: Annotated[bool, typer.Option("--watch", help="Look every 5 seconds until it is finished.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Say how far a run is, from its ledger alone.

    Example: quad status lambada --watch
    """
    with session(True, debug):
        from flows.cli.printing import status_view
        from quad_tasks.runtime.run import load_run
        from quad_tasks.runtime.status import run_status
        from quad_tasks.storage.store import open_store

        store, config = open_store(workspace), load_run(workspace, run)
        with status_view(as_json, watch) as show:
            try:
                show(now := run_status(store, config))
                while watch and not now["reported"]:
                    time.sleep(WATCH_S)
                    show(now := run_status(store, config))
            except KeyboardInterrupt:  # of the watch: the run goes on
                return


def events(run: RunName, workspace: Workspace = "workspace", debug: Debug = False) -> None:
    """Print what happened in a run and when, a line of JSON an event.

    Example: quad events lambada | jq 'select(.event == "round_committed")'
    """
    with session(True, debug):
        from quad_tasks.runtime.events import read_events
        from quad_tasks.runtime.run import load_run
        from quad_tasks.storage.store import open_store

        load_run(workspace, run)
        for event in read_events(open_store(workspace), run):
            print(json.dumps(event))


def metrics(
    runs: Annotated[list[str] | None, typer.Argument(metavar="RUN", help="Their names; none: all.")] = None,
    workspace: Workspace = "workspace",
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Serve them at this port; none: print them once.")
    ] = None,
    host: Annotated[str, typer.Option(help="The address that is listened on.")] = "127.0.0.1",
    debug: Debug = False,
) -> None:
    """Give how far runs are as gauges for Prometheus: once, for a textfile, or at a port, for a scrape.

    Example: quad metrics --workspace s3://bucket/quad --port 9464
    """
    with session(True, debug):
        from quad_tasks.commands.metrics import render_gauges, serve_gauges

        if port is None:
            print(render_gauges(workspace, runs or ()), end="")
            return
        server, thread = serve_gauges(workspace, runs or (), host, port)
        print(f"http://{host}:{server.server_port}/metrics", flush=True)
        try:
            thread.join()
        except KeyboardInterrupt:  # asked to end
            server.shutdown()
