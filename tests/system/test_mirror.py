"""`tests/` mirrors the source: a module's own tests stand under its own name, in the folder of its folder."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UNTESTED_BY_NAME = {
    "flows/demo.py",
    "flows/end_to_end.py",
    "flows/fit_influence.py",
    "flows/run_bandit.py",
    "flows/train_model.py",
    "quad_tasks/commands/keys.py",
    "quad_tasks/commands/estimates/probe.py",
    "quad_tasks/commands/show_pool.py",
    "quad_tasks/config/schema.py",
    "quad_tasks/core/carry_over.py",
    "quad_tasks/experiments/lab/plots.py",
    "quad_tasks/records.py",
    "quad_tasks/runtime/findings.py",
    "quad_tasks/runtime/prefect_plots.py",
    "quad_tasks/runtime/run.py",
    "quad_tasks/stages/bandit/pilot.py",
    "quad_tasks/stages/bandit/round_settings.py",
    "quad_tasks/stages/bandit/predict.py",
    "quad_tasks/stages/bandit/stopping.py",
    "quad_tasks/stages/influence/extract_states.py",
    "quad_tasks/stages/pool/cluster.py",
    "quad_tasks/stages/pool/refresh.py",
}
"""Modules whose behaviour is tested only through others. It gets shorter: a new module brings a test of its own."""


def _test_file(module: Path) -> Path:
    """Return where the tests of a module stand: `quad_tasks/a/b.py` in `tests/a/`, `flows/a.py` in `tests/flows/`."""
    parts = module.relative_to(ROOT).parts
    folders = parts[1:-1] if parts[0] == "quad_tasks" else parts[:-1]
    return ROOT.joinpath("tests", *folders, f"test_{module.name}")


def modules_without_a_test_file() -> set[str]:
    files = [path for folder in ("flows", "quad_tasks") for path in (ROOT / folder).rglob("*.py")]
    modules = [path for path in files if path.name != "__init__.py"]
    return {path.relative_to(ROOT).as_posix() for path in modules if not _test_file(path).is_file()}


def test_every_module_has_a_test_file_of_its_name_but_for_those_listed():
    assert modules_without_a_test_file() - UNTESTED_BY_NAME == set()


def test_the_list_names_no_module_that_is_gone_or_has_a_test_file_by_now():
    assert UNTESTED_BY_NAME - modules_without_a_test_file() == set()
