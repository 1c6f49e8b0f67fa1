"""Which random streams a piece of code makes: a test can tell whether two of its generators are one."""

from collections.abc import Sequence

import numpy as np
import pytest


def note_streams(monkeypatch: pytest.MonkeyPatch) -> Sequence[int]:
    """Return the states in which NumPy's generators are made from now on, as they are made.

    NumPy drops trailing zeros of a seed: generators are told apart by their states, not by how they were asked for.
    """
    states, make = list[int](), np.random.default_rng

    def note(seed: object) -> np.random.Generator:
        generator = make(seed)  # type: ignore[call-overload]
        states.append(generator.bit_generator.state["state"]["state"])
        return generator

    monkeypatch.setattr(np.random, "default_rng", note)
    return states
