"""Every key of a configuration, with its default, range and meaning, read off the models: `quad keys`, `make docs`."""

import typing
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel, ByteSize, TypeAdapter
from pydantic.fields import FieldInfo

from quad_tasks.config.schema import ConfigError, RunConfig
from quad_tasks.config.values import NAME_PATTERN

HEADER = """\
# Configuration

Every key of a run's configuration, generated from its models by `make docs`; `quad keys bandit` prints the same on a
terminal. A file holds only what differs from the defaults; `--set key=value` overrides one for one command, values in
YAML. A key that is unknown or out of its range ends the command with one message that names it, before anything runs.
"""
KINDS = {"integer": "integer", "number": "number", "boolean": "`true`, `false`"}
PATTERNS = {
    NAME_PATTERN: "letters, digits, `_`, `.`, `-`; at most 80",
    TypeAdapter(ByteSize).json_schema()["anyOf"][0]["pattern"]: "a size such as `10GB`",
}
"""What a text of each pattern is, in words."""


@dataclass(frozen=True)
class ConfigKey:
    """One key: its dotted name, its default as written in YAML (`required` where there is none), range and meaning."""

    key: str
    default: str
    range: str
    meaning: str


def list_keys(prefix: str = "") -> list[ConfigKey]:
    """List the keys below a dotted prefix, all of them for an empty one.

    Raises:
        ConfigError: no key starts so.
    """
    keys = [key for key in _keys(RunConfig, "") if not prefix or f"{key.key}.".startswith(f"{prefix}.")]
    if not keys:
        sections = ", ".join(RunConfig.model_fields)
        raise ConfigError(f"{prefix}: expected a key or a section of the configuration ({sections}), found neither")
    return keys


def render_reference() -> str:
    """Write the reference as Markdown, a table a section."""
    sections: dict[str, list[ConfigKey]] = {}
    for key in list_keys():
        section = key.key.partition(".")[0] if "." in key.key else ""
        sections.setdefault(section, []).append(key)
    parts = [HEADER]
    for name, keys in sections.items():
        summary = _summary(name) if name else "Keys without a section."
        rows = [f"| `{k.key}` | {k.default} | {k.range} | {k.meaning} |" for k in keys]
        head = ["| key | default | range | meaning |", "| --- | --- | --- | --- |"]
        parts.append("\n".join([f"## {name or 'The run'}", "", summary, "", *head, *rows, ""]))
    return "\n".join(parts)


def as_row(key: ConfigKey) -> dict[str, str]:
    """Give a key as plain text, a column a part."""
    return {name: text.replace("`", "") for name, text in asdict(key).items()}


def _summary(section: str) -> str:
    documented = RunConfig.model_fields[section].annotation
    return (documented.__doc__ or "").strip().splitlines()[0]


def _keys(model: type[BaseModel], prefix: str) -> Iterator[ConfigKey]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{prefix}{name}.")
        else:
            default = "required" if field.is_required() else f"`{_shown(field.default)}`"
            yield ConfigKey(
                f"{prefix}{name}", default, range_of(field), (field.description or "").replace("None:", "null:")
            )


def range_of(field: FieldInfo) -> str:
    """Say what a field may be, in Markdown, from the schema that validates it."""
    annotated: Any = typing.Annotated[field.annotation, field]
    schema = TypeAdapter(annotated).json_schema()
    return _range(schema, schema.get("$defs", {}))


def _range(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        inner = definitions[name]
        if "properties" not in inner:
            return _range(inner, definitions)
        return f"({'; '.join(f'{key}: {_range(of, definitions)}' for key, of in inner['properties'].items())})"
    if "anyOf" in schema:
        options = [_range(option, definitions) for option in schema["anyOf"] if option.get("type") != "null"]
        none = ["null"] if any(option.get("type") == "null" for option in schema["anyOf"]) else []
        return " or ".join([*options, *none])
    if "const" in schema or "enum" in schema:
        return ", ".join(f"`{option}`" for option in schema.get("enum", [schema.get("const")]))
    match schema.get("type"):
        case "array":
            least = "one or more of" if schema.get("minItems") else "list of"
            return f"{least} {_range(schema.get('items', {}), definitions)}"
        case "object":
            values = [*schema.get("patternProperties", {}).values(), schema.get("additionalProperties") or {}]
            return f"name: {_range(values[0], definitions)}"
        case "string":
            return PATTERNS[schema["pattern"]] if "pattern" in schema else "text"
        case kind:
            return " ".join(part for part in (KINDS.get(str(kind), "any"), _bounds(schema)) if part)


def _bounds(schema: Mapping[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    signs = (("≥", low), (">", above), ("≤", high), ("<", below))
    return ", ".join(f"{sign} {_shown(bound)}" for sign, bound in signs if bound is not None)


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return str(list(value))
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:_}" if isinstance(value, int) and value > 9999 else str(value)
