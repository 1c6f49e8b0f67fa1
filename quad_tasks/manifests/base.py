"""What every manifest has: a format number, and fields outside its digest."""

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A part of a manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Manifest(Frozen):
    """What every manifest has: a format number, and fields outside its digest."""

    FORMAT: ClassVar[int] = 1
    VOLATILE: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def upgrade(cls, body: dict[str, Any], found: int) -> dict[str, Any] | None:
        """Turn a body of the older format `found` into one of today's; None: that format cannot be read any more."""
        return None
