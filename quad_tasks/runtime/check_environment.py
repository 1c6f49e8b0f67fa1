"""Check what a run needs around it: folders that can be written, a device, a workspace, workers, Prefect's server.

Each check asks what a run would ask, in seconds, and leaves nothing behind. Refuses with one `ConfigError` that names
the path, the variable or the key, and says what to do.
"""

import os
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import TimeoutError as TooSlow
from functools import partial
from glob import has_magic
from pathlib import Path
from typing import TypeVar

from quad_tasks.config.compute import ComputeConfig
from quad_tasks.config.schema import ConfigError
from quad_tasks.storage.errors import StorageError, call_in_daemon, http_status, is_transient, redact
from quad_tasks.storage.input_files import expand_inputs, open_input
from quad_tasks.storage.store import HUB_SCHEME, UnsupportedStore, check_conditional_create, connect, open_store

ANSWER_S = 8.0
"""What a check waits for an answer from elsewhere."""
LISTING_S = 120.0
"""What it waits for the names that match a glob: a store lists a thousand at a time."""
LEAST_FREE_BYTES = 2**26
LARGE_DATABASE_BYTES = 2**28
VACUUM_VARIABLE = "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED"
REMEDIES = {
    "s3://": "check the bucket's name, its endpoint (AWS_ENDPOINT_URL) and the credentials in the environment "
    "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)",
    "hf://": "check the name; a private or gated dataset needs a token in the environment (HF_TOKEN)",
}
HUB_KINDS = ("datasets", "spaces", "buckets")
"""First parts of the Hub's paths that do not name a model."""
LOCAL_SCHEMES = ("file://", "memory://")
ADDRESS_VARIABLE = "DASK_SCHEDULER_ADDRESS"
API_VARIABLE = "PREFECT_API_URL"

T = TypeVar("T")


def check_directory() -> str:
    """Check that the working directory is there.

    Raises:
        ConfigError: it was deleted.
    """
    try:
        return os.getcwd()
    except FileNotFoundError:
        raise ConfigError("working directory: expected one, found it deleted: change to another") from None


def check_home() -> str:
    """Check that Prefect can keep its settings and its database.

    Raises:
        ConfigError: its folder cannot be written.
    """
    given = os.environ.get("PREFECT_HOME")
    try:
        folder = Path(given).expanduser() if given else Path.home() / ".prefect"
    except RuntimeError:  # a user without an entry and without HOME
        raise ConfigError("HOME: expected the user's folder, found none: set HOME, or PREFECT_HOME") from None
    _check_writable(folder, "PREFECT_HOME" if given else "HOME", "set PREFECT_HOME to a folder that can be written")
    database = folder / "prefect.db"
    size = os.path.getsize(database) if os.path.exists(database) else 0
    return f"{folder}; {describe_growth(database, size)}" if size > LARGE_DATABASE_BYTES else str(folder)


def describe_growth(database: Path, size_bytes: int) -> str:
    """Say how large Prefect's own database has grown and how its runs are pruned; no result of Quad rests on it."""
    return (
        f"{database} has grown to {size_bytes / 2**20:,.0f} MB: `prefect server database reset -y` empties it, or "
        f"`{VACUUM_VARIABLE}=events,flow_runs prefect server start` prunes its runs older than 90 days"
    )


def check_temporary() -> str:
    """Check that temporary files have room.

    Raises:
        ConfigError: no folder for them can be written, or its disk is full.
    """
    given = os.environ.get("TMPDIR")  # where Python cannot write there, it takes /tmp and says nothing
    if given and not os.path.isdir(given):
        raise ConfigError(f"TMPDIR: expected a folder for temporary files, found none at {given}: make it, or unset it")
    try:
        folder = Path(given or tempfile.gettempdir())
    except FileNotFoundError:
        raise ConfigError("TMPDIR: expected a folder for temporary files with room, found none") from None
    _check_writable(folder, "TMPDIR", "free some of it, or set TMPDIR to a folder elsewhere")
    return str(folder)


def scheduler_address(compute: ComputeConfig) -> str | None:
    """Return the address of the Dask scheduler that is configured or in the environment; None: workers are local."""
    return compute.dask_address or os.environ.get(ADDRESS_VARIABLE) or None


def check_device(compute: ComputeConfig) -> str:
    """Check that a GPU that is asked for is there; workers of another cluster have their own.

    Raises:
        ConfigError: there is none.
    """
    import torch

    if compute.device == "cuda" and not scheduler_address(compute) and not torch.cuda.is_available():
        raise ConfigError("compute.device: expected a GPU for 'cuda', found none that torch can use: set cpu or auto")
    if compute.device == "auto":
        return f"auto: {'cuda' if torch.cuda.is_available() else 'cpu'}"
    return compute.device


