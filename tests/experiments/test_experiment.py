"""A result is written under its content with its drawings, and its tables are laid out from what was written."""

from dataclasses import dataclass

import pytest

from quad_tasks.core.evaluation.statistics import Interval
from quad_tasks.experiments.experiment import Experiment, claims_table, result_body, within, write_result
from quad_tasks.experiments.lab import plots
from quad_tasks.experiments.lab.evaluation import Claim, claim_least, claim_most
from quad_tasks.manifests.run import ExperimentRecord
from quad_tasks.storage.manifest import read_manifest
from quad_tasks.storage.store import open_store


@dataclass(frozen=True)
class Result:
    values: dict[str, Interval]
    missing: float | None
    shows: list[Claim]
    time_s: dict[str, float]


FOUND = Interval(0.9, 0.8, 1.0)
RESULT = Result({"a": FOUND}, None, [claim_least("share", FOUND, 0.85), claim_most("share", FOUND, 0.5)], {"fit": 3.0})


def draw(result):
    figure, (axes,) = plots.page_figure(2.0)
    plots.draw_bars(axes, list(result.values), list(result.values.values()), [plots.RED])
    return {"values": figure}


EXPERIMENT = Experiment(
    "for a test",
    Result,
    lambda workspace, config, quick: RESULT,
    lambda result: {"Values": [{"a": within(result.values["a"], 1)}], **claims_table(result.shows)},
    draw,
)


def test_a_result_is_json_of_plain_values():
    assert result_body(RESULT) == {
        "values": {"a": {"mean": 0.9, "low": 0.8, "high": 1.0}},
        "missing": None,
        "shows": [
            {
                "claim": "share",
                "measured": 0.9,
                "low": 0.8,
                "high": 1.0,
                "limit": limit,
                "holds": holds,
                "certain": False,
            }
            for limit, holds in ((">= 0.85", True), ("<= 0.5", False))
        ],
        "time_s": {"fit": 3.0},
    }


def test_a_result_is_written_once_with_its_drawings_and_read_back(tmp_path):
    keys = {write_result.fn(str(tmp_path), "test", EXPERIMENT, True, RESULT, took_s) for took_s in (1.0, 2.0)}
    (key,) = keys
    store = open_store(str(tmp_path))
    assert {name.rsplit("/", 1)[1] for name in store.list("experiments/test")} == {
        "result.json",
        "values.svg",
        "values.png",
    }
    body = read_manifest(ExperimentRecord, store, key).model_dump()
    assert (body["experiment"], body["quick"], body["values"]) == ("test", True, result_body(RESULT)["values"])
    assert body["time_s"] == {"fit": 3.0}
    assert EXPERIMENT.tables(body)["Values"] == [{"a": "0.9 ± 0.1"}]


def test_a_claim_is_said_to_hold_whole_or_in_part_or_not_at_all():
    claims = [claim_least("share", FOUND, least) for least in (0.8, 0.85, 0.95)]
    (rows,) = claims_table(claims).values()
    assert [row[""] for row in rows] == ["holds", "holds, not its whole interval", "does not hold"]
    assert rows[0]["95 % interval"] == "0.800 to 1.000"
    assert claims_table([]) == {}


def test_a_result_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="missing"):
        EXPERIMENT.tables({"values": {}, "shows": []})
