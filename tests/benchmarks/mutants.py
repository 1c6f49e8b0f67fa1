"""Draw a seeded sample of mutants of some files: each one change of one place, made by Cosmic Ray's operators.

Needs `cosmic-ray`, whose operators are used and nothing else of it. A place is drawn first and then one of its changes,
as an operator of arithmetic has ten and a comparison seven. Places are ordered by a hash of the seed and of the line
they are in, so that the sample stays as it is where other lines change. What nothing computes (annotations) is left
out, and so is a change that leaves the syntax tree as it was.
"""

import ast
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names


@dataclass(frozen=True)
class Mutant:
    """A changed file.

    Attributes:
        path: of the file, from the tree's root.
        line: number of the first line that changed.
        before: what stood there.
        after: what stands there instead.
        key: a digest of path and changed text.
        source: the whole changed text.
    """

    path: str
    line: int
    before: str
    after: str
    key: str
    source: str

    def record(self) -> dict[str, Any]:
        """Return all but the text."""
        return {name: value for name, value in asdict(self).items() if name != "source"}


@dataclass(frozen=True)
class Place:
    """Where one or several operators of a family can change a file: each operator and which occurrence it is of it."""

    path: str
    changes: tuple[tuple[str, int], ...]


def draw(root: Path, paths: list[str], seed: int) -> Iterator[Mutant]:
    """Yield mutants of the files in a random order that only seed and lines decide."""
    ranked = []
    for path in paths:
        source = (root / path).read_text()
        seen = Counter[str]()
        for (family, line, column, _), changes in sorted(_places(source).items()):
            name = f"{seed}:{path}:{family}:{source.splitlines()[line - 1].strip()}:{column}"
            seen[name] += 1
            ranked.append((_hash(f"{name}:{seen[name]}"), Place(path, tuple(sorted(changes)))))
    for rank, place in sorted(ranked, key=lambda one: one[0]):
        operator, occurrence = place.changes[int(rank, 16) % len(place.changes)]
        mutant = _mutate(root, place.path, operator, occurrence)
        if mutant is not None:
            yield mutant


def count_places(root: Path, paths: list[str]) -> int:
    """Count the places that can be changed."""
    return sum(len(_places((root / path).read_text())) for path in paths)


def _places(source: str) -> dict[tuple[str, int, int, int], list[tuple[str, int]]]:
    """Return the changes of each place: its family of operators, line, column and which of several values it is."""
    unused = _annotations(source)
    operators = {name: get_operator(name) for name in operator_names()}
    usable = {name: operator() for name, operator in operators.items() if not operator.arguments()}
    occurrences, places = Counter[str](), dict[tuple[str, int, int, int], list[tuple[str, int]]]()
    for node in ast_nodes(get_ast(source)):
        for name, operator in usable.items():
            for start, _ in operator.mutation_positions(node):
                if not any(first <= start < last for first, last in unused):
                    place = (name.split("/")[1].split("_")[0], *start, 0)
                    places.setdefault(place, []).append((name, occurrences[name]))
                occurrences[name] += 1
    return places


def _mutate(root: Path, path: str, operator: str, occurrence: int) -> Mutant | None:
    source = (root / path).read_text()
    changed = mutate_code(source, get_operator(operator)(), occurrence)
    try:
        if changed is None or ast.dump(ast.parse(changed)) == ast.dump(ast.parse(source)):
            return None
    except SyntaxError:
        return None
    old, new = source.splitlines(), changed.splitlines()
    first = next(n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b)
    same_end = next(n for n, (a, b) in enumerate(zip(old[::-1], new[::-1], strict=False)) if a != b)
    before, after = (
        "\n".join(line.strip() for line in lines[first : max(first + 1, len(lines) - same_end)]) for lines in (old, new)
    )
    return Mutant(path, first + 1, before, after, _hash(path + changed)[:12], changed)


def _annotations(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return from where to where annotations go, as lines and columns in characters."""
    found: list[ast.expr] = []
    for node in ast.walk(ast.parse(source)):
        given = (getattr(node, "annotation", None), getattr(node, "returns", None))
        found += [one for one in given if isinstance(one, ast.expr)]
    lines = source.splitlines()

    def characters(line: int, offset: int) -> tuple[int, int]:
        return line, len(lines[line - 1].encode()[:offset].decode())

    return [
        (characters(one.lineno, one.col_offset), characters(one.end_lineno or 0, one.end_col_offset or 0))
        for one in found
    ]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
