"""A stored result is not computed again, and reads back as what the function returned."""

from dataclasses import dataclass
from pathlib import Path

from quad_tasks.experiments.lab import cache
from quad_tasks.experiments.lab.cache import map_cached


def squared(workspace: str, key: str, number: int) -> int:
    """Square a number, and leave a mark of having done so."""
    mark = Path(workspace) / f"mark-{number}"
    mark.write_text("x" + (mark.read_text() if mark.exists() else ""))
    return number**2


def test_only_what_is_missing_is_computed(tmp_path, dask_client):
    items = [(str(tmp_path), "lab", number) for number in (3, 5, 3)]
    assert map_cached(squared, items, "square", "numbers") == [9, 25, 9]
    assert map_cached(squared, [*items, (str(tmp_path), "lab", 7)], "square", "numbers") == [9, 25, 9, 49]
    assert map_cached(squared, [], "square", "numbers") == []
    assert {mark.name: mark.read_text() for mark in tmp_path.glob("mark-*")} == {
        "mark-3": "x",
        "mark-5": "x",
        "mark-7": "x",
    }


def test_what_another_training_method_computed_is_computed_again(tmp_path, dask_client, monkeypatch):
    items = [(str(tmp_path), "lab", 3)]
    map_cached(squared, items, "square", "numbers")
    monkeypatch.setattr(cache, "METHOD", cache.METHOD + 1)
    map_cached(squared, items, "square", "numbers")
    assert (tmp_path / "mark-3").read_text() == "xx"


@dataclass(frozen=True)
class Powers:
    square: int
    cube: float
    name: str | None


def powers(workspace: str, key: str, number: int) -> list[Powers]:
    return [Powers(number**2, number**3 / 7, None if number % 2 else "even")]


def test_dataclasses_read_back_as_they_were(tmp_path, dask_client):
    items = [(str(tmp_path), "lab", number) for number in (3, 4)]
    expected = [powers(*item) for item in items]
    assert map_cached(powers, items, "power", "numbers") == expected
    assert map_cached(powers, items, "power", "numbers") == expected