def check_workspace(workspace: str) -> str:
    """Check that a run can commit to its workspace; of a remote one two tiny objects are made and removed.

    Raises:
        ConfigError: it cannot be written, its disk is full, its bucket is missing, or credentials are refused.
        UnsupportedStore: it does not create objects only if absent.
    """
    if "://" not in workspace or workspace.startswith("file://"):
        folder = Path(workspace.removeprefix("file://")).expanduser()
        _check_writable(folder.absolute(), "workspace", "choose another, or make room")
        return str(folder)
    place = redact(workspace)
    if workspace.startswith(HUB_SCHEME):
        raise UnsupportedStore(
            f"workspace: expected a local path or s3://bucket/prefix, got {place}, where only inputs can be"
        )
    _check_answers(workspace, "workspace")
    store = open_store(workspace)
    try:
        _within(lambda: check_conditional_create(store), f"workspace: {place}")
    except (StorageError, OSError) as error:
        if isinstance(error, ValueError):  # a store that cannot serve, which says so itself
            raise
        raise ConfigError(
            f"workspace: expected a bucket that can be written at {place}: {redact(str(error))}: {_remedy(workspace)}"
        ) from None
    return place


def check_inputs(patterns: Mapping[str, Sequence[str]]) -> str:
    """Check that inputs elsewhere are there and can be opened; of each pattern, the first file.

    Their stores are asked once before: one that cannot be reached is named at once, without the tries of a reader.

    Args:
        patterns: by the key of the configuration they stand under.

    Raises:
        ConfigError: a store does not answer, refuses, or does not have what the pattern names.
        UnsupportedStore: no filesystem is known for a pattern.
    """
    elsewhere = [(key, one) for key, given in patterns.items() for one in given if _is_elsewhere(one)]
    asked: set[str] = set()
    for key, pattern in elsewhere:
        if _store_of(pattern) not in asked:
            _check_answers(pattern, key)
            asked.add(_store_of(pattern))
        try:
            seconds = LISTING_S if has_magic(pattern) else ANSWER_S
            _within(partial(_read_first, pattern), f"{key}: {redact(pattern)}", seconds)
        except (StorageError, OSError) as error:
            raise ConfigError(f"{key}: {redact(str(error))}: {_remedy(pattern)}") from None
    return ", ".join(sorted(asked)) or "on this machine"


def check_workers(compute: ComputeConfig, workspace: str) -> str:
    """Check that a cluster that is named has workers, and that they see a workspace on disk.

    Raises:
        ConfigError: the scheduler does not answer, has no worker, or one does not see the workspace; the address and
            Dask's settings of TLS do not fit together.
    """
    address = scheduler_address(compute)
    if not address:
        return f"{compute.workers} processes of this machine"
    from distributed import Client

    name = "compute.dask_address" if compute.dask_address else ADDRESS_VARIABLE
    _check_encryption(address, name)
    try:
        client = Client(address, timeout=ANSWER_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name}: expected a Dask scheduler at {redact(address)}, found none: {error}") from None
    with client:
        workers = list(client.scheduler_info(n_workers=-1)["workers"])
        if not workers:
            raise ConfigError(f"{name}: expected workers at {redact(address)}, found none: start some (`dask worker`)")
        if "://" not in workspace:
            _check_shared_disk(client.run, workspace)
    return f"{len(workers)} workers at {redact(address)}"


def check_prefect() -> str:
    """Check that Prefect's server answers, where one is named.

    Raises:
        ConfigError: it does not.
    """
    url = os.environ.get(API_VARIABLE)
    if not url:
        return "a temporary server for each command"
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=ANSWER_S):
            return redact(url)
    except (OSError, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError) and error.code in (401, 403):
            return f"{redact(url)} (which asks for a key)"
        raise ConfigError(
            f"{API_VARIABLE}: expected Prefect's server at {redact(url)}, found none: {error}: start it "
            "(`prefect server start`), or unset the variable for a temporary one"
        ) from None


def _is_elsewhere(uri: str) -> bool:
    return "://" in uri and not uri.startswith(LOCAL_SCHEMES)


def _read_first(pattern: str) -> None:
    with open_input(expand_inputs([pattern])[0]) as file:
        file.read(1)


