"""Write numbers as a reader wants them: the filters of the page's templates, and the console's.

A number that is not known is a dash, never a guess.
"""

from math import isfinite

MINUTE_S = 60
HOUR_S = 3600
KIBI = 1024
UNKNOWN = "–"


def count(value: float | None) -> str:
    """Write a whole number with thousands separated: ``12,345``."""
    return UNKNOWN if value is None else f"{value:,.0f}"


def fixed(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """Write a number to fixed decimals with a true minus: ``−0.012``; ``sign`` also writes the plus."""
    return UNKNOWN if value is None else f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def significant(value: float | None) -> str:
    """Write a number of any magnitude to three significant digits: ``0.0120``, ``1.20e−05``."""
    return UNKNOWN if value is None else f"{value:#.3g}".removesuffix(".").replace("-", "−")


def percent(share: float | None) -> str:
    """Write a share in [0, 1] as per cent with one decimal: ``16.0 %``."""
    return UNKNOWN if share is None else f"{100 * share:.1f} %"


def duration(seconds: float | None) -> str:
    """Write a time span in the unit a reader would use: ``0.42 s``, ``3 min 12 s``, ``2 h 05 min``."""
    if seconds is None:
        return UNKNOWN
    if seconds < MINUTE_S:
        return f"{seconds:.3g} s"
    if seconds < HOUR_S:
        return f"{int(seconds // MINUTE_S)} min {int(seconds % MINUTE_S):02d} s"
    return f"{int(seconds // HOUR_S)} h {int(seconds % HOUR_S // MINUTE_S):02d} min"


def size(size_bytes: float | None) -> str:
    """Write a number of bytes in binary units: ``1.50 GiB``."""
    if size_bytes is None:
        return UNKNOWN
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < KIBI:
            return f"{value:.3g} {unit}"
        value /= KIBI
    return f"{value:.3g} TiB"


def scalar(value: object) -> str:
    """Write any fact: numbers readable, None as ``none``, everything else as it is."""
    match value:
        case bool():
            return "yes" if value else "no"
        case None:
            return "none"
        case int():
            return count(value) if abs(value) >= 10_000 else str(value)
        case float() if isfinite(value):
            return f"{value:.6g}"
        case _:
            return str(value)
