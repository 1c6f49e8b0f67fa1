"""Core loads where only torch, transformers and the scientific stack are installed, as on a GPU image."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "quad_tasks" / "core").rglob("*.py")
)
ABSENT = ["dask", "distributed", "faiss", "fsspec", "jinja2", "matplotlib", "pandas", "prefect", "prefect_dask",
          "pyarrow", "pydantic", "s3fs", "typer"]  # fmt: skip
IMPORT_ALL = """
import importlib, sys
absent, modules = (argument.split(",") for argument in sys.argv[1:])
sys.modules.update(dict.fromkeys(absent))  # None there: importing the name, or a part of it, fails as if not installed
for module in modules:
    importlib.import_module(module)
"""


def import_all(modules: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", IMPORT_ALL, ",".join(ABSENT), ",".join(modules)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_core_imports_without_storage_orchestration_and_drawing() -> None:
    assert "quad_tasks.core.clustering.kmeans" in MODULES
    run = import_all([*MODULES, "quad_tasks.api", "quad_tasks.records"])
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("absent", ["faiss", "pyarrow.parquet"])
def test_the_check_notices_an_import(absent: str) -> None:
    run = import_all([absent])
    assert "ModuleNotFoundError" in run.stderr
