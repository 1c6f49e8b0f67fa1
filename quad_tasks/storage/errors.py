"""What goes wrong with stored data: the errors, which of them pass, when to try again, what a message may show.

Owns the package's error classes (each also a builtin that callers expect), the one retry policy, and the blanking of
secrets: every message about a store goes through `redact`.
"""

import errno
import random
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from time import sleep
from typing import TypeVar

from aiohttp import ClientError as HttpClientError
from aiohttp import ClientPayloadError
from botocore.exceptions import ConnectionError as S3ConnectionError
from botocore.exceptions import HTTPClientError as S3ClientError

RETRY_ATTEMPTS = 7
"""Tries per operation: with the delays below, waits of 15 s on average and 30 s at most."""
RETRY_FIRST_DELAY_S = 0.5
RETRY_LONGEST_DELAY_S = 15.0
TRANSIENT_STATUS = frozenset({429, 500, 502, 503, 504})
EXISTS_STATUS, IN_FLIGHT_STATUS = 412, 409
"""S3's answers to a create-if-absent: an object stands there; another write of it was under way, and none may have won:
come back (https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html)."""

DISK_FULL = "the disk is full: make room, then `quad resume` goes on; what is committed is kept"

T = TypeVar("T")


class StorageError(Exception):
    """Anything this package reports about stored data."""


class StoreKeyError(StorageError, FileNotFoundError):
    """No object stands under the key."""


class InvalidKey(StorageError, ValueError):
    """The key is not a plain relative path."""


class StoreForbidden(StorageError, PermissionError):
    """The store refused the credentials or the operation."""


class StoreUnavailable(StorageError, ConnectionError):
    """The store kept failing in a way that usually passes; trying later may succeed."""


class StoreFault(StorageError, OSError):
    """The store failed in a way that trying again will not mend."""


class UnsupportedStore(StorageError, ValueError):
    """The URI names no store that can hold a workspace."""


def call_with_retries(operation: Callable[[], T], place: str) -> T:
    """Run ``operation``, again after a growing random delay while it fails in a way that usually passes.

    Args:
        operation: safe to run more than once.
        place: names key and store in messages, holding no secret.

    Raises:
        StoreKeyError: nothing is there.
        StoreForbidden: access is refused.
        StoreFault: any other failure that will not pass.
        StoreUnavailable: every try failed with a timeout, a lost connection or HTTP 429, 500, 502, 503, 504.
    """
    for attempt in range(RETRY_ATTEMPTS):
        if attempt:
            # "Full jitter": https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
            sleep(random.uniform(0, min(RETRY_LONGEST_DELAY_S, RETRY_FIRST_DELAY_S * 2 ** (attempt - 1))))
        try:
            return operation()
        except StorageError:
            raise
        except Exception as error:
            if not is_transient(error):
                raise _permanent(error, place) from None
            reason = _describe(error)
    raise StoreUnavailable(f"{place}: gave up after {RETRY_ATTEMPTS} tries: {reason}")


def call_in_daemon(call: Callable[[], T]) -> Future[T]:
    """Call a function in a thread that the process does not wait for at its end, as it does for an executor's."""
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return answer


def is_transient(error: BaseException) -> bool:
    """Say whether a later try may succeed: a timeout, a lost connection, or a status that asks to come back."""
    if isinstance(error, ClientPayloadError):  # a body cut short; aiohttp hangs a 400 of its own making on it
        return True
    status = http_status(error)
    if status is not None:
        return status in TRANSIENT_STATUS
    # httpx's errors by their name: its successors, of which the Hub's client takes one or another, have the same
    lost = any(
        kind.__name__ == "TransportError" and kind.__module__.startswith("httpx") for kind in type(error).__mro__
    )
    return lost or isinstance(error, (TimeoutError, ConnectionError, S3ConnectionError, S3ClientError, HttpClientError))


def http_status(error: BaseException | None) -> int | None:
    """Return the HTTP status that ``error``, or what caused it, came from; None where there was none."""
    while error is not None:
        response = getattr(error, "response", None)
        metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
        given = (metadata.get("HTTPStatusCode"), getattr(response, "status_code", None))
        for status in (*given, getattr(error, "status", None), getattr(error, "code", None)):
            if isinstance(status, int):
                return status
        error = error.__cause__
    return None


def is_full(error: BaseException) -> bool:
    """Say whether a write failed for want of room on a disk."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def name_full_disk(place: str) -> Iterator[None]:
    """Say of a write that fails for want of room on the workspace's disk where it was and what to do.

    Args:
        place: names key and store in the message, holding no secret.

    Raises:
        StoreFault: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise StoreFault(f"{place}: {DISK_FULL}") from error
        raise


def redact(text: str) -> str:
    """Blank what may be secret in the URIs of ``text``: user and password before '@', and values after '?' or '&'."""
    text = re.sub(r"(?<=://)[^/\s]*@", "***@", text)
    return re.sub(r"(?<=[?&])([\w.%-]+=)[^&\s'\"]+", r"\1***", text)


def _permanent(error: Exception, place: str) -> StorageError:
    if isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)) or http_status(error) == 404:
        return StoreKeyError(f"not found: {place}")
    if isinstance(error, PermissionError) or http_status(error) == 403:
        return StoreForbidden(f"access refused: {place}: {_describe(error)}")
    if is_full(error):
        return StoreFault(f"{place}: {DISK_FULL}")
    return StoreFault(f"{place}: {_describe(error)}")


def _describe(error: Exception) -> str:
    return redact(f"{type(error).__name__}: {error}")
