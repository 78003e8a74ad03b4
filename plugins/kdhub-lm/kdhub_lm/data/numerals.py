"""Numbers in words."""

from __future__ import annotations

_SPANISH = (
    "cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince dieciséis diecisiete "
    "dieciocho diecinueve veinte veintiuno veintidós veintitrés veinticuatro veinticinco veintiséis veintisiete "
    "veintiocho veintinueve"
).split()
_SPANISH_TENS = "treinta cuarenta cincuenta sesenta setenta ochenta noventa".split()
_SPANISH_HUNDREDS = (
    "ciento doscientos trescientos cuatrocientos quinientos seiscientos setecientos ochocientos novecientos"
).split()
_ENGLISH = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_ENGLISH_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def spanish(n: int) -> str:
    """0 to 999: `setecientos cuarenta y dos`."""
    hundreds, rest = divmod(n, 100)
    if hundreds:
        head = "cien" if n == 100 else _SPANISH_HUNDREDS[hundreds - 1]
        return f"{head} {spanish(rest)}" if rest else head
    if n < 30:
        return _SPANISH[n]
    tens, ones = divmod(n, 10)
    return _SPANISH_TENS[tens - 3] + (f" y {_SPANISH[ones]}" if ones else "")


def english(n: int) -> str:
    """0 to 999: `seven hundred forty-two`."""
    hundreds, rest = divmod(n, 100)
    if hundreds:
        head = f"{_ENGLISH[hundreds]} hundred"
        return f"{head} {english(rest)}" if rest else head
    if n < 20:
        return _ENGLISH[n]
    tens, ones = divmod(n, 10)
    return _ENGLISH_TENS[tens - 2] + (f"-{_ENGLISH[ones]}" if ones else "")
