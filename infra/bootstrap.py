"""Bring a Prefect server, or an S3 bucket, to the state this checkout expects; run it again at any time.

    python infra/bootstrap.py server                          # pools, deployments and automations at PREFECT_API_URL
    python infra/bootstrap.py server --pool-type kubernetes   # the same, pools from kubernetes/base-job-template.json
    python infra/bootstrap.py server --config config.yaml     # the same, deployments with a configuration of their own
    python infra/bootstrap.py bucket NAME                     # the workspace's bucket at AWS_ENDPOINT_URL
    python infra/bootstrap.py certificates FOLDER             # cert.pem and key.pem, by which Dask knows its own

Refuses to delete: what is no longer in the files stays on the server.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import botocore.session
import yaml
from botocore.exceptions import ClientError
from distributed.security import Security
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import (
    DeploymentScheduleUpdate,
    DeploymentUpdate,
    WorkPoolCreate,
    WorkPoolUpdate,
)
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

from quad_tasks.config.load import load_config
from quad_tasks.config.schema import RunConfig

INFRA = Path(__file__).resolve().parent
STARTUP_TIMEOUT_S = 180.0
POLL_S = 1.0


def main() -> None:
    """Parse the command line and do what it asks."""
    arguments = _arguments()
    if arguments.what == "bucket":
        ensure_bucket(arguments.name)
        return
    if arguments.what == "certificates":
        make_certificate(arguments.folder)
        return
    with get_client(sync_client=True) as client:
        wait_for_server(client)
        ensure_pools(client, arguments.pool_type)
        deploy(str(client.api_url), arguments.home)
        if arguments.config:
            give_config(client, load_config(arguments.config))
        ensure_automations(client)


def make_certificate(folder: Path) -> None:
    """Make a certificate and its key, which a Dask cluster's scheduler, workers and clients share; keep one there is.

    Whoever has the key may run code in the cluster.
    """
    certificate, key = folder / "cert.pem", folder / "key.pem"
    if certificate.exists() and key.exists():
        return
    made = Security.temporary()
    folder.mkdir(parents=True, exist_ok=True)
    key.touch(mode=0o600)
    key.write_text(str(made.tls_client_key))
    certificate.write_text(str(made.tls_client_cert))


def wait_for_server(client: SyncPrefectClient, timeout_s: float = STARTUP_TIMEOUT_S) -> None:
    """Wait until the server answers.

    Raises:
        TimeoutError: it did not within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while (error := client.api_healthcheck()) is not None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{client.api_url}: expected a Prefect server within {timeout_s:.0f} s, got {error}")
        time.sleep(POLL_S)


def ensure_pools(client: SyncPrefectClient, kind: str) -> None:
    """Create the work pools of pools.yaml, or update those that are there."""
    for pool in yaml.safe_load((INFRA / "pools.yaml").read_text()):
        template = job_template(kind, pool["defaults"])
        try:
            client.read_work_pool(pool["name"])
        except ObjectNotFound:
            client.create_work_pool(
                WorkPoolCreate(
                    name=pool["name"], type=kind, description=pool["description"], base_job_template=template
                )
            )
        else:
            update = WorkPoolUpdate(description=pool["description"], base_job_template=template)
            client.update_work_pool(pool["name"], update)


def job_template(kind: str, defaults: dict[str, Any]) -> dict[str, Any]:
    """Return a pool's base job template: Prefect's own for processes, ours with `defaults` for Kubernetes."""
    if kind == "process":
        return ProcessWorker.get_default_base_job_template()
    template: dict[str, Any] = copy.deepcopy(json.loads((INFRA / "kubernetes/base-job-template.json").read_text()))
    for name, value in defaults.items():
        template["variables"]["properties"][name]["default"] = value
    return template


def deploy(api_url: str, home: str) -> None:
    """Register the deployments of prefect.yaml, or update them.

    Args:
        api_url: of the server.
        home: where a worker finds the checkout.

    Raises:
        CalledProcessError: a deployment was refused.
    """
    environment = {**os.environ, "PREFECT_API_URL": api_url, "QUAD_HOME": home}
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    subprocess.run(command, cwd=INFRA.parent, env=environment, check=True)


def give_config(client: SyncPrefectClient, config: RunConfig) -> None:
    """Make a configuration the default parameter of the deployments that take one, and switch their schedules on."""
    body = absolute(config.model_dump(mode="json", exclude_unset=True))
    for deployment in client.read_deployments():
        if "config" in deployment.parameter_openapi_schema.get("properties", {}):
            schedules = [
                DeploymentScheduleUpdate(schedule=schedule.schedule, slug=schedule.slug, active=True)
                for schedule in deployment.schedules
            ]
            update = DeploymentUpdate(parameters={**deployment.parameters, "config": body}, schedules=schedules)
            client.update_deployment(deployment.id, update)


def absolute(body: dict[str, Any]) -> dict[str, Any]:
    """Make a configuration's relative paths absolute, from where they were written: a worker runs elsewhere."""
    body = {"workspace": "workspace", **body}
    body["workspace"] = _absolute(body["workspace"])
    of_reference = body.get("reference", {}).get("sets", {}).values()
    for given in (*(body.get(name, {}) for name in ("pool", "reference", "heldout")), *of_reference):
        if "inputs" in given:
            given["inputs"] = [_absolute(uri) for uri in given["inputs"]]
    for section, name in (("model", "source"), ("embedding", "encoder")):
        source = body.get(section, {}).get(name)
        if source and Path(source).exists():
            body[section][name] = _absolute(source)
    return body


def _absolute(uri: str) -> str:
    return uri if "://" in uri else str(Path(uri).absolute())


def ensure_automations(client: SyncPrefectClient) -> None:
    """Create the automations of automations/, or update those of the same name."""
    for file in sorted((INFRA / "automations").glob("*.yaml")):
        automation = AutomationCore.model_validate(yaml.safe_load(file.read_text()))
        existing = client.find_automation(automation.name)
        if existing is None:
            client.create_automation(automation)
        else:
            client.update_automation(existing.id, automation)


def ensure_bucket(name: str) -> None:
    """Create an S3 bucket unless it is there."""
    client = botocore.session.get_session().create_client("s3")
    try:
        client.create_bucket(Bucket=name)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
            raise


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    commands = parser.add_subparsers(dest="what", required=True)
    server = commands.add_parser("server")
    server.add_argument("--pool-type", choices=("process", "kubernetes"), default="process")
    server.add_argument("--config", type=Path, help="what the deployments run unless told otherwise")
    server.add_argument("--home", default=str(INFRA.parent), help="where a worker finds the checkout")
    commands.add_parser("bucket").add_argument("name")
    commands.add_parser("certificates").add_argument("folder", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
