"""What stands in a URI of a configuration and may not: user info and signatures, wherever in a chain."""

import pytest

from quad_tasks.config.uris import without_credentials

HIDDEN = "planted"


@pytest.mark.parametrize(
    "uri",
    [
        "shards/part-?.jsonl",
        "s3://bucket/a@b/*.parquet",
        "https://host/a.jsonl?download=true",
        "zip://a.jsonl::https://host/b.zip",
        "BAAI/bge-small-en-v1.5",
        "tcp://127.0.0.1:8786",
    ],
)
def test_a_uri_without_secrets_is_taken_as_it_is(uri):
    assert without_credentials(uri) == uri


@pytest.mark.parametrize(
    ("uri", "found"),
    [
        (f"s3://key:{HIDDEN}@bucket/x", "user info"),
        (f"zip://x::https://ada:{HIDDEN}@host/b.zip", "user info"),
        (f"tls://ada:{HIDDEN}@host:8786", "user info"),
        (f"https://host/a?X-Amz-Signature={HIDDEN}", "the parameter 'X-Amz-Signature'"),
        (f"https://host/a?sv=1&sig={HIDDEN}", "the parameter 'sig'"),
        (f"gs://b/a?access_token={HIDDEN}", "the parameter 'access_token'"),
    ],
)
def test_a_secret_is_named_by_its_kind_and_not_shown(uri, found):
    with pytest.raises(ValueError, match=r"expected|a URI without credentials") as raised:
        without_credentials(uri)
    assert found in str(raised.value)
    assert HIDDEN not in str(raised.value)
