"""Each broken surrounding is one message with its name and what to do, and a whole one passes."""

import os
import re
import socket
import sys
import tempfile
import threading
import time
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
import pytest
from fsspec.registry import _registry
from hub_server import at_hub, running_hub
from s3_server import running_s3

from quad_tasks.config.compute import ComputeConfig
from quad_tasks.config.schema import ConfigError
from quad_tasks.runtime import check_environment as environment
from quad_tasks.storage.errors import UnsupportedStore

NOWHERE = {"distributed.comm.tls.ca-file": "/no/ca", "distributed.comm.tls.client.cert": "/no/cert"}


@pytest.fixture
def full_disk(monkeypatch):
    free = environment.shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda _path: free)


@pytest.fixture
def read_only(monkeypatch):
    """A folder in which nothing can be made: root may write anywhere, so the system's answer is given for it."""

    def refuse(*_arguments, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(environment.tempfile, "TemporaryFile", refuse)


def closed_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_whole_surroundings_pass_and_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert environment.check_directory() == os.getcwd()
    assert environment.check_home() == str(tmp_path / "prefect")
    assert environment.check_temporary() == tempfile.gettempdir()
    assert environment.check_workspace(str(tmp_path / "a" / "b")) == str(tmp_path / "a" / "b")
    assert environment.check_device(ComputeConfig(device="cpu")) == "cpu"
    assert environment.check_prefect() == "a temporary server for each command"
    assert list(tmp_path.iterdir()) == []


def test_a_deleted_working_directory_is_named(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ConfigError, match="working directory: expected one, found it deleted"):
        environment.check_directory()


def test_folders_that_cannot_be_written_are_named_with_their_variable(tmp_path, monkeypatch, read_only):
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=f"PREFECT_HOME: .*found {tmp_path}: Permission denied: set PREFECT_HOME"):
        environment.check_home()
    with pytest.raises(ConfigError, match=f"workspace: .*found {tmp_path}: Permission denied"):
        environment.check_workspace(str(tmp_path / "new"))


def test_a_full_disk_is_named(tmp_path, monkeypatch, full_disk):
    with pytest.raises(ConfigError, match=r"TMPDIR: expected room on the disk of .*found 1,000 bytes free"):
        environment.check_temporary()


def test_no_folder_for_temporary_files_is_named(monkeypatch):
    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(environment.tempfile, "gettempdir", none)
    with pytest.raises(ConfigError, match="TMPDIR: expected a folder for temporary files with room, found none"):
        environment.check_temporary()


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch):
    def none() -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("PREFECT_HOME", raising=False)
    monkeypatch.setattr(environment.Path, "home", none)
    with pytest.raises(ConfigError, match="HOME: expected the user's folder, found none: set HOME"):
        environment.check_home()


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"compute\.device: expected a GPU for 'cuda', found none"):
        environment.check_device(ComputeConfig(device="cuda"))
    assert environment.check_device(ComputeConfig(device="cuda", dask_address="tcp://elsewhere:1")) == "cuda"


def test_a_scheduler_that_is_not_there_or_has_no_worker_is_named(monkeypatch, tmp_path):
    from distributed import LocalCluster

    monkeypatch.setattr(environment, "ANSWER_S", 2.0)
    nowhere = f"tcp://127.0.0.1:{closed_port()}"
    with pytest.raises(ConfigError, match=f"compute.dask_address: expected a Dask scheduler at {nowhere}"):
        environment.check_workers(ComputeConfig(dask_address=nowhere), str(tmp_path))
    with LocalCluster(n_workers=0, processes=False, dashboard_address="127.0.0.1:0") as cluster:
        with pytest.raises(ConfigError, match=r"compute\.dask_address: expected workers at .*, found none: start some"):
            environment.check_workers(ComputeConfig(dask_address=cluster.scheduler_address), str(tmp_path))
        cluster.scale(1)
        cluster.wait_for_workers(1)
        found = environment.check_workers(ComputeConfig(dask_address=cluster.scheduler_address), str(tmp_path))
        assert found.startswith("1 workers at ")


