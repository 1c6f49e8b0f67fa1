"""The report as an object reads what is absent and what is null alike."""

from quad_tasks.report.model import Report


def test_absent_and_null_read_alike():
    absent, null = (
        Report.model_validate_json("{}"),
        Report.model_validate_json('{"pool": null, "arms": null, "threshold": null, "time_s": null}'),
    )
    assert absent.model_dump() == null.model_dump()
    assert (null.pool.documents, null.arms, null.time_s) == (None, (), {})


def test_nulls_among_named_values_are_left_out():
    report = Report.model_validate_json(
        '{"time_s": {"fit": 1.5, "train": null}, "diversity": {"random": {"coverage": null}}}'
    )
    assert report.time_s == {"fit": 1.5}
    assert report.diversity == {"random": {}}
