"""What is in infra/ is whole and consistent: files parse, names match, nothing runs as root or holds a secret."""

import ast
import asyncio
import copy
import importlib.util
import inspect
import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import dask
import jsonschema
import kubernetes_validate
import pytest
import yaml
from dask_calls import knock
from distributed import Client, LocalCluster
from distributed.security import Security
from prefect.events.schemas.automations import AutomationCore
from prefect.utilities.templating import apply_values, find_placeholders

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
COMPOSE = yaml.safe_load((INFRA / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
TEMPLATE = json.loads((INFRA / "kubernetes/base-job-template.json").read_text())
POOLS = yaml.safe_load((INFRA / "pools.yaml").read_text())
MANIFESTS = [
    document
    for file in sorted((INFRA / "kubernetes").glob("*.yaml"))
    for document in yaml.safe_load_all(file.read_text())
]
WORKLOADS = [manifest for manifest in MANIFESTS if manifest["kind"] == "Deployment"]
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


def load_script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, INFRA / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bootstrap = load_script("bootstrap")


def test_paths_of_a_deployments_configuration_are_absolute_whatever_section_they_stand_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "encoder").mkdir()
    body = {
        "pool": {"inputs": ["pool/*.jsonl", "s3://bucket/a.jsonl"]},
        "reference": {"sets": {"code": {"inputs": ["code.jsonl"], "weight": 2}, "mail": {"inputs": ["/mail.jsonl"]}}},
        "embedding": {"encoder": "encoder"},
        "model": {"source": "owner/name"},
    }
    assert bootstrap.absolute(body) == {
        "workspace": f"{tmp_path}/workspace",
        "pool": {"inputs": [f"{tmp_path}/pool/*.jsonl", "s3://bucket/a.jsonl"]},
        "reference": {
            "sets": {"code": {"inputs": [f"{tmp_path}/code.jsonl"], "weight": 2}, "mail": {"inputs": ["/mail.jsonl"]}}
        },
        "embedding": {"encoder": f"{tmp_path}/encoder"},
        "model": {"source": "owner/name"},
    }


def job_of(pool: dict[str, Any]) -> dict[str, Any]:
    """Render a pool's Job as a worker would: the template's defaults, then the run's own values."""
    template = bootstrap.job_template("kubernetes", pool["defaults"])
    values = {name: v["default"] for name, v in template["variables"]["properties"].items() if "default" in v}
    rendered = apply_values(template["job_configuration"], values | {"command": ["prefect", "flow-run", "execute"]})
    manifest = rendered["job_manifest"]
    container = manifest["spec"]["template"]["spec"]["containers"][0]
    container["env"] = [{"name": name, "value": value} for name, value in container["env"].items()]  # as a worker does
    return manifest


def is_fixed(image: str) -> bool:
    """Say whether an image is named by a tag that is not `latest`, with or without a digest."""
    found = re.fullmatch(r"[\w./-]+:([\w.-]+)(@sha256:[0-9a-f]{64})?", image)
    return found is not None and found[1] != "latest"


def test_an_image_may_be_pinned_by_its_digest():
    digest = "0123456789abcdef" * 4
    assert is_fixed("postgres:16-alpine")
    assert is_fixed(f"postgres:16-alpine@sha256:{digest}")
    loose = ("postgres", "postgres:latest", f"postgres:latest@sha256:{digest}", f"postgres:16@sha256:{digest[1:]}")
    assert [image for image in loose if is_fixed(image)] == []


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_an_image_is_built_from_a_fixed_base_with_pinned_packages_and_does_not_run_as_root(kind):
    text = (INFRA / f"Dockerfile.{kind}").read_text()
    (base,) = re.findall(r"^FROM (\S+)$", text, re.MULTILINE)
    assert is_fixed(base)
    assert "-c constraints.txt" in text
    assert text.index("\nUSER 10001\n") > text.rindex("\nRUN ")
    copied = [name for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE) for name in line.split()[:-1]]
    assert [name for name in copied if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_an_images_file_holds_instructions_that_docker_knows(kind):
    text = (INFRA / f"Dockerfile.{kind}").read_text().replace("\\\n", " ")
    words = [line.split()[0] for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert words[0] == "FROM"
    assert set(words) <= {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "USER", "CMD", "EXPOSE", "ENTRYPOINT"}
    assert words.count("CMD") == 1


def compose_as_given() -> dict[str, Any]:
    """Fill in the variables of compose.yaml: a default where there is one, a word where one must be given."""
    text = re.sub(r'"\$\{\w+:-(\d+)\}"', r"\1", (INFRA / "compose.yaml").read_text())
    return yaml.safe_load(re.sub(r"\$\{\w+:\?[^}]*\}", "given", re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)))


def check_compose(body: dict[str, Any]) -> None:
    compose_spec = pytest.importorskip("compose_spec")
    compose_spec.PyCompose.from_yaml(yaml.safe_dump(body))


def test_compose_keeps_to_its_specification_and_the_check_bites():
    body = compose_as_given()
    check_compose(body)
    body["services"]["minio"]["comand"] = ["server"]
    with pytest.raises(ValueError, match=r"services\.minio: extension key `comand`"):
        check_compose(body)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_a_fixed_image_and_what_it_depends_on(name):
    service = SERVICES[name]
    assert is_fixed(service["image"])
    assert set(service.get("depends_on", ())) <= set(SERVICES)
    if "build" in service:
        assert (INFRA / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    waits_for = service.get("depends_on", {})
    conditions = waits_for.items() if isinstance(waits_for, dict) else ()
    healthy = [wanted for wanted, state in conditions if state["condition"] == "service_healthy"]
    assert [wanted for wanted in healthy if "healthcheck" not in SERVICES[wanted]] == []


def test_services_publish_on_loopback_only():
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_services_take_every_secret_from_the_environment_and_fail_without_it():
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|ACCESS_KEY|CONNECTION_URL|ROOT_USER", name):
                assert re.search(r"\$\{\w+:\?", value), name


def test_compose_starts_everything_a_run_needs():
    assert set(SERVICES) >= {"postgres", "prefect", "minio", "dask-scheduler", "dask-worker", "worker-cpu"}
    address = SERVICES["dask-worker"]["environment"]["DASK_SCHEDULER_ADDRESS"]
    assert address in SERVICES["dask-worker"]["command"]
    assert address == "tls://dask-scheduler:8786"


def test_services_are_confined_and_dask_speaks_tls_by_one_certificate():
    quad = {name: service for name, service in SERVICES.items() if "build" in service}
    assert len(quad) > 5
    for service in quad.values():
        assert (service["read_only"], service["tmpfs"], service["cap_drop"]) == (True, ["/tmp"], ["ALL"])
    assert all(service["security_opt"] == ["no-new-privileges:true"] for service in SERVICES.values())
    for name in ("dask-scheduler", "dask-worker", "worker-cpu", "worker-gpu"):
        environment = SERVICES[name]["environment"]
        assert environment["DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION"] == "true"
        assert "tls:/tls:ro" in SERVICES[name]["volumes"]


def test_dask_started_as_compose_does_takes_whoever_has_the_key_and_nobody_else(tmp_path):
    """The environment of compose.yaml, with the certificate that bootstrap.py makes."""
    bootstrap.make_certificate(tmp_path)
    made = (tmp_path / "key.pem").read_bytes()
    bootstrap.make_certificate(tmp_path)
    assert (tmp_path / "key.pem").read_bytes() == made
    assert (tmp_path / "key.pem").stat().st_mode & 0o077 == 0
    given = {k: v for k, v in SERVICES["dask-scheduler"]["environment"].items() if k.startswith("DASK_DISTRIBUTED")}
    settings = {
        name.removeprefix("DASK_").lower().replace("__", "."): yaml.safe_load(value.replace("/tls", str(tmp_path)))
        for name, value in given.items()
    }
    with dask.config.set(settings):
        security = Security()
        with (
            LocalCluster(
                n_workers=1, processes=False, dashboard_address="127.0.0.1:0", security=security, host="tls://127.0.0.1"
            ) as cluster,
            Client(cluster.scheduler_address, set_as_default=False) as client,
        ):
            assert cluster.scheduler_address.startswith("tls://")
            assert client.submit(int, "3").result() == 3
            with pytest.raises(OSError, match=r".+"):
                knock(cluster.scheduler_address, Security.temporary())


def test_workers_of_the_slurm_job_script_join_over_tls_and_compute(tmp_path, monkeypatch, capsys):
    """The script that SLURM would run, run by bash."""
    pytest.importorskip("dask_jobqueue")
    bootstrap.make_certificate(tmp_path)
    certificate, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    slurm = load_script("slurm_cluster")
    monkeypatch.setattr("sys.argv", ["slurm_cluster.py", str(tmp_path), "--cores", "2", "--print"])
    slurm.main()
    script = capsys.readouterr().out
    assert "#SBATCH --cpus-per-task=2" in script
    assert "export MALLOC_TRIM_THRESHOLD_=67108864" in script
    security = Security(
        tls_ca_file=certificate, tls_scheduler_cert=certificate, tls_scheduler_key=key, tls_client_cert=certificate,
        tls_client_key=key, require_encryption=True,
    )  # fmt: skip
    with (
        LocalCluster(
            n_workers=0, dashboard_address="127.0.0.1:0", security=security, host="tls://127.0.0.1"
        ) as cluster,
        Client(cluster.scheduler_address, security=security, set_as_default=False) as client,
    ):
        here = re.sub(r"tls://[\d.]+:\d+", cluster.scheduler_address, script)
        workers = subprocess.Popen(["bash", "-c", here], start_new_session=True, stderr=subprocess.DEVNULL)
        try:
            client.wait_for_workers(2, timeout=90)
            assert client.submit(int, "3").result() == 3
            assert {worker["nthreads"] for worker in client.scheduler_info(-1)["workers"].values()} == {1}
        finally:
            os.killpg(workers.pid, signal.SIGTERM)
            workers.wait(30)


def test_the_coiled_example_names_what_a_cluster_takes():
    calls = [
        node for node in ast.walk(ast.parse((INFRA / "coiled_cluster.py").read_text())) if isinstance(node, ast.Call)
    ]
    (call,) = [node for node in calls if isinstance(node.func, ast.Name) and node.func.id == "Cluster"]
    named = {keyword.arg for keyword in call.keywords}
    assert {"container", "n_workers", "worker_options"} <= named
    cluster = pytest.importorskip("coiled").Cluster
    assert named <= set(inspect.signature(cluster.__init__).parameters)


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda m: f"{m['kind']}-{m['metadata']['name']}")
def test_a_kubernetes_object_is_named_and_holds_no_secret(manifest):
    assert manifest["apiVersion"]
    assert manifest["metadata"]["namespace"] == "quad"
    assert manifest["kind"] != "Secret"
    assert not re.search("SECRET|PASSWORD|ACCESS_KEY", json.dumps(manifest.get("data", {})))


@pytest.mark.parametrize(
    "manifest",
    [*MANIFESTS, *(job_of(pool) for pool in POOLS)],
    ids=lambda m: f"{m['kind']}-{m['metadata'].get('name', 'of-a-flow-run')}",
)
def test_a_kubernetes_object_keeps_to_its_schema(manifest):
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_the_kubernetes_check_bites():
    broken = copy.deepcopy(WORKLOADS[0])
    broken["spec"]["template"]["spec"]["containers"][0]["comand"] = ["dask"]
    with pytest.raises(kubernetes_validate.ValidationError, match="'comand' was unexpected"):
        kubernetes_validate.validate(broken, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda w: w["metadata"]["name"])
def test_a_workload_is_selected_by_its_labels_bounded_and_unprivileged(workload):
    template = workload["spec"]["template"]
    assert workload["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert template["spec"]["securityContext"]["runAsNonRoot"] is True
    for container in template["spec"]["containers"]:
        assert container["resources"]["limits"]["memory"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert {"name": "scratch", "mountPath": "/tmp"} in container["volumeMounts"]
    assert template["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}


def test_a_job_is_as_confined_as_a_workload():
    spec = job_of(POOLS[0])["spec"]["template"]["spec"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_nobody_from_outside_the_namespace_may_connect():
    (policy,) = [manifest for manifest in MANIFESTS if manifest["kind"] == "NetworkPolicy"]
    assert policy["spec"] == {
        "podSelector": {},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {}}]}],
    }


def test_dask_workers_and_jobs_find_a_scheduler_that_is_served():
    services = {m["metadata"]["name"]: m for m in MANIFESTS if m["kind"] == "Service"}
    labels = {w["spec"]["template"]["metadata"]["labels"]["app"] for w in WORKLOADS}
    assert {service["spec"]["selector"]["app"] for service in services.values()} <= labels
    addresses = [m["data"]["DASK_SCHEDULER_ADDRESS"] for m in MANIFESTS if m["kind"] == "ConfigMap"]
    commands = [part for w in WORKLOADS for part in w["spec"]["template"]["spec"]["containers"][0]["command"]]
    addresses += [part for part in commands if part.startswith("tls://dask-")]
    assert len(addresses) == 4
    assert {address.removeprefix("tls://").removesuffix(":8786") for address in addresses} == set(services)


def test_every_config_map_secret_and_account_that_is_named_exists_or_is_documented():
    readme = (INFRA / "README.md").read_text()
    text = json.dumps([MANIFESTS, [job_of(pool) for pool in POOLS]])
    maps = {m["metadata"]["name"] for m in MANIFESTS if m["kind"] == "ConfigMap"}
    accounts = {m["metadata"]["name"] for m in MANIFESTS if m["kind"] == "ServiceAccount"}
    assert set(re.findall(r'"configMapRef": {"name": "([\w-]+)"', text)) == maps
    assert set(re.findall(r'"serviceAccountName": "([\w-]+)"', text)) == accounts
    for name in set(re.findall(r'"secretRef": {"name": "([\w-]+)"', text)):
        assert f"create secret generic {name}" in readme


def test_the_gpu_pool_and_the_gpu_workers_run_on_gpu_nodes_only():
    gpu = next(w for w in WORKLOADS if w["metadata"]["name"] == "dask-gpu-worker")["spec"]["template"]["spec"]
    job = job_of(next(pool for pool in POOLS if pool["name"] == "quad-gpu"))["spec"]["template"]["spec"]
    for pod in (gpu, job):
        assert pod["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
        assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
        assert pod["containers"][0]["image"].startswith("quad-gpu:")


def test_the_cpu_pool_asks_for_no_gpu():
    pod = job_of(next(pool for pool in POOLS if pool["name"] == "quad-cpu"))["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 0
    assert pod["nodeSelector"] == {}


@pytest.mark.parametrize("pool", POOLS, ids=lambda pool: pool["name"])
def test_a_job_template_declares_what_it_uses_and_its_defaults_are_valid(pool):
    template = bootstrap.job_template("kubernetes", pool["defaults"])
    schema = template["variables"]
    jsonschema.Draft202012Validator.check_schema(schema)
    used = {placeholder.name for placeholder in find_placeholders(template["job_configuration"])}
    assert used == set(schema["properties"])
    defaults = {name: v["default"] for name, v in schema["properties"].items() if "default" in v}
    jsonschema.validate(defaults, schema)


def test_a_pool_changes_only_variables_the_template_has():
    for pool in POOLS:
        assert set(pool["defaults"]) <= set(TEMPLATE["variables"]["properties"])


def test_deployments_use_the_pools_that_are_made():
    assert {deployment["work_pool"]["name"] for deployment in DEPLOYMENTS} == {pool["name"] for pool in POOLS}


@pytest.mark.parametrize("file", sorted((INFRA / "automations").glob("*.yaml")), ids=lambda file: file.stem)
def test_an_automation_is_one_that_prefect_accepts(file):
    automation = AutomationCore.model_validate(yaml.safe_load(file.read_text()))
    assert automation.description
    assert automation.actions


def test_zombie_detection_waits_for_several_heartbeats():
    body = yaml.safe_load((INFRA / "automations/crash-zombie-flows.yaml").read_text())
    (every,) = set(re.findall(r"HEARTBEAT_FREQUENCY\W+(?:value: )?\W?(\d+)", "\n".join(_texts())))
    assert body["trigger"]["within"] >= 3 * int(every)


def _texts() -> list[str]:
    return [file.read_text() for file in INFRA.rglob("*") if file.suffix in (".yaml", ".sh")]


def test_the_ui_listens_on_loopback_and_its_script_parses():
    text = (INFRA / "ui.sh").read_text()
    assert "--host 127.0.0.1" in text
    assert "0.0.0.0" not in text
    subprocess.run(["bash", "-n", str(INFRA / "ui.sh")], check=True)


def test_every_file_the_guide_names_exists():
    for path in re.findall(r"\]\(([\w./-]+)\)", (INFRA / "README.md").read_text()):
        assert (INFRA / path).exists(), path


def test_a_secret_block_that_job_variables_name_reaches_a_flow_runs_environment(prefect_server):
    from prefect.blocks.system import Secret
    from prefect.client.orchestration import get_client
    from prefect.workers.process import ProcessJobConfiguration

    Secret(value="planted-in-a-block").save("quad-s3", overwrite=True)
    (example,) = re.findall(r"`env: (\{[^`]+\})`", (INFRA / "README.md").read_text())

    async def configure() -> ProcessJobConfiguration:
        async with get_client() as client:
            template = bootstrap.job_template("process", {})
            values = {"env": yaml.safe_load(example)}
            return await ProcessJobConfiguration.from_template_and_values(template, values, client=client)

    assert asyncio.run(configure()).env["AWS_SECRET_ACCESS_KEY"] == "planted-in-a-block"


@pytest.mark.slow
def test_a_server_brought_up_twice_has_everything_once(prefect_server):
    from prefect.client.orchestration import get_client

    states = []
    for _ in range(2):
        with get_client(sync_client=True) as client:
            bootstrap.wait_for_server(client)
            bootstrap.ensure_pools(client, "process")
            bootstrap.deploy(str(client.api_url), str(ROOT))
            bootstrap.ensure_automations(client)
            states.append(
                (
                    sorted((pool.name, pool.type) for pool in client.read_work_pools()),
                    sorted((d.name, d.work_pool_name, d.entrypoint) for d in client.read_deployments()),
                    sorted(automation.name for automation in client.read_automations()),
                )
            )
    pools, deployments, automations = states[0]
    assert states[0] == states[1]
    assert {name for name, _ in pools} >= {pool["name"] for pool in POOLS}
    assert [name for name, _, _ in deployments] == sorted(deployment["name"] for deployment in DEPLOYMENTS)
    assert len(automations) == len(list((INFRA / "automations").glob("*.yaml")))
