"""What is tried again, how often and after how long, and what a message may show."""

import pickle

import aiohttp
import botocore.exceptions
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quad_tasks.storage import errors
from quad_tasks.storage.errors import (
    StorageError,
    StoreFault,
    StoreForbidden,
    StoreKeyError,
    StoreUnavailable,
    call_with_retries,
    is_transient,
    redact,
)


def client_error(status: int) -> Exception:
    response = {"Error": {"Code": str(status)}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error = OSError("as s3fs translates it")
    error.__cause__ = botocore.exceptions.ClientError(response, "PutObject")
    return error


def cut_short() -> Exception:
    error = aiohttp.ClientPayloadError("Response payload is not completed")
    error.__cause__ = aiohttp.http_exceptions.ContentLengthError("received 3 of 6 bytes")
    return error


class Failing:
    """Fails as told, then returns 7."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls = list(errors), 0

    def __call__(self) -> int:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return 7


@pytest.mark.parametrize(
    "error",
    [
        *(client_error(status) for status in (429, 500, 502, 503, 504)),
        TimeoutError("slow"),
        ConnectionResetError("reset"),
        botocore.exceptions.ReadTimeoutError(endpoint_url="http://host"),
        botocore.exceptions.EndpointConnectionError(endpoint_url="http://host"),
        aiohttp.ClientPayloadError("cut short"),
        cut_short(),
        aiohttp.ServerDisconnectedError(),
    ],
    ids=repr,
)
def test_a_passing_fault_is_tried_again(error, delays):
    assert is_transient(error)
    assert call_with_retries(Failing(error), "place") == 7
    assert len(delays) == 1


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (FileNotFoundError("gone"), StoreKeyError),
        (client_error(403), StoreForbidden),
        (PermissionError("no"), StoreForbidden),
        (client_error(409), StoreFault),
        (client_error(412), StoreFault),
        (client_error(400), StoreFault),
        (OSError(28, "No space left on device"), StoreFault),
        (ZeroDivisionError("a bug"), StoreFault),
    ],
    ids=repr,
)
def test_a_lasting_fault_is_raised_at_once(error, raised, delays):
    operation = Failing(error)
    with pytest.raises(raised, match="place"):
        call_with_retries(operation, "place")
    assert operation.calls == 1
    assert delays == []


def test_tries_end_with_an_error_that_says_how_many_there_were(delays):
    operation = Failing(*(client_error(503) for _ in range(20)))
    with pytest.raises(StoreUnavailable, match=r"'key' in s3://b: gave up after 7 tries: OSError"):
        call_with_retries(operation, "'key' in s3://b")
    assert operation.calls == errors.RETRY_ATTEMPTS == len(delays) + 1


def test_delays_are_random_below_a_bound_that_doubles_to_a_cap(delays):
    for _ in range(50):
        with pytest.raises(StoreUnavailable, match="gave up"):
            call_with_retries(Failing(*(client_error(503) for _ in range(20))), "place")
    per_try = list(zip(*[iter(delays)] * 6, strict=True))
    for attempt, bound in enumerate((0.5, 1, 2, 4, 8, 15)):
        waited = [delay[attempt] for delay in per_try]
        assert 0 <= min(waited) < bound / 2 < max(waited) <= bound
        assert len(set(waited)) > 1


def test_errors_are_the_builtins_that_callers_expect_and_survive_pickling():
    expected = {StoreKeyError: FileNotFoundError, StoreForbidden: PermissionError, StoreUnavailable: ConnectionError}
    for error, builtin in expected.items():
        assert issubclass(error, (StorageError, builtin))
        assert str(pickle.loads(pickle.dumps(error("message")))) == "message"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ftp://user:secret@host/a", "ftp://***@host/a"),
        ("no s3://key:se:cr@et@bucket/a here", "no s3://***@bucket/a here"),
        ("https://host/a?X-Amz-Signature=secret&v=1", "https://host/a?X-Amz-Signature=***&v=***"),
        ("s3://bucket/part-?.jsonl", "s3://bucket/part-?.jsonl"),
        ("s3://bucket/mail@host", "s3://bucket/mail@host"),
        ("/local/folder", "/local/folder"),
    ],
)
def test_redact_blanks_only_what_may_be_secret(text, shown):
    assert redact(text) == shown


@given(st.text(st.characters(exclude_characters="/ \t\n\r\f\v", exclude_categories=("Z", "C")), min_size=8))
def test_no_password_survives_in_a_message(secret):
    assert f":{secret}@" not in redact(f"cannot open sftp://user:{secret}@host/folder: refused")


def test_a_fault_that_repeats_a_secret_uri_is_blanked():
    with pytest.raises(StoreFault, match=r"place: ValueError: cannot open ftp://\*\*\*@host") as caught:
        call_with_retries(Failing(ValueError("cannot open ftp://user:secret@host")), "place")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
