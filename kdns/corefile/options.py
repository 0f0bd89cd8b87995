"""Reading a directive's arguments and block, so that every mistake in them is noted and none is raised."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TypeVar

from kdns.corefile.config import Directive
from kdns.corefile.lexer import Token
from kdns.corefile.values import choices, shown, zones
from kdns.errors import ConfigValueError, Mistake

T = TypeVar("T")


class Reader:
    """Takes one directive apart. The methods note mistakes and go on; `sound` tells whether there were any."""

    def __init__(self, directive: Directive, mistakes: list[Mistake]) -> None:
        self.directive = directive
        self.mistakes = mistakes
        self._before = len(mistakes)

    @property
    def sound(self) -> bool:
        """True as long as this reader has noted no mistake."""
        return len(self.mistakes) == self._before

    def refuse(self, token: Token, message: str, accepted: str = "") -> None:
        """Note a mistake at a word."""
        self.mistakes.append(Mistake(token.file, token.line, message, accepted))

    def value(self, token: Token, convert: Callable[[str], T]) -> T | None:
        """A word's value, or None if `convert` refuses it with ConfigValueError."""
        try:
            return convert(token.text)
        except ConfigValueError as error:
            self.refuse(token, f"{self.directive.name.text}: {error.message}", error.accepted)
            return None

    def arguments(self, item: Directive, low: int, high: int | None, accepted: str) -> tuple[Token, ...]:
        """The arguments of the directive or of an option in its block, low to high in number (None: no limit).

        Other numbers are noted, and give no arguments. accepted: the usage line for messages.
        """
        if len(item.args) < low or (high is not None and len(item.args) > high):
            count = f"{len(item.args)} arguments" if len(item.args) != 1 else "1 argument"
            self.refuse(item.name, f"{self._name(item)} has {count}", accepted)
            return ()
        return item.args

    def one(self, item: Directive, convert: Callable[[str], T], accepted: str) -> T | None:
        """The value of the one argument that an option has, or None after a mistake."""
        args = self.arguments(item, 1, 1, accepted)
        return self.value(args[0], convert) if args else None

    def options(
        self,
        known: Mapping[str, Callable[[Directive], object]],
        unsupported: Collection[str] = (),
        repeatable: Collection[str] = (),
    ) -> None:
        """Hand each line of the directive's block to its reader in `known`.

        unsupported: options of CoreDNS that kdns does not have. repeatable: those that may be given several times.
        """
        seen: set[str] = set()
        for item in self.directive.block or ():
            word = item.name.text
            if word in unsupported:
                message = f"{self._name(item)} is not supported by this version of kdns"
                self.refuse(item.name, message, ", ".join(sorted(known)) or "no option")
            elif word not in known:
                message = f"{self.directive.name.text} has no option {shown(word)}"
                self.refuse(item.name, message, choices(word, known) or "no block")
            elif word in seen and word not in repeatable:
                self.refuse(item.name, f"{self._name(item)} is given twice", "one of them")
            else:
                if item.block is not None:
                    self.refuse(item.name, f"{self._name(item)} has a block", f"{word} without braces")
                known[word](item)
            seen.add(word)

    def bare(self) -> None:
        """Note a mistake if the directive has arguments, or a block with anything in it."""
        self.arguments(self.directive, 0, 0, self.directive.name.text)
        self.no_block()

    def zones(self, tokens: Iterable[Token]) -> tuple[str, ...]:
        """The zones that words stand for, each once: lower case, with their last dot."""
        return tuple(dict.fromkeys(zone for token in tokens for zone in self.value(token, zones) or ()))

    def no_block(self) -> None:
        """Note a mistake if the directive has a block with anything in it."""
        self.options({})

    def _name(self, item: Directive) -> str:
        name = self.directive.name.text
        return name if item is self.directive else f"{name}: {shown(item.name.text)}"
