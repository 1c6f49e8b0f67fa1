"""Work whose results a laboratory keeps: what was computed once is not computed again, whichever experiment asks.

The unit is an item on a Dask worker: a pure function of JSON values. A rerun goes on with the items that are missing;
another version of Quad keeps its own.
"""

from collections.abc import Callable, Sequence
from importlib.metadata import version as package_version
from typing import Any

from quad_tasks.compute import spread
from quad_tasks.storage.manifest import digest, read_manifest, write_manifest
from quad_tasks.storage.store import open_store


def kept(function: Callable[..., Any], items: Sequence[tuple[Any, ...]], label: str, unit: str) -> list[Any]:
    """Spread `function` over the items whose result is not kept yet; return everyone's, in the items' order.

    Args:
        function: a pure function of its item, importable by workers; its result is a JSON value.
        items: workspace, key of the laboratory, and JSON values that the result depends on.
        label: shown as the step's name.
        unit: what an item is, in the plural.
    """
    if not items:
        return []
    store = open_store(items[0][0])
    version = package_version("quad-data")
    keys = [f"{item[1]}/kept/{version}/{function.__name__}-{digest(list(item[2:]))[:24]}.json" for item in items]
    missing = {key: item for key, item in zip(keys, items, strict=True) if not store.exists(key)}
    spread(_keep, [(function, key, item) for key, item in missing.items()], label, unit)
    return [read_manifest(store, key)["volatile"]["result"] for key in keys]


def _keep(function: Callable[..., Any], key: str, item: tuple[Any, ...]) -> None:
    """Call on a worker and write the result, outside the digest since its last bits may differ between machines."""
    result = function(*item)
    write_manifest(open_store(item[0]), key, {"function": function.__name__, "volatile": {"result": result}})
