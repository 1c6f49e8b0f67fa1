"""Imports point down only: flows -> stages -> core | storage -> records; core and storage never meet."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = {
    "quad_tasks/core": ["prefect", "prefect_dask", "dask", "distributed", "fsspec", "s3fs", "flows",
                        "quad_tasks.storage", "quad_tasks.config", "quad_tasks.config_file", "quad_tasks.compute"],
    "quad_tasks/storage": ["torch", "transformers", "prefect", "prefect_dask", "dask", "distributed", "flows",
                           "quad_tasks.core", "quad_tasks.config", "quad_tasks.config_file", "quad_tasks.compute"],
    "quad_tasks": ["flows"],
    "flows": ["torch", "transformers", "numpy", "pyarrow", "faiss", "quad_tasks.core"],
}  # fmt: skip
ALLOWED = {("flows/terminal.py", "quad_tasks.core")}  # the command line names core's errors to choose an exit code


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


def rooms(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_point_down(folder):
    offences = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in rooms(folder)
        for module in imported_modules(path)
        for forbidden in FORBIDDEN[folder]
        if (module == forbidden or module.startswith(forbidden + "."))
        and (str(path.relative_to(ROOT)), forbidden) not in ALLOWED
    ]
    assert offences == []


def test_top_level_of_the_product_is_the_documented_one():
    packages = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    assert {"flows", "quad_tasks", "tests", "infra"} <= packages
