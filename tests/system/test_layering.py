"""Imports point down only: one list of floors, and what each package may not know."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOORS = [
    ["flows"],
    ["quad_tasks.testing"],
    ["quad_tasks.commands", "quad_tasks.experiments", "quad_tasks.report"],
    ["quad_tasks.stages.selection"],
    ["quad_tasks.stages.bandit"],
    ["quad_tasks.stages.influence", "quad_tasks.stages.pool"],
    ["quad_tasks.runtime", "quad_tasks.api"],
    ["quad_tasks.core", "quad_tasks.storage"],
    ["quad_tasks.config", "quad_tasks.manifests"],
    ["quad_tasks.records", "quad_tasks.plugins", "quad_tasks.demo_corpus"],
]
"""From the top down: a module imports from its own package and from floors below it, never from beside or above."""
ORCHESTRATION = ["prefect", "prefect_dask", "dask", "distributed"]
FORBIDDEN = {
    "quad_tasks.core": [*ORCHESTRATION, "fsspec", "s3fs", "quad_tasks.config"],
    "quad_tasks.storage": [*ORCHESTRATION, "torch", "transformers", "quad_tasks.config"],
    "flows": ["torch", "transformers", "numpy", "pyarrow", "faiss", "quad_tasks.core"],
}
MOST_MODULES = 16
"""Of a folder: one look shows all of them."""
MOST_FILE_LINES, MOST_FUNCTION_LINES = 400, 60
"""A function's docstring counts, decorators do not."""


def imported_modules(path: Path) -> set[str]:
    """Return every module a file imports, at any depth of its code."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: expected an absolute import"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def package_of(module: str) -> tuple[int, str] | None:
    """Return the floor and the package of the list that a module belongs to."""
    found = [(number, package) for number, row in enumerate(FLOORS) for package in row if within(module, package)]
    return found[0] if found else None


def sources() -> list[tuple[str, Path]]:
    """Return every module of the product with its file."""
    files = [path for folder in ("flows", "quad_tasks") for path in sorted((ROOT / folder).rglob("*.py"))]
    return [(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path) for path in files]


@pytest.mark.parametrize("floor", range(len(FLOORS)))
def test_imports_point_down(floor):
    offences = []
    for module, path in sources():
        own = package_of(module)
        if own is None or own[0] != floor:
            continue
        for imported in imported_modules(path):
            target = package_of(imported)
            if target is not None and target[1] != own[1] and target[0] <= floor:
                offences.append(f"{module} imports {imported}")
    assert offences == []


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_knows_nothing_of(package):
    offences = [
        f"{module} imports {imported}"
        for module, path in sources()
        if within(module, package)
        for imported in imported_modules(path)
        for forbidden in FORBIDDEN[package]
        if within(imported, forbidden)
    ]
    assert offences == []


def test_every_module_has_a_floor():
    assert [module for module, _ in sources() if package_of(module) is None] == ["quad_tasks", "quad_tasks.stages"]


def test_no_folder_is_crowded():
    folders = {path.parent for _, path in sources()}
    crowded = {
        str(folder.relative_to(ROOT)): len(modules)
        for folder in folders
        if len(modules := [path for path in folder.glob("*.py") if path.name != "__init__.py"]) > MOST_MODULES
    }
    assert crowded == {}


def test_no_file_is_long():
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for _, path in sources()}
    assert {name: n for name, n in lines.items() if n > MOST_FILE_LINES} == {}


def test_no_function_is_long():
    lines = {
        f"{module}.{node.name}": node.end_lineno - node.lineno + 1
        for module, path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: n for name, n in lines.items() if n > MOST_FUNCTION_LINES} == {}


def test_top_level_of_the_product_is_the_documented_one():
    packages = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    assert {"flows", "quad_tasks", "tests", "infra"} <= packages
