"""The GPU check runs, whole, where there is neither a GPU nor anything but the packages of a GPU image."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("gpu_check.sh")
ABSENT = ("dask", "distributed", "faiss", "fsspec", "hypothesis", "jinja2", "matplotlib", "pandas", "prefect",
          "prefect_dask", "pyarrow", "pydantic", "pytest_timeout", "s3fs", "typer", "xdist")  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_works_on_a_cpu_without_the_orchestration_storage_and_test_packages(tmp_path):
    absent = tmp_path / "absent"
    absent.mkdir()
    # Python runs it at every start: a name that stands for None there cannot be imported, nor found
    (absent / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({ABSENT!r}))\n")
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(absent), "OMP_NUM_THREADS": "1",
                   "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # fmt: skip
    command = [str(SCRIPT), "--out", str(tmp_path / "out"), "--tiny", "--device", "cpu"]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stdout + run.stderr
    report = json.loads((tmp_path / "out" / "gpu_check.json").read_text())
    assert [name for name in report if "error" in (report[name] if isinstance(report[name], dict) else {})] == []
    assert "skipped" in report["tests"]["summary"]
    rows = {(row["work"], row["length"]): row for row in report["scoring"]["rows"]}
    works = ("exact", "low_rank", "fit_passes", "forward_only")
    assert set(rows) == {(work, length) for work in works for length in (16, 32)}
    assert all(row["tokens_per_s"] > 0 and row["share_of_matmul"] > 0 for row in rows.values())
    whole, trial = report["whole_fit"], report["trial"]
    assert whole["layers_decomposed"] == whole["layers"] == 2
    assert trial["chosen_tokens"] == trial["scored_tokens"] // 10
    assert {"before", "selected", "random"} == set(trial["loss"])
    assert trial["loss"]["selected"]["reference"] < trial["loss"]["before"]["reference"]
