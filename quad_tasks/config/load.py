"""A run's configuration from a YAML file and dotted overrides, and what is wrong with it in words.

Owns validation at the edge: an unknown key, a wrong type or an impossible value is a `ConfigError` that names the file
and the key and says what was expected and what was found.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from quad_tasks.config.schema import ConfigError, RunConfig


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML configuration and apply dotted overrides.

    Args:
        path: the YAML file.
        overrides: `a.b=value` assignments, values in YAML.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value is not what is expected.
    """
    try:
        body = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected a readable YAML file: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: expected YAML, found {getattr(error, 'problem', error)}") from None
    if not isinstance(body, dict):
        raise ConfigError(f"{path}: expected a mapping of keys, found {type(body).__name__}")
    return parse_config(body, str(path), overrides)


def parse_config(body: dict[str, Any], origin: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Apply overrides to a mapping and validate it; `origin` names it in errors.

    Raises:
        ConfigError: a key is unknown, or a value is not what is expected.
    """
    for override in overrides:
        _assign(body, override)
    body = _read_old_keys(body)
    try:
        config = RunConfig.model_validate(body)
    except ValidationError as error:
        errors = [e for e in error.errors() if e["type"] != "too_short" or not e["input"]]
        raise ConfigError("\n".join(_explain_all(origin, errors))) from None
    share = f"{config.selection.general_share:g}"
    if share in [f"{other:g}" for other in config.training.frontier]:
        raise ConfigError(
            f"{origin}: training.frontier: expected other shares than selection.general_share, found {share} there too"
        )
    return config


def _read_old_keys(body: dict[str, Any]) -> dict[str, Any]:
    """Read `selection.states`, which `bandit.features` replaced: files and recorded runs may still have it."""
    selection = body.get("selection")
    if not isinstance(selection, dict) or "states" not in selection:
        return body
    read = {**body, "selection": {name: value for name, value in selection.items() if name != "states"}}
    bandit = body.get("bandit") or {}
    if selection["states"] is True and isinstance(bandit, dict):
        read["bandit"] = {"features": "hidden_states", **bandit}
    return read


def _assign(body: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override}: expected key=value, as in bandit.alpha=0.5")
    *parents, last = key.split(".")
    for parent in parents:
        body[parent] = {} if body.get(parent) is None else body[parent]
        body = body[parent]
        if not isinstance(body, dict):
            raise ConfigError(f"--set {override}: {parent} holds a value, not keys")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: expected a YAML value after '='") from None
    many = key.startswith(("pool.", "reference.", "heldout.")) and last == "inputs" and isinstance(parsed, str)
    body[last] = [parsed] if many else parsed


def _explain_all(origin: str, errors: Sequence[Any]) -> list[str]:
    """Say what is wrong, a line for each key: a value that may be of several kinds has an error for each of them."""
    by_key: dict[tuple[str | int, ...], list[Any]] = {}
    for error in errors:
        by_key.setdefault(_key(error["loc"]), []).append(error)
    lines = []
    for key, of_key in by_key.items():
        first, *others = (_explain(origin, key, error) for error in of_key)
        expected = [other.partition(": expected ")[2].partition(", found ")[0] for other in others]
        said, found, value = first.partition(", found ")
        lines.append(" or ".join([said, *expected]) + found + value)
    return lines


def _key(location: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """Return the part of an error's location that names a key: what follows is the kind of value that was tried."""
    model: Any = RunConfig
    for n, part in enumerate(location):
        fields = getattr(model, "model_fields", None)
        if fields is None:
            by_name = get_args(model)  # of a mapping of names to models
            if len(by_name) != 2 or not hasattr(by_name[1], "model_fields"):
                return location[: n + 1] if isinstance(part, int) else location[:n]
            model = by_name[1]
        else:
            model = fields[part].annotation if part in fields else None
    return location


def _explain(origin: str, key: tuple[str | int, ...], error: Any) -> str:
    location = ".".join(str(part) for part in key)
    found = error["input"]
    if error["type"] == "extra_forbidden":
        known = _keys_beside(error["loc"])
        close = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return f"{origin}: {location}: unknown key{hint} (known: {', '.join(known)})"
    if error["type"] == "missing":
        return f"{origin}: {location}: expected a value, found none"
    message = "bytes, or a size such as 10GB" if error["type"] == "byte_size" else error["msg"]
    message = message.removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    expected = message if error["type"] == "value_error" else f"{message}, found {found!r}"
    return f"{origin}: {location}: expected {expected.removeprefix('input should be ')}"


def _keys_beside(location: tuple[str | int, ...]) -> list[str]:
    model: Any = RunConfig
    for part in location[:-1]:
        by_name = get_args(model)  # of a mapping of names to models
        model = by_name[1] if by_name else model.model_fields[str(part)].annotation
    return list(model.model_fields)
