"""Numbers as people are shown them: one rule for each kind, on pages and in the terminal alike."""

from __future__ import annotations

NONE = "–"


def count(value: int) -> str:
    """Return a number of things as ``1,976``."""
    return f"{value:,}"


def fixed(value: float | None, digits: int) -> str:
    """Return a value with so many decimals; a dash where there is none."""
    return NONE if value is None else f"{value:.{digits}f}".replace("-", "−")


def percent(value: float | None) -> str:
    """Return a value in percent with one decimal; a dash where there is none."""
    return fixed(value, 1)


def points(value: float | None) -> str:
    """Return a difference in points with its sign, if not zero; a dash where there is none."""
    if value is None:
        return NONE
    text = f"{value:+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text


def gain(value: float | None, low: float | None, high: float | None) -> str:
    """Return ``+2.6 (−2.4 to +7.9)`` for a difference in points; a dash where there is none."""
    ends = "" if low is None or high is None else f" ({points(low)} to {points(high)})"
    return points(value) + ends


def interval(low: float | None, high: float | None) -> str:
    """Return ``88.9–94.1``; empty where an end is missing."""
    return "" if low is None or high is None else f"{percent(low)}–{percent(high)}"


def with_interval(value: float | None, low: float | None, high: float | None) -> str:
    """Return ``91.6 (88.9–94.1)`` for the cell of a table."""
    ends = "" if value is None else interval(low, high)
    return f"{percent(value)} ({ends})" if ends else percent(value)


def probability(value: float) -> str:
    """Return a probability in whole percent, but never a certainty that rounding made."""
    if 0.995 <= value < 1:
        return "> 99 %"
    return "< 1 %" if 0 < value < 0.005 else f"{100 * value:.0f} %"


def duration(seconds: float | None) -> str:
    """Return a time as ``14 s``, ``5 min``, ``9 h`` or ``3 days``; a question mark for none."""
    if seconds is None:
        return "?"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.0f} h" if seconds < 172_800 else f"{seconds / 86_400:,.0f} days"
