"""Find the heading of the troubleshooting page that explains an error message.

The page is no part of the package: what is known of it stands here, and a test holds both together.
"""

PAGE = "docs/guides/troubleshooting.md"
_A_WHOLE_FILE = "expected-a-whole-gzip-file-expected-a-whole-parquet-file"
_VERSIONS = "expected-the-versions-the-run-began-with-expected-the-drivers-versions"
_BLOCKS = "is-not-in-the-table-to-hold-matrices"
_DIGEST = "expected-digest-expected-the-bytes-that-were-written"
ANCHORS = {
    "unknown key": "unknown-key",
    "expected a mapping of keys": "expected-a-mapping-of-keys",
    "expected key=value": "expected-keyvalue",
    "expected at most the pool's": "expected-at-most-the-pools",
    "a URI without credentials": "a-uri-without-credentials",
    "expected a file or a glob that matches files": "expected-a-file-or-a-glob-that-matches-files",
    **{f"expected a whole {kind} file": _A_WHOLE_FILE for kind in ("gzip", "Parquet", "zstd", "bz2", "xz", "Arrow")},
    "expected documents, found none to keep": "expected-documents-found-none-to-keep",
    "expected the file that was scanned, found it changed": "expected-the-file-that-was-scanned-found-it-changed",
    "expected documents without held-out text, found none": "expected-documents-without-held-out-text-found-none",
    "expected an answer from": "expected-an-answer-from",
    "expected a causal language model": "expected-a-causal-language-model",
    "is not in the table": _BLOCKS,
    "to hold matrices": _BLOCKS,
    "model.window_tokens: expected at most": "modelwindow_tokens-expected-at-most",
    "factors.max_factor_width: expected covariances that fit": "factorsmax_factor_width-expected-covariances-that-fit",
    "expected a run named": "expected-a-run-named",
    "expected a report, found none yet": "expected-a-report-found-none-yet",
    "expected the versions the run began with": _VERSIONS,
    "expected the driver's versions": _VERSIONS,
    "expected no other driver": "expected-no-other-driver",
    "cannot create an object only if absent": "cannot-create-an-object-only-if-absent",
    "other content is committed": "other-content-is-committed",
    "expected digest": _DIGEST,
    "expected the bytes that were written": _DIGEST,
    "expected work that the memory of the device holds": "expected-work-that-the-memory-of-the-device-holds",
    "interrupted; the same command goes on from the last commit": (
        "interrupted-the-same-command-goes-on-from-the-last-commit"
    ),
}
"""A part of a message, and the anchor of its heading; of several parts in one message the first counts."""


def find_help(message: str) -> str | None:
    """Return page and anchor of the heading that explains an error message; None where there is none."""
    return next((f"{PAGE}#{anchor}" for part, anchor in ANCHORS.items() if part in message), None)
