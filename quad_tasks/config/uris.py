"""Where a configuration's files are: paths and URIs without secrets, since each is written into records.

What is refused would stand in the workspace's records, in the report and in Prefect's database. Each URI of a chain, as
`zip://x::https://host/y`, is looked at.
"""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

USER_INFO = re.compile(r"://[^/?#]*@")
SECRET_PARAMETER = re.compile(r"(?i)[?&;]([\w.%-]*(?:sig|token|secret|passw|credential|key)[\w.%-]*)=")
"""Of a query string: those of presigned S3 URLs, Azure's shared access signatures, and what others call theirs."""


def without_credentials(uri: str) -> str:
    """Return a URI that holds no user info and no signature.

    Raises:
        ValueError: it holds some; the message does not show it.
    """
    expected = "a URI without credentials (they come from the environment or a profile)"
    if USER_INFO.search(uri):
        raise ValueError(f"{expected}, found user info")
    signed = SECRET_PARAMETER.search(uri)
    if signed:
        raise ValueError(f"{expected}, found the parameter {signed[1]!r}")
    return uri


Uri = Annotated[str, Field(min_length=1), AfterValidator(without_credentials)]
