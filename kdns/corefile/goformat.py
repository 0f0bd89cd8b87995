"""How Go writes values and reads literals: what of its fmt and strconv templates use.

Values are those of `kdns.corefile.gotemplate`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from kdns.errors import TemplateError

WIDEST = 1000
"""Characters that a width or a precision may ask for."""

_VERB = re.compile(r"%(?P<flags>[-+# 0]*)(?P<width>\d*)(?P<dot>\.(?P<precision>\d*))?(?P<verb>.?)", re.DOTALL)
_ESCAPE = re.compile(
    r"\\(?:(?P<simple>[abfnrtv\\'\"])|x(?P<hex>[0-9a-fA-F]{2})|(?P<octal>[0-3][0-7]{2})|u(?P<short>[0-9a-fA-F]{4})"
    r"|U(?P<long>[0-9a-fA-F]{8})|(?P<bad>.))",
    re.DOTALL,
)
_SIMPLE = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_QUOTED = {text: f"\\{char}" for char, text in _SIMPLE.items()}
_INTEGER = re.compile(
    r"[-+]?(?:0[xX](?:_?[0-9a-fA-F])+|0[bB](?:_?[01])+|0[oO]?(?:_?[0-7])+|(?:0|[1-9](?:_?\d)*))", re.ASCII
)
_FLOAT = re.compile(r"[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d{1,3})?", re.ASCII)
_LARGEST = 1 << 63
_LONGEST = 100
"""Characters of a number."""
_INFINITE = float("inf")


class Unsigned(int):
    """An integer of one of Go's unsigned types."""


_USUAL: Mapping[type, str] = {str: "s", int: "d", Unsigned: "d", bool: "t", float: "g"}
"""The verbs that `%v` stands for."""


# Literals


def unquoted(text: str) -> str | None:
    """The value of a string literal, None for one that is none."""
    if text.startswith("`"):
        return text[1:-1].replace("\r", "")
    bad = False

    def one(match: re.Match[str]) -> str:
        nonlocal bad
        code = match["short"] or match["long"]
        if match["simple"]:
            bad = bad or match["simple"] == "'"
            return _SIMPLE.get(match["simple"], match["simple"])
        if match["hex"] or match["octal"]:
            return bytes((int(match["hex"], 16) if match["hex"] else int(match["octal"], 8),)).decode(
                "utf-8", "surrogateescape"
            )
        if code is None or int(code, 16) > 0x10FFFF or 0xD800 <= int(code, 16) < 0xE000:
            bad = True
            return ""
        return chr(int(code, 16))

    found = _ESCAPE.sub(one, text[1:-1])
    return None if bad else found


def number(text: str) -> int | float | None:
    """The value of a number or of a character; None for what is none, or is too large."""
    if text.startswith("'"):
        inner = text[1:-1]
        swapped = {"\\'": "'", '"': '\\"', '\\"': ""}  # what a string escapes and a character does not
        char = unquoted(f'"{swapped.get(inner, inner)}"')
        return ord(char) if char is not None and len(char) == 1 else None
    if len(text) > _LONGEST:
        return None
    if _INTEGER.fullmatch(text):
        digits = text.replace("_", "")
        octal = re.fullmatch(r"[-+]?0[0-7]+", digits)
        value = int(digits, 8) if octal else int(digits, 0)
        return value if -_LARGEST <= value < _LARGEST else None
    return float(text) if _FLOAT.fullmatch(text) and float(text) < _INFINITE else None


# Values


