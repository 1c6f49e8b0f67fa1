"""How numbers are written."""

import pytest

from quad_tasks.report import numbers


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (numbers.count(12_345.4), "12,345"),
        (numbers.fixed(-0.0123), "−0.012"),
        (numbers.fixed(0.0123, 2, sign=True), "+0.01"),
        (numbers.significant(0.012), "0.0120"),
        (numbers.significant(1.2e-5), "1.20e−05"),
        (numbers.significant(123.4), "123"),
        (numbers.percent(0.16), "16.0 %"),
        (numbers.duration(0.42), "0.42 s"),
        (numbers.duration(192), "3 min 12 s"),
        (numbers.duration(7_500), "2 h 05 min"),
        (numbers.size(1_610_612_736), "1.5 GiB"),
        (numbers.size(3 * 1024**4), "3 TiB"),
        (numbers.scalar(True), "yes"),
        (numbers.scalar(None), "none"),
        (numbers.scalar(9_999), "9999"),
        (numbers.scalar(10_000), "10,000"),
        (numbers.scalar(0.1234567), "0.123457"),
        (numbers.scalar(float("nan")), "nan"),
        (numbers.scalar("text"), "text"),
    ],
)
def test_a_number_is_written_for_readers(written, expected):
    assert written == expected


@pytest.mark.parametrize("write", ["count", "fixed", "significant", "percent", "duration", "size"])
def test_a_number_that_is_not_known_is_a_dash(write):
    assert getattr(numbers, write)(None) == "–"
