"""Numbers as a reader sees them: per cent, percent points, milliseconds, megabytes, with a true minus sign."""

from __future__ import annotations

from clipq.evaluate.report.names import Unit

MISSING = "–"


def quantity(value: float | None, unit: Unit) -> str:
    """Return a value with its unit.

    >>> quantity(0.7312, "fraction"), quantity(0.01234, "seconds"), quantity(2_500_000, "bytes")
    ('73.1 %', '12.3 ms', '2.5 MB')
    """
    if value is None:
        return MISSING
    if unit == "fraction":
        return f"{_digits(value * 100, 1)} %"
    if unit == "seconds":
        return _seconds(value)
    if unit == "bytes":
        return _bytes(value)
    if unit in {"dB", "images/s"}:
        return f"{_digits(value, 1) if unit == 'dB' else _significant(value)} {unit}"
    return _digits(value, 4 if unit == "number" else 3)


def difference(value: float | None, unit: Unit) -> str:
    """Return a difference with its sign and unit; fractions in percent points.

    >>> difference(-0.0123, "fraction"), difference(0.5, "nats")
    ('−1.23 pp', '+0.500')
    """
    if value is None:
        return MISSING
    text = f"{_digits(abs(value) * 100, 2)} pp" if unit == "fraction" else quantity(abs(value), unit)
    if not any(digit in text for digit in "123456789"):
        return text
    return ("−" if value < 0 else "+") + text


def unsigned(value: float, unit: Unit) -> str:
    """Return the size of a difference, in percent points where it is one of fractions.

    >>> unsigned(0.0049, "fraction")
    '0.49 pp'
    """
    return difference(abs(value), unit).removeprefix("+")


def relative(value: float | None) -> str:
    """Return a difference as a part of what it is taken from, with its sign, in per cent.

    >>> relative(-0.0123)
    '−1.23 %'
    """
    return difference(value, "fraction").replace(" pp", " %")


def interval(ends: list[float | None] | tuple[float, float] | None, unit: Unit, *, signed: bool) -> str:
    """Return ``[low, high]`` without units, in the same digits as the number it belongs to."""
    if ends is None or ends[0] is None or ends[1] is None:
        return MISSING
    show = difference if signed else quantity
    return "[" + ", ".join(show(end, unit).removesuffix(" pp").removesuffix(" %") for end in ends) + "]"


def p_value(value: float | None) -> str:
    """Return a p-value.

    >>> p_value(0.00002), p_value(0.034)
    ('p < 0.001', 'p = 0.034')
    """
    if value is None:
        return MISSING
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def ratio(value: float | None) -> str:
    """Return how many times as much.

    >>> ratio(2.04)
    '2.0×'
    """
    return MISSING if value is None else f"{_significant(value)}×"


def _digits(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".replace("-", "−")


def _significant(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _seconds(value: float) -> str:
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1e3:.1f} ms" if value >= 1e-3 else f"{value * 1e6:.0f} µs"


def _bytes(value: float) -> str:
    for size, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size:
            return f"{value / size:.1f} {name}"
    return f"{value:.0f} B"