def printed(value: Any) -> str:
    """A value as `%v` writes it."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float):
        return _shortest(value)
    if value is None:
        return "<nil>"
    if isinstance(value, list):
        return f"[{' '.join(map(printed, value))}]"
    if isinstance(value, dict):
        return f"map[{' '.join(f'{key}:{printed(each)}' for key, each in sorted(value.items()))}]"
    raise TemplateError(f"{getattr(value, 'name', 'a value')} is not supported by itself")


def _shortest(value: float) -> str:
    """As `%v` does it: with an exponent from a million on."""
    shortest = next(text for text in (f"{value:.{places}e}" for places in range(18)) if float(text) == value)
    if -4 <= int(shortest.partition("e")[2]) < 6:
        return repr(value).removesuffix(".0")
    return shortest


def print_all(values: Sequence[Any]) -> str:
    """fmt.Sprint: a space between two of which neither is a string."""
    parts = []
    for index, value in enumerate(values):
        if index and not isinstance(value, str) and not isinstance(values[index - 1], str):
            parts.append(" ")
        parts.append(printed(value))
    return "".join(parts)


def print_line(values: Sequence[Any]) -> str:
    """fmt.Sprintln."""
    return " ".join(map(printed, values)) + "\n"


def sprintf(form: Any, values: Sequence[Any]) -> str:
    """fmt.Sprintf, but for `*`, `[n]` and the verbs T and p. Raises TemplateError."""
    if not isinstance(form, str):
        raise TemplateError(f"printf with {printed(form)} where a format belongs")
    if re.search(r"%[-+# 0\d.]*[*\[Tp]", form):
        raise TemplateError("printf with *, [n], %T or %p is not supported")
    left = iter(values)
    used = 0

    def one(match: re.Match[str]) -> str:
        nonlocal used
        verb = match["verb"]
        if verb == "%":
            return "%"
        if not verb:
            return "%!(NOVERB)"
        if used == len(values):
            return f"%!{verb}(MISSING)"
        used += 1
        return _Verb(match).of(next(left))

    found = _VERB.sub(one, form)
    extra = ", ".join(f"{_type(value)}={printed(value)}" if value is not None else "<nil>" for value in left)
    return f"{found}%!(EXTRA {extra})" if extra else found


def _type(value: Any) -> str:
    if isinstance(value, Unsigned):
        return "uint64"
    names = {bool: "bool", int: "int", str: "string", float: "float64", list: "[]string", dict: "map[string]string"}
    return names.get(type(value), "struct")


class _Verb:
    """One verb with its flags."""

    def __init__(self, match: re.Match[str]) -> None:
        self.flags = match["flags"]
        self.verb = match["verb"]
        if max(len(match["width"]), len(match["precision"] or "")) > _LONGEST:
            raise TemplateError(f"printf with more than {WIDEST} characters")
        self.width = int(match["width"] or 0)
        self.precision = int(match["precision"] or 0) if match["dot"] else None
        if max(self.width, self.precision or 0) > WIDEST:
            raise TemplateError(f"printf with more than {WIDEST} characters")

    def of(self, value: Any) -> str:
        """What it makes of a value; Go's complaint if it is not for it."""
        if isinstance(value, list):
            return f"[{' '.join(map(self.of, value))}]"
        if isinstance(value, dict):
            return f"map[{' '.join(f'{self.of(key)}:{self.of(each)}' for key, each in sorted(value.items()))}]"
        usual = _USUAL.get(type(value))
        made = self._by_kind(usual or "s" if self.verb == "v" else self.verb, value)
        if made is not None:
            return made
        if usual is None:
            return self._padded(printed(value)) if self.verb == "v" else f"%!{self.verb}({printed(value)})"
        return f"%!{self.verb}({_type(value)}={self._by_kind(usual, value)})"

    def _by_kind(self, verb: str, value: Any) -> str | None:
        if isinstance(value, bool):
            return self._padded(printed(value)) if verb == "t" else None
        if isinstance(value, int):
            return self._integer(verb, int(value))
        if isinstance(value, float):
            return self._float(verb, value)
        return self._string(verb, value) if isinstance(value, str) else None

    def _string(self, verb: str, value: str) -> str | None:
        cut = value if self.precision is None else value[: self.precision]
        if verb == "s":
            return self._padded(cut)
        if verb == "q":
            return self._padded(quoted(cut))
        if verb in "xX":
            data = value.encode("utf-8", "surrogateescape")
            data = data if self.precision is None else data[: self.precision]
            separator = " " if " " in self.flags else ""
            text = data.hex(separator) if separator and data else data.hex()
            if "#" in self.flags and data:
                text = separator.join(f"0x{part}" for part in text.split(separator)) if separator else f"0x{text}"
            return self._padded(text.upper() if verb == "X" else text)
        return None

    def _integer(self, verb: str, value: int) -> str | None:
        bases: Mapping[str, tuple[str, str]] = {
            "d": ("d", ""), "b": ("b", "0b"), "o": ("o", "0"), "O": ("o", "0o"), "x": ("x", "0x"), "X": ("X", "0X"),
        }  # fmt: skip
        if verb in bases:
            kind, prefix = bases[verb]
            digits = format(abs(value), kind)
            if self.precision is not None:
                digits = "" if not self.precision and not value else digits.zfill(self.precision)
            prefix = prefix if verb == "O" or ("#" in self.flags and not (verb == "o" and digits[:1] == "0")) else ""
            return self._signed(value < 0, prefix, digits, zeros=self.precision is None)
        char = chr(value) if 0 <= value <= 0x10FFFF and not 0xD800 <= value < 0xE000 else "\ufffd"
        if verb == "c":
            return self._padded(char)
        if verb == "q":
            return self._padded("'" + (quoted(char)[1:-1].replace('\\"', '"') if char != "'" else "\\'") + "'")
        if verb == "U":
            return self._padded(f"U+{value:04X}")
        return None

    def _float(self, verb: str, value: float) -> str | None:
        if verb not in "eEfFgG":
            return None
        if verb in "gG" and self.precision is None:
            digits = _shortest(abs(value)).upper() if verb == "G" else _shortest(abs(value))
        else:
            digits = format(abs(value), f".{6 if self.precision is None else self.precision}{verb}")
        return self._signed(value < 0, "", digits, zeros=True)

    def _signed(self, negative: bool, prefix: str, digits: str, *, zeros: bool) -> str:
        sign = "-" if negative else "+" if "+" in self.flags else " " if " " in self.flags else ""
        if "0" in self.flags and "-" not in self.flags and zeros:
            digits = digits.zfill(self.width - len(sign))
        return self._padded(sign + prefix + digits, spaces=True)

    def _padded(self, text: str, *, spaces: bool = False) -> str:
        if "-" in self.flags:
            return text.ljust(self.width)
        return text.rjust(self.width, "0" if "0" in self.flags and not spaces else " ")


def quoted(text: str) -> str:
    """strconv.Quote."""
    parts = []
    for char in text:
        if char in '"\\':
            parts.append(f"\\{char}")
        elif char in _QUOTED:
            parts.append(_QUOTED[char])
        elif 0xDC80 <= ord(char) <= 0xDCFF:
            parts.append(f"\\x{ord(char) - 0xDC00:02x}")
        elif char.isprintable():
            parts.append(char)
        else:
            code = ord(char)
            parts.append(f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
    return f'"{"".join(parts)}"'