@pytest.mark.parametrize(
    ("address", "settings", "says"),
    [
        (
            "tcp://127.0.0.1:1",
            {"distributed.comm.require-encryption": True},
            r"expected tls://\.\.\., .* found tcp://127\.0\.0\.1:1$",
        ),
        (
            "127.0.0.1:1",
            {"distributed.comm.require-encryption": True},
            r"expected tls://\.\.\., .* found 127\.0\.0\.1:1$",
        ),
        ("tls://127.0.0.1:1", {}, r"expected a certificate and its key for tls://.*, found none: set DASK_.*CA_FILE"),
        ("tls://127.0.0.1:1", NOWHERE, r"expected a certificate and its key .* \(/no/ca, /no/cert, None\)$"),
    ],
)
def test_an_address_that_does_not_fit_the_settings_of_tls_is_named(address, settings, says):
    import dask

    with dask.config.set(settings), pytest.raises(ConfigError, match=rf"^compute\.dask_address: .*{says}"):
        environment.check_workers(ComputeConfig(dask_address=address), "s3://bucket/quad")


def test_workers_without_the_drivers_disk_are_named(tmp_path):
    with pytest.raises(ConfigError, match="workspace: expected a place that workers see too, found that b does not"):
        environment._check_shared_disk(lambda _check, _path: {"a": True, "b": False}, str(tmp_path))


@pytest.fixture
def s3(monkeypatch):
    """An S3 server with a bucket `bucket` that has one file."""
    monkeypatch.setattr(environment, "ANSWER_S", 60.0)  # on a busy machine
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with running_s3() as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        with closing(boto3.client("s3")) as client:
            client.create_bucket(Bucket="bucket")
            client.put_object(Bucket="bucket", Key="pool/a.jsonl", Body=b"{}")
        yield


def test_a_missing_bucket_is_named(s3):
    with pytest.raises(
        ConfigError, match=r"workspace: expected a bucket .* at s3://none.*: check the bucket's"
    ) as refused:
        environment.check_workspace("s3://none/quad")
    assert "planted-secret" not in str(refused.value)


def test_inputs_in_a_bucket_are_found_or_named_with_their_key_and_what_to_do(s3):
    there = ["s3://bucket/pool/*.jsonl", "s3://bucket/pool/a.jsonl"]
    assert environment.check_inputs({"pool.inputs": there, "heldout.inputs": []}) == "s3://bucket"
    remedy = r": check the bucket's name, its endpoint \(AWS_ENDPOINT_URL\) and the credentials .*AWS_PROFILE"
    for uri in (
        "s3://none/pool/*.jsonl",
        "s3://Not_A_Bucket/a.jsonl",
        "s3://bucket/none/*.jsonl",
        "s3://bucket/b.jsonl",
    ):
        with pytest.raises(ConfigError, match=rf"^heldout\.inputs: .*{re.escape(uri)}.*{remedy}"):
            environment.check_inputs({"pool.inputs": there, "heldout.inputs": [uri]})


