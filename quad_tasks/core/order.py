"""A random order of documents that depends on the seed and their ids alone, never on files, workers or counts."""

import hashlib


def order_key(seed: int, document_id: str) -> int:
    """Draw a document's place in the seeded order: uniform in [0, 2^64), equal for equal seed and id."""
    body = f"{seed}:{document_id}".encode()
    return int.from_bytes(hashlib.blake2b(body, digest_size=8).digest(), "little")
