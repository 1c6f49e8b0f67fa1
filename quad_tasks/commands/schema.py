"""The JSON Schema of a configuration, for editors and other tools: `quad schema`, and what `quad init` writes.

Derived from the models, which alone decide. Whole numbers may be written with underscores (`1_000_000`): YAML 1.1,
which `quad` reads, takes them as numbers, YAML 1.2, which editors read, as texts.
"""

import json
from pathlib import Path
from typing import Any

from quad_tasks.config.schema import RunConfig

SCHEMA_FILE = "quad.schema.json"
TITLE = "Configuration of a Quad run"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
UNDERSCORED = {"type": "string", "pattern": "^[0-9]+(_[0-9]+)+$"}
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


def configuration_schema() -> dict[str, Any]:
    """Return the JSON Schema of a configuration file."""
    schema: dict[str, Any] = _widened(RunConfig.model_json_schema())
    return {"$schema": DIALECT, **schema, "title": TITLE}


def write_schema(folder: Path) -> str:
    """Write the schema into a folder as `quad.schema.json` and return the comment that makes editors use it.

    A file of that name that is no schema of ours is left alone; the comment then still names it.
    """
    path = folder / SCHEMA_FILE
    if not path.exists() or _is_ours(path):
        path.write_text(json.dumps(configuration_schema(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return f"# yaml-language-server: $schema={SCHEMA_FILE}"


def _is_ours(path: Path) -> bool:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("title") == TITLE


def _widened(schema: Any) -> Any:
    """Let every whole number be written with underscores too."""
    if isinstance(schema, list):
        return [_widened(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") == "integer":
        number = {"type": "integer"} | {name: schema[name] for name in BOUNDS if name in schema}
        rest = {name: part for name, part in schema.items() if name not in number}
        return rest | {"anyOf": [number, UNDERSCORED]}
    return {name: _widened(part) for name, part in schema.items()}