def _store_of(uri: str) -> str:
    """Return a URI's scheme and host, bucket or repository, without its secrets."""
    parts = redact(uri).split("/")
    host_parts = 3 if not uri.startswith(HUB_SCHEME) else 5 if parts[2] in HUB_KINDS else 4
    return "/".join(parts[:host_parts])


def _remedy(uri: str) -> str:
    """Say what to do about a store that refuses, or does not have what is looked for."""
    scheme = f"{uri.partition('://')[0]}://"
    return REMEDIES.get(scheme, "check the name, and the credentials in the environment")


def _check_answers(uri: str, name: str) -> None:
    """Ask a store once for what a URI begins with; any answer will do, a refusal too.

    Raises:
        ConfigError: it cannot be reached.
        UnsupportedStore: no filesystem is known for it.
    """
    on_hub = uri.startswith(HUB_SCHEME)
    try:
        files, path = connect(uri)  # its imports may take longer than an answer
    except UnsupportedStore as error:
        raise UnsupportedStore(f"{name}: {error}") from None
    except OSError as error:  # of a chain of filesystems, which is opened here
        raise ConfigError(f"{name}: {redact(str(error))}: {_remedy(uri)}") from None

    def ask() -> None:
        try:
            files.info(_store_of(uri).removeprefix(HUB_SCHEME) if on_hub else path.partition("/")[0])
        except Exception as error:
            if is_transient(error) and http_status(error) is None:
                raise ConfigError(
                    f"{name}: expected an answer from {_store_of(uri)}, got {redact(str(error))}: check the endpoint, "
                    f"the network and the proxy in the environment{', or give files of this machine' if on_hub else ''}"
                ) from None

    _within(ask, f"{name}: {redact(uri)}")


def _check_encryption(address: str, name: str) -> None:
    """Check that an address is one of TLS where Dask's settings require it, and that TLS has its certificate and key.

    Raises:
        ConfigError: it is not, or they are missing or cannot be read.
    """
    from distributed.comm import parse_address
    from distributed.security import Security

    variables = "DASK_DISTRIBUTED__COMM__TLS__CA_FILE, ..._TLS__CLIENT__CERT and ..._TLS__CLIENT__KEY"
    place, scheme, security = redact(address), parse_address(address)[0], Security()
    if security.require_encryption and scheme == "tcp":
        raise ConfigError(
            f"{name}: expected tls://..., since Dask's settings require encryption "
            f"(DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION), found {place}"
        )
    if scheme != "tls":
        return
    files = security.get_tls_config_for_role("client")
    try:
        context = security.get_connection_args("client")["ssl_context"]
    except (OSError, ValueError) as error:
        given = ", ".join(str(files[each]) for each in ("ca_file", "cert", "key"))
        raise ConfigError(
            f"{name}: expected a certificate and its key for {place} in the files of {variables}, "
            f"found {error} ({given})"
        ) from None
    if context is None:
        raise ConfigError(f"{name}: expected a certificate and its key for {place}, found none: set {variables}")


def _check_shared_disk(run_on_workers: Callable[..., dict[str, bool]], workspace: str) -> None:
    """Check with a file of this process that every worker reads the same disk."""
    with tempfile.NamedTemporaryFile(prefix=".quad-check-", dir=_nearest(Path(workspace).absolute())) as file:
        seen = run_on_workers(os.path.exists, file.name)
    blind = sorted(worker for worker, sees in seen.items() if not sees)
    if blind:
        raise ConfigError(
            f"workspace: expected a place that workers see too, found that {blind[0]} does not see {workspace}: use "
            "shared storage, such as s3://bucket/prefix"
        )


def _check_writable(folder: Path, name: str, remedy: str) -> None:
    nearest = _nearest(folder)
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise ConfigError(
            f"{name}: expected a folder that can be written, found {nearest}: {error.strerror or error}: {remedy}"
        ) from None
    free = shutil.disk_usage(nearest).free
    if free < LEAST_FREE_BYTES:
        raise ConfigError(f"{name}: expected room on the disk of {nearest}, found {free:,} bytes free: {remedy}")


def _nearest(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that is there."""
    while not os.path.exists(folder) and folder != folder.parent:  # Path.exists raises where it may not look
        folder = folder.parent
    return folder


def _within(call: Callable[[], T], place: str, seconds: float | None = None) -> T:
    """Wait this long at most for an answer from elsewhere (None: `ANSWER_S`); one without does not keep the process."""
    seconds = seconds or ANSWER_S
    try:
        return call_in_daemon(call).result(seconds)
    except TooSlow:
        raise ConfigError(f"{place}: expected an answer within {seconds:.0f} s, got none") from None
