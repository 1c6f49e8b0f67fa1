"""What is kept is not computed again, and a rerun computes what is missing alone."""

from pathlib import Path

from quad_tasks.experiments.kept import kept


def squared(workspace: str, key: str, number: int) -> int:
    """Square a number, and leave a mark of having done so."""
    mark = Path(workspace) / f"mark-{number}"
    mark.write_text("x" + (mark.read_text() if mark.exists() else ""))
    return number**2


def test_only_what_is_missing_is_computed(tmp_path, dask_client, prefect_server):
    items = [(str(tmp_path), "lab", number) for number in (3, 5, 3)]
    assert kept(squared, items, "square", "numbers") == [9, 25, 9]
    assert kept(squared, [*items, (str(tmp_path), "lab", 7)], "square", "numbers") == [9, 25, 9, 49]
    assert kept(squared, [], "square", "numbers") == []
    assert {mark.name: mark.read_text() for mark in tmp_path.glob("mark-*")} == {
        "mark-3": "x",
        "mark-5": "x",
        "mark-7": "x",
    }
