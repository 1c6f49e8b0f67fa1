"""`report.json` and the typed object are one: what is written is read back, what is newer is refused."""

import json

import pytest
from fake_report import fake_report

from quad_tasks.report.model import Report, Stage
from quad_tasks.report.report_json import FORMAT, UnknownFormat, dump_report, parse_report


def test_what_is_read_is_written_again():
    body = fake_report()
    assert json.loads(dump_report(parse_report(json.dumps(body)))) == json.loads(json.dumps(body))


def test_what_was_set_to_none_is_written_and_what_was_not_set_is_not():
    assert json.loads(dump_report(Report(stages=(Stage(stage=0),), prediction=None))) == {
        "stages": [{"stage": 0}],
        "prediction": None,
    }


def test_a_newer_format_is_refused_by_its_number():
    with pytest.raises(UnknownFormat, match=f"a format up to {FORMAT}, found {FORMAT + 1}"):
        parse_report(json.dumps({"format": FORMAT + 1, "stages": "of another kind"}))


def test_what_is_no_report_is_refused():
    with pytest.raises(ValueError, match="stages"):
        parse_report('{"stages": "two"}')
