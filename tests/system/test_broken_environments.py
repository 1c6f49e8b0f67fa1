"""In a broken environment `quad doctor` and `quad run --dry-run` end with 2 and one message that says what to do.

Within ten seconds of their start, a busy machine aside: what takes longer than computing does is bounded in every case.
They start no process, wait for no second try, give up what does not answer after eight seconds, and read little.
"""

import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing import active_children
from pathlib import Path

import boto3
import psutil
import pytest
import yaml
from hub_server import at_hub, running_hub
from moto import settings as moto_settings
from s3_server import running_s3
from small_pool import small_config
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from flows.cli.app import app
from quad_tasks.runtime import check_environment as environment
from quad_tasks.storage import errors

COMMANDS = (["doctor"], ["run", "--dry-run"])
CHECK_BUCKET = r"check the bucket's name, its endpoint \(AWS_ENDPOINT_URL\) and the credentials .*, or AWS_PROFILE\)"
SECRET = "planted-secret"
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
QUAD = str(Path(sys.executable).with_name("quad"))
MOST_READ_BYTES = 2**28
"""Of all files, the libraries' own too."""
PROCESS_TIMEOUT_S = 600
"""Of a command that waits for nothing: a busy machine is slow to import what it needs."""


@dataclass
class Work:
    """What commands have done since `counting` was set: Pythons they started, and the seconds between two tries."""

    counting: bool = False
    started: list[str] = field(default_factory=list)
    slept_s: float = 0.0


@pytest.fixture(scope="module")
def watched():
    """Note the Pythons that this process starts: a server is one, what a library asks of the system is not."""
    work = Work()

    def note(event: str, given: tuple[object, ...]) -> None:
        if work.counting and event == "subprocess.Popen" and "python" in str(given[1]).lower():
            work.started.append(str(given[1]))

    sys.addaudithook(note)
    yield work
    work.counting = False


@pytest.fixture
def refused(corpus, tmp_path, monkeypatch, watched):
    """Run both commands on a configuration with changes; return the one message of each, checked for what all share."""
    sleep = errors.sleep

    def count(seconds: float) -> None:
        watched.slept_s += seconds
        sleep(seconds)

    monkeypatch.setattr(errors, "sleep", count)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr(logging.root.manager, "disable", logging.INFO)  # what the S3 server beside this logs

    def run(**changes: object) -> list[str]:
        path = tmp_path / "config.yaml"
        workspace = changes.pop("workspace", str(tmp_path / "workspace"))
        path.write_text(yaml.safe_dump(small_config(corpus, str(workspace), **changes), allow_unicode=True))
        messages = []
        for command, *options in COMMANDS:
            before = psutil.Process().io_counters().read_chars
            watched.counting, watched.slept_s = True, 0.0
            watched.started.clear()
            result = CliRunner().invoke(app, [command, str(path), *options])
            watched.counting = False
            assert result.exit_code == 2, result.output
            assert (watched.started, watched.slept_s, active_children()) == ([], 0.0, [])
            assert psutil.Process().io_counters().read_chars - before < MOST_READ_BYTES
            assert "Traceback" not in result.output
            assert SECRET not in result.output
            lines = [line for line in result.output.splitlines() if " not looked at: see " not in line]
            wrong = [line for line in lines if " WRONG  " in line or line.startswith("quad: ")]
            messages += [re.sub(r"^(quad: |.* WRONG  )", "", line) for line in wrong]
        assert len(messages) == len(COMMANDS), messages
        return messages

    return run


@pytest.fixture
def s3(monkeypatch):
    """An S3 server with a bucket `bucket`; yields its address."""
    monkeypatch.setattr(environment, "ANSWER_S", 120.0)  # a busy machine is slow to answer
    with running_s3() as address:
        _point_to(monkeypatch, address)
        with closing(boto3.client("s3")) as client:
            client.create_bucket(Bucket="bucket")
        yield address