class Overloaded(BaseHTTPRequestHandler):
    """Finds every bucket and asks to come back later for all that is in it."""

    def do_HEAD(self) -> None:
        self.answer(200 if self.path.rstrip("/").count("/") == 1 else 503)

    def do_GET(self) -> None:
        self.answer(503)

    do_PUT = do_DELETE = do_GET

    def answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("key", "check"),
    [
        ("pool.inputs", lambda: environment.check_inputs({"pool.inputs": ["s3://bucket/pool/*.jsonl"]})),
        ("pool.inputs", lambda: environment.check_inputs({"pool.inputs": ["s3://bucket/pool/a.jsonl"]})),
        ("workspace", lambda: environment.check_workspace("s3://bucket/pool")),
    ],
)
def test_a_store_that_only_asks_to_come_back_is_named_in_the_time_of_one_answer(s3, monkeypatch, key, check):
    """Not in that of a reader's tries, which are waited for elsewhere."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Overloaded) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr("quad_tasks.storage.errors.sleep", lambda _seconds: over.wait())
        over = threading.Event()
        monkeypatch.setattr(environment, "ANSWER_S", 2.0)
        monkeypatch.setattr(environment, "LISTING_S", 2.0)
        with pytest.raises(ConfigError, match=rf"^{key}: s3://bucket/pool.*: expected an answer within 2 s, got none"):
            check()
        over.set()
        server.shutdown()


def test_many_names_may_take_longer_to_list_than_an_answer_takes(s3, monkeypatch):
    listed = environment.expand_inputs

    def slowly(patterns):
        time.sleep(1.5)
        return listed(patterns)

    monkeypatch.setattr(environment, "expand_inputs", slowly)
    monkeypatch.setattr(environment, "_check_answers", lambda *_: None)
    monkeypatch.setattr(environment, "ANSWER_S", 1.0)
    assert environment.check_inputs({"pool.inputs": ["s3://bucket/pool/*.jsonl"]}) == "s3://bucket"


@pytest.mark.parametrize("uri", ["s3://", "s3:///a.jsonl", "nothing://a.jsonl"])
def test_a_uri_without_a_bucket_or_a_filesystem_is_named_with_its_key(uri):
    with pytest.raises(UnsupportedStore, match=rf"^reference\.inputs: expected .*{uri}"):
        environment.check_inputs({"reference.inputs": [uri]})
    with pytest.raises(UnsupportedStore, match=rf"^workspace: expected .*{uri}"):
        environment.check_workspace(uri)


def test_datasets_of_the_hub_are_found_or_named_with_their_key_and_what_to_do(monkeypatch):
    monkeypatch.setattr(environment, "ANSWER_S", 60.0)
    uri = "hf://datasets/owner/name/**/*.jsonl"
    with running_hub({"owner/name": {"data/a.jsonl": b"{}"}}) as hub:
        at_hub(monkeypatch, hub.address)
        assert environment.check_inputs({"pool.inputs": [uri]}) == "hf://datasets/owner/name"
        for other in (uri.replace("jsonl", "parquet"), uri.replace("name", "none"), uri.replace("name", "gated")):
            with pytest.raises(
                ConfigError, match=rf"^pool\.inputs: .*{re.escape(other)}.*: check the name; .*HF_TOKEN"
            ):
                environment.check_inputs({"pool.inputs": [other]})


def test_without_the_hub_or_its_package_its_datasets_are_refused_at_once(monkeypatch):
    monkeypatch.setattr("quad_tasks.storage.errors.sleep", lambda _seconds: pytest.fail("asked again"))
    given = {"pool.inputs": ["hf://datasets/owner/name/a.jsonl"]}
    at_hub(monkeypatch, f"http://127.0.0.1:{closed_port()}")
    refused = r"^pool\.inputs: expected an answer from hf://datasets/owner/name, got .*, or give files of this machine$"
    with pytest.raises(ConfigError, match=refused):
        environment.check_inputs(given)
    with socket.socket() as silent, monkeypatch.context() as waiting:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        waiting.setattr(environment, "ANSWER_S", 1.0)
        at_hub(waiting, f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(
            ConfigError, match=r"^pool\.inputs: hf://.*/a.jsonl: expected an answer within 1 s, got none"
        ):
            environment.check_inputs(given)
    monkeypatch.delitem(_registry, "hf", raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        UnsupportedStore, match=r"^pool\.inputs: .*'hf://datasets/owner/name/a.jsonl': .*huggingface_hub"
    ):
        environment.check_inputs(given)


def test_a_workspace_on_the_hub_is_refused():
    with pytest.raises(UnsupportedStore, match=r"workspace: expected a local path or s3://.*, got hf://datasets/o/n"):
        environment.check_workspace("hf://datasets/o/n")


def test_a_named_prefect_server_that_does_not_answer_is_named(monkeypatch):
    url = f"http://127.0.0.1:{closed_port()}/api"
    monkeypatch.setenv("PREFECT_API_URL", url)
    with pytest.raises(ConfigError, match=f"PREFECT_API_URL: expected Prefect's server at {url}, found none"):
        environment.check_prefect()


def test_a_database_of_prefects_that_has_grown_is_said_with_how_to_prune_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    with (tmp_path / "prefect.db").open("wb") as file:
        file.truncate(300 * 2**20)
    found = environment.check_home()
    assert found.startswith(
        f"{tmp_path}; {tmp_path}/prefect.db has grown to 300 MB: `prefect server database reset -y`"
    )
    assert "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED=events,flow_runs prefect server start" in found
