"""Tests are spread so that what is expensive is built once and begun first, and a quick run leaves no folder out."""

import types
from pathlib import Path

import pytest
from scheduling import longest_first, quick, scope_of

APP, RUN = "tests/flows/cli/test_app.py", "tests/flows/test_select_data.py"
STORE = "tests/storage/test_store.py"


def item(file, name, case="", slow=False, fixtures=()):
    """A collected test, as far as scheduling looks at it."""
    marker = types.SimpleNamespace(name="slow") if slow else None
    return types.SimpleNamespace(
        nodeid=f"{file}::{name}{case}",
        path=Path(file),
        originalname=name,
        fixturenames=fixtures,
        get_closest_marker=lambda wanted: marker,
    )


def names(items):
    return [item.nodeid.rpartition("::")[2] for item in items]


def test_files_that_ask_for_the_finished_run_or_a_server_share_a_worker_and_others_keep_to_their_file():
    assert scope_of(f"{RUN}::test_a") == scope_of("tests/commands/test_inspect.py::test_b[x::y]") == "small_run"
    assert scope_of(f"{APP}::test_a") == scope_of("tests/system/test_infra.py::test_b") == "prefect_server"
    assert scope_of(f"{STORE}::test_a[s3]") == STORE


def test_slow_files_come_first_then_shared_ones_then_the_largest():
    few, many = "tests/core/test_loss.py", STORE
    items = [item(few, "test_few"), item(many, "test_1"), item(many, "test_2"), item(APP, "test_app")]
    items.append(item("tests/system/test_crash.py", "test_crash", slow=True))
    assert names(longest_first(items)) == ["test_crash", "test_app", "test_1", "test_2", "test_few"]


def test_a_quick_run_keeps_the_first_and_the_last_case_and_nothing_slow_or_of_a_dear_fixture():
    items = [item(STORE, "test_many", f"[{n}]") for n in range(5)] + [
        item(STORE, "test_one"),
        item(STORE, "s", slow=True),
        item(STORE, "t", fixtures=("tmp_path", "tiny_testbed")),
        item(STORE, "u", fixtures=("prefect_server",)),
    ]
    assert names(quick(items)) == ["test_many[0]", "test_many[4]", "test_one"]


def test_a_quick_run_that_would_leave_a_folder_out_is_refused():
    with pytest.raises(pytest.UsageError, match=r"left out all of \['tests/system'\]"):
        quick([item(STORE, "test_one"), item("tests/system/test_crash.py", "test_crash", slow=True)])