def _point_to(monkeypatch, address: str) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": address,
    }.items():
        monkeypatch.setenv(name, value)


def _closed_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _each(messages: list[str], pattern: str) -> None:
    for message in messages:
        assert re.search(pattern, message), message


@pytest.mark.parametrize(
    ("workspace", "pattern"),
    [
        ("s3://none/quad", rf"^workspace: expected a bucket .* s3://none/quad: .*{CHECK_BUCKET}"),
        ("s3://Not_A_Bucket/quad", rf"^workspace: expected a bucket .* s3://Not_A_Bucket/quad: .*{CHECK_BUCKET}"),
        ("s3://", r"^workspace: expected a bucket's name after s3://"),
    ],
)
def test_a_bucket_that_is_not_there(refused, s3, workspace, pattern):
    _each(refused(workspace=workspace), pattern)


def test_a_pool_in_a_bucket_that_is_not_there(refused, s3):
    uri = "s3://none/pool/*.jsonl"
    _each(refused(pool__inputs=[uri]), rf"^pool\.inputs: .*{re.escape(uri)}.*: {CHECK_BUCKET}")


def test_a_pool_on_the_hub_that_is_not_there(refused, monkeypatch):
    uri = "hf://datasets/owner/name/**/*.parquet"
    with running_hub({}) as hub:
        at_hub(monkeypatch, hub.address)
        _each(refused(pool__inputs=[uri]), rf"^pool\.inputs: .*{re.escape(uri)}: check the name; a private .*HF_TOKEN")


def test_wrong_credentials(refused, s3, monkeypatch):
    monkeypatch.setattr(moto_settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)  # moto asks who asks
    pattern = r"^workspace: expected a bucket .* s3://bucket/quad: access refused.* credentials in the env.*AWS_PROFILE"
    _each(refused(workspace="s3://bucket/quad"), pattern)
    uri = "s3://bucket/pool/a.jsonl"
    _each(refused(pool__inputs=[uri]), rf"^pool\.inputs: access refused: {uri}.*: {CHECK_BUCKET}")


def test_no_credentials(refused, s3, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    _each(refused(workspace="s3://bucket/quad"), r"^workspace: expected a bucket .* s3://bucket/quad: .*redentials")


@pytest.mark.parametrize("changes", [{"workspace": "s3://bucket/quad"}, {"pool__inputs": ["s3://bucket/pool/a.jsonl"]}])
def test_an_endpoint_where_nothing_listens_or_answers(refused, monkeypatch, changes):
    key = next(iter(changes)).replace("__", ".")
    address = f"http://127.0.0.1:{_closed_port()}"
    _point_to(monkeypatch, address)
    _each(refused(**changes), rf"^{key}: expected an answer from s3://bucket, got .*{address}/.*: check the endpoint")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(environment, "ANSWER_S", 1.0)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        _each(refused(**changes), rf"^{key}: s3://bucket/.*: expected an answer within 1 s, got none")


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:{port}", "localhost:{port}", "foo://127.0.0.1:{port}"])
def test_an_address_that_is_no_schedulers(refused, monkeypatch, address):
    monkeypatch.setattr(environment, "ANSWER_S", 2.0)
    given = address.format(port=_closed_port())
    _each(refused(compute__dask_address=given), f"^compute.dask_address: expected a Dask scheduler at {given}, found")


def test_a_scheduler_without_workers(refused):
    from distributed import LocalCluster

    with LocalCluster(n_workers=0, processes=False, dashboard_address="127.0.0.1:0") as cluster:
        given = cluster.scheduler_address
        _each(
            refused(compute__dask_address=given), r"^compute\.dask_address: expected workers at .*, found none: start"
        )


def test_a_gpu_that_is_not_there(refused, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    _each(refused(compute__device="cuda"), r"^compute\.device: expected a GPU for 'cuda', found none")


@pytest.mark.parametrize("key", ["pool__inputs", "reference__inputs", "heldout__inputs"])
def test_a_file_name_that_is_not_utf8(refused, corpus, tmp_path, key):
    shutil.copytree(corpus / "pool", tmp_path / "strange")
    with open(os.fsencode(tmp_path) + b"/strange/b\xff\xe9.jsonl", "wb") as file:
        file.write((corpus / "pool" / "kitchen.jsonl").read_bytes())
    messages = refused(**{key: [f"{tmp_path}/strange/*.jsonl"]})
    _each(messages, r"expected file names in UTF-8, found '.*b\\udcff\\udce9\.jsonl'.*: rename it")


def test_a_checkpoint_without_tokenizer_files(refused, tmp_path):
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=64, **shape)).save_pretrained(tmp_path / "model")
    _each(refused(model__source=str(tmp_path / "model")), rf"^{tmp_path}/model: expected .*tokenizer")


