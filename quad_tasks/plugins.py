"""Extension points: find an embedder, a scorer, a policy, a reader or an exporter by its name.

One mechanism for all kinds and for everybody: a name leads to `module:attribute`, imported when it is first asked for.
The product's own stand in `OWN`; an installed package adds to a kind by an entry point in the group `quad.<kind>`.
What each kind must be is said, and tested, by `quad_tasks.testing`. Refuses a package that takes a name of ours, and
two packages that take the same one: a configuration would not say which ran.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Literal

Kind = Literal["embedders", "scorers", "policies", "readers", "exporters"]

OWN: Mapping[Kind, Mapping[str, str]] = {
    "embedders": {
        "ngrams": "quad_tasks.core.clustering.embedders:NGRAMS",
        "encoder": "quad_tasks.core.clustering.embedders:ENCODER",
        "model": "quad_tasks.core.clustering.embedders:STATES",
    },
    "scorers": {
        "exact": "quad_tasks.core.scorers:EXACT",
        "low_rank": "quad_tasks.core.scorers:LOW_RANK",
        "forward_only": "quad_tasks.core.scorers:FORWARD_ONLY",
    },
    "policies": {
        "paper": "quad_tasks.core.bandit:score_by_ucb",
        "released": "quad_tasks.core.bandit:score_by_ucb",
        "thompson": "quad_tasks.core.bandit:score_by_thompson",
        "contextual": "quad_tasks.core.bandit:score_by_context",
    },
    "readers": {
        "jsonl": "quad_tasks.storage.readers:JSON_LINES",
        "txt": "quad_tasks.storage.readers:TEXT",
        "csv": "quad_tasks.storage.readers:CSV",
        "tsv": "quad_tasks.storage.readers:TSV",
        "parquet": "quad_tasks.storage.readers:PARQUET",
        "arrow": "quad_tasks.storage.readers:ARROW",
    },
    "exporters": {
        "parquet": "quad_tasks.commands.export.formats:PARQUET",
        "jsonl.zst": "quad_tasks.commands.export.formats:LINES",
        "hf": "quad_tasks.commands.export.formats:DATASET_FOLDER",
        "mds": "quad_tasks.commands.export.formats:MDS",
        "megatron": "quad_tasks.commands.export.formats:MEGATRON",
    },
}


class UnknownPlugin(ValueError):
    """A name that no extension has; the message lists those there are."""


class PluginConflict(ValueError):
    """Two extensions of one kind and name."""


def plugin_names(kind: Kind) -> tuple[str, ...]:
    """List the names of a kind, the product's own first.

    Raises:
        PluginConflict: a name is taken twice.
    """
    return tuple(_targets(kind))


def load_plugin(kind: Kind, name: str) -> Any:
    """Import the extension of a kind and name.

    Raises:
        UnknownPlugin: none has this name.
        PluginConflict: a name is taken twice.
    """
    target = OWN[kind].get(name) or _targets(kind).get(name)
    if target is None:
        raise UnknownPlugin(f"{kind}: expected one of {', '.join(_targets(kind))}, found {name!r}")
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


def one_of(kind: Kind, *others: str) -> Callable[[str], str]:
    """Make a validator of a configuration's key: the value must be a name of this kind, or one of `others`."""

    def check(name: str) -> str:
        if name not in (names := (*plugin_names(kind), *others)):
            raise ValueError(f"one of {', '.join(names)}, found {name!r}")
        return name

    return check


@cache
def _installed(kind: Kind) -> frozenset[tuple[str, str]]:
    """Read the entry points of a kind, once a process: it takes milliseconds."""
    return frozenset((point.name, point.value) for point in entry_points(group=f"quad.{kind}"))


def _targets(kind: Kind) -> dict[str, str]:
    """Map every name of a kind to its `module:attribute`."""
    own = OWN[kind]
    found = _installed(kind)
    taken = Counter([*own, *(name for name, _ in found)])
    if twice := sorted(name for name, times in taken.items() if times > 1):
        values = sorted(value for name, value in found if name == twice[0])
        raise PluginConflict(f"{kind}: expected one extension named {twice[0]!r}, found {', '.join(values)} beside it")
    return {**own, **dict(sorted(found))}
