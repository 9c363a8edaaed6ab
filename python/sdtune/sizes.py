"""Amounts of memory and disk in messages."""

_UNITS = ((1e12, "TB", 1), (1e9, "GB", 1), (0.0, "MB", 0))


def _text(amount: float, more_digits: int) -> str:
    least, unit, digits = next(entry for entry in _UNITS if amount >= entry[0])
    return f"{amount / (least or 1e6):.{digits + more_digits}f} {unit}"


def sizes(*amounts: float) -> list[str]:
    """Bytes in TB, GB or MB: with so many digits that amounts that differ read differently, as far as six digits do."""
    for more_digits in range(6):
        texts = [_text(max(0, amount), more_digits) for amount in amounts]
        if len(set(texts)) == len(set(amounts)):
            break
    return texts
