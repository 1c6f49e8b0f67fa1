"""Cache work on Dask workers: what one experiment computed in a testbed, no experiment computes again.

The unit is an item: a pure function of JSON values. A rerun computes the items that are missing. Results are keyed by
the release of Quad, its training method, the function's name and the item; another release has its own.
"""

from collections.abc import Callable, Sequence
from importlib.metadata import version as package_version
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter

from quad_tasks.core.lm.training import METHOD
from quad_tasks.manifests.run import ExperimentRecord
from quad_tasks.runtime.tasks import map_tasks
from quad_tasks.storage.manifest import digest, read_manifest, write_manifest
from quad_tasks.storage.store import open_store

T = TypeVar("T")

FOLDER = "kept"
"""Below a testbed's key. The name is stored: workspaces hold results under it."""


def map_cached(function: Callable[..., T], items: Sequence[tuple[Any, ...]], label: str, unit: str) -> list[T]:
    """Map `function` over the items whose result is not stored yet; return everyone's, in the items' order.

    Args:
        function: a pure function of its item, importable by workers. Its return annotation, a JSON value or a dataclass
            of such, says how a stored result is read.
        items: workspace, key of the testbed, and JSON values that the result depends on.
        label: shown as the step's name.
        unit: what an item is, in the plural.
    """
    if not items:
        return []
    store = open_store(items[0][0])
    keys = [_result_key(function, item) for item in items]
    missing = {key: item for key, item in zip(keys, items, strict=True) if not store.exists(key)}
    map_tasks(_compute, [(function, key, item) for key, item in missing.items()], label, unit)
    results = _result_type(function)
    return [results.validate_python(read_manifest(ExperimentRecord, store, key).model_dump()["result"]) for key in keys]


def _result_key(function: Callable[..., Any], item: tuple[Any, ...]) -> str:
    version, inputs = package_version("quad-data"), digest(list(item[2:]))[:24]
    return f"{item[1]}/{FOLDER}/{version}-{METHOD}/{function.__name__}-{inputs}.json"


def _compute(function: Callable[..., Any], key: str, item: tuple[Any, ...]) -> None:
    """Call on a worker and write the result, outside the digest since its last bits may differ between machines."""
    result = _result_type(function).dump_python(function(*item), mode="json")
    write_manifest(open_store(item[0]), key, ExperimentRecord(function=function.__name__, result=result))


def _result_type(function: Callable[..., T]) -> TypeAdapter[T]:
    adapter: TypeAdapter[T] = TypeAdapter(get_type_hints(function)["return"])
    return adapter