@pytest.mark.parametrize("variable", ["TMPDIR", "PREFECT_HOME", "workspace"])
def test_a_full_disk(refused, tmp_path, monkeypatch, variable):
    full = tmp_path / "full"
    full.mkdir()
    usage = shutil.disk_usage
    monkeypatch.setattr(
        environment.shutil,
        "disk_usage",
        lambda path: usage(path)._replace(free=4096) if Path(path).is_relative_to(full) else usage(path),
    )
    monkeypatch.setenv(*(variable, str(full)) if variable != "workspace" else ("UNUSED", ""))
    monkeypatch.setattr(tempfile, "tempdir", None)
    messages = refused(**({"workspace": full / "workspace"} if variable == "workspace" else {}))
    _each(messages, rf"^{variable}: expected room on the disk of {full}.*, found 4,096 bytes free: ")


def test_a_folder_for_temporary_files_that_is_not_there(refused, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    _each(refused(), rf"^TMPDIR: expected a folder for temporary files, found none at {tmp_path}/none: make it, or")


def _process(folder: Path, *arguments: str, before: tuple[str, ...] = (), **variables: str) -> tuple[int, str]:
    """Run the real command in `folder`; return its exit code and all it printed."""
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "QUAD_QUIET": "1", "PYTHONPATH": root, "PREFECT_HOME": str(folder), **variables}
    done = subprocess.run(
        [*before, QUAD, *arguments], env=environment, cwd=folder, capture_output=True, timeout=PROCESS_TIMEOUT_S
    )
    return done.returncode, (done.stdout + done.stderr).decode()


def test_a_working_directory_that_was_deleted(tmp_path):
    """As a process: what torch loads ends it there, whatever is caught."""
    enter = ("sh", "-c", 'mkdir gone && cd gone && rmdir ../gone && exec "$@"', "sh")
    code, printed = _process(tmp_path, "doctor", before=enter)
    assert (code, printed) == (2, "quad: working directory: expected one, found it deleted: change to another\n")


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="only root can be another user")
def test_a_home_that_another_user_may_not_look_into(tmp_path):
    """As a process: Prefect fails when it is imported."""
    closed = tempfile.mkdtemp()  # mode 0700, in a folder that everybody may enter
    code, printed = _process(Path("/"), "doctor", before=NOBODY, PREFECT_HOME=f"{closed}/prefect", HOME="/")
    os.rmdir(closed)
    assert code == 2, printed
    assert f"PREFECT_HOME: expected a folder that can be written, found {closed}: Permission denied: set" in printed
    assert "Traceback" not in printed


@pytest.mark.slow
def test_a_command_ends_though_its_store_does_not_answer(corpus, tmp_path):
    """As a process: no thread that waits keeps it."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(small_config(corpus, "s3://bucket/quad")))
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": address}
        code, printed = _process(tmp_path, "run", "--dry-run", str(path), **keys)
    assert code == 2, printed
    assert "workspace: s3://bucket/quad: expected an answer within 8 s, got none" in printed
