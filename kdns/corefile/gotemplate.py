"""Templates in the language of Go's text/template, as `template` has them: parsed once, run for each query.

There are texts, `{{ }}` with pipelines in it, variables, if, with and range, with their else, end, break and continue,
define, template and block, comments and trim markers. Functions: and, or, not, eq, ne, lt, le, gt, ge, index, slice,
len, print, println, printf, html, js, urlquery and parseInt. `call` is refused by name: no data has functions.

Values are str, bool, int (Unsigned where Go has an unsigned type), float, lists, dicts with str as keys (Go's maps),
Struct, and None, which is also what a map has for a key that it has not. A template may use the fields that its Shape
says; a chain of fields that begins at the data itself is checked when the template is parsed. What a defined template
is given is known when it runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias
from urllib.parse import quote_plus

from kdns.corefile.goformat import Unsigned, number, print_all, print_line, printed, quoted, sprintf, unquoted
from kdns.corefile.values import choices, shown
from kdns.errors import ConfigValueError, TemplateError

LONGEST = 1 << 16
"""Characters that a template may make."""
STEPS = 100_000
"""Nodes that it may go through: a range may be over a number, in another one."""
DEEPEST = 100
"""How many parentheses, actions with an end, and templates that are used may be within each other."""

MAP: Final = "map"
METHOD: Final = "method"
LEAF: Final = "leaf"
Shape: TypeAlias = "Mapping[str, Shape | str]"
"""What fields data has: those of a struct, MAP for any, METHOD for a function, LEAF for a value without fields."""

_LEFT = re.compile(r"\{\{(-[ \t\r\n])?")
_COMMENT = re.compile(r"/\*(?:(?!\*/).)*\*/(?P<trim>[ \t\r\n]-)?\}\}", re.DOTALL)
_RIGHT = re.compile(r"(?P<trim>[ \t\r\n]+-(?=\}\}))?\}\}")
_END = r"(?=[\s.,|:()=]|\}\}|$)"
_TOKEN = re.compile(
    rf"""
    (?P<space>[ \t\r\n]+)
    | (?P<string>"(?:[^"\\\n]|\\.)*+")
    | (?P<raw>`[^`]*+`)
    | (?P<char>'(?:[^'\\\n]|\\.)++')
    | (?P<field>\.[^\W\d]\w*{_END})
    | (?P<variable>\$\w*{_END})
    | (?P<number>[-+]?(?:\d|\.\d)[\w.]*(?:(?<=[eE])[-+]\d+)?)
    | (?P<dot>\.{_END})
    | (?P<word>[^\W\d]\w*{_END})
    | (?P<mark>:=|=|,|\||\(|\))
    """,
    re.VERBOSE,
)
_BLANK = " \t\r\n"
_REFUSED = frozenset(("define", "block", "template", "call"))
"""What is no function here."""


class Struct:
    """A value with fields; one that is callable is a method. name: of Go's type, for messages."""

    __slots__ = ("fields", "name")

    def __init__(self, name: str, fields: Mapping[str, Any]) -> None:
        self.name = name
        self.fields = fields


# Nodes. str() of one is what Go's String() gives.


@dataclass(frozen=True, slots=True)
class Text:
    """What is written as it is."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Constant:
    """A literal. source: as written."""

    value: Any
    source: str

    def __str__(self) -> str:
        return self.source


@dataclass(frozen=True, slots=True)
class Dot:
    """`.`"""

    def __str__(self) -> str:
        return "."


@dataclass(frozen=True, slots=True)
class Field:
    """Fields of the dot."""

    names: tuple[str, ...]

    def __str__(self) -> str:
        return "".join(f".{name}" for name in self.names)


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable, and fields of it."""

    name: str
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name + "".join(f".{name}" for name in self.names)


@dataclass(frozen=True, slots=True)
class Function:
    """A function's name."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Chain:
    """Fields of what a pipeline in parentheses gives."""

    pipe: Pipe
    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"({self.pipe})" + "".join(f".{name}" for name in self.names)


@dataclass(frozen=True, slots=True)
class Command:
    """An operand, or a function or method with its arguments."""

    operands: tuple[Operand, ...]

    def __str__(self) -> str:
        return " ".join(f"({each})" if isinstance(each, Pipe) else str(each) for each in self.operands)


@dataclass(frozen=True, slots=True)
class Pipe:
    """Commands, each with the value of the one before as its last argument. variables: what gets the last value."""

    commands: tuple[Command, ...]
    variables: tuple[str, ...] = ()
    assigns: bool = False

    def __str__(self) -> str:
        sign = " = " if self.assigns else " := "
        into = ", ".join(self.variables) + sign if self.variables else ""
        return into + " | ".join(map(str, self.commands))


@dataclass(frozen=True, slots=True)
class Action:
    """A pipeline whose value is written unless it goes into a variable."""

    pipe: Pipe

    def __str__(self) -> str:
        return f"{{{{{self.pipe}}}}}"


@dataclass(frozen=True, slots=True)
class Branch:
    """`if`, `with` or `range`. otherwise: None without an else."""

    word: str
    pipe: Pipe
    nodes: tuple[Node, ...]
    otherwise: tuple[Node, ...] | None = None

    def __str__(self) -> str:
        nodes = "".join(map(str, self.nodes))
        if self.otherwise is not None:
            nodes += "{{else}}" + "".join(map(str, self.otherwise))
        return f"{{{{{self.word} {self.pipe}}}}}{nodes}{{{{end}}}}"


@dataclass(frozen=True, slots=True)
class Jump:
    """`break` or `continue`."""

    word: str

    def __str__(self) -> str:
        return f"{{{{{self.word}}}}}"


@dataclass(frozen=True, slots=True)
class Use:
    """`template`, and `block`, which defines it too. pipe: what its data is; None for nil."""

    name: str
    pipe: Pipe | None

    def __str__(self) -> str:
        return f"{{{{template {quoted(self.name)}{f' {self.pipe}' if self.pipe is not None else ''}}}}}"


Operand: TypeAlias = "Constant | Dot | Field | Variable | Function | Chain | Pipe"
Node: TypeAlias = "Text | Action | Branch | Jump | Use"


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template. uses: the fields of the data itself that it may look at, by whatever way. defined: others that
    are defined in it, by name."""

    nodes: tuple[Node, ...]
    uses: frozenset[str]
    defined: Mapping[str, tuple[Node, ...]]

    def __str__(self) -> str:
        return "".join(map(str, self.nodes))

    def run(self, data: Struct) -> str:
        """The text that it makes of data. Raises TemplateError, and nothing else whatever the data holds."""
        run = _Run(data, self.defined)
        run.walk(self.nodes, data)
        return "".join(run.written)


# Parsing


@dataclass(frozen=True, slots=True)
class _Token:
    """kind: the group of _TOKEN, or "right" for the end of an action."""

    kind: str
    text: str


def parse(text: str, shape: Shape) -> Template:
    """Read a template for data of a shape. Raises ConfigValueError."""
    parser = _Parser(text, shape)
    nodes, word = parser.nodes(())
    if word:
        raise parser.error(f"{word} without if, with or range")
    for name in parser.used:
        if name not in parser.defined:
            raise parser.error(f"the template {shown(name)} is not defined", choices(name, parser.defined))
    return Template(nodes, frozenset(parser.uses), parser.defined)


def _lex(text: str) -> Iterator[str | list[_Token]]:
    """Texts, and the tokens of actions, by turns. Raises ConfigValueError."""
    at = 0
    trims = False
    while (left := _LEFT.search(text, at)) is not None:
        before = text[at : left.start()]
        before = before.lstrip(_BLANK) if trims else before
        yield before.rstrip(_BLANK) if left[1] else before
        at = left.end()
        comment = _COMMENT.match(text, at)
        if comment is not None:
            trims, at = comment["trim"] is not None, comment.end()
            continue
        tokens, trims, at = _action(text, at)
        yield tokens
    yield text[at:].lstrip(_BLANK) if trims else text[at:]


def _action(text: str, at: int) -> tuple[list[_Token], bool, int]:
    """The tokens up to the end of an action, whether it trims the text behind it, and the offset there."""
    tokens: list[_Token] = []
    while True:
        right = _RIGHT.match(text, at)
        if right is not None:
            return [*tokens, _Token("right", "}}")], right["trim"] is not None, right.end()
        found = _TOKEN.match(text, at)
        if found is None:
            problem = f"{shown(text[at : at + 10])} makes no sense in it" if at < len(text) else "an action has no end"
            raise _error(text, problem)
        tokens.append(_Token(found.lastgroup or "", found[0]))
        at = found.end()


def _error(text: str, problem: str, accepted: str = "a template of Go's text/template") -> ConfigValueError:
    return ConfigValueError(f"template {shown(text)}: {problem}", accepted)


class _Parser:
    """Takes the tokens of one action at a time.

    root: whether the dot is the data itself. top: whether `$` is. level: of actions that still have no end.
    """

    def __init__(self, text: str, shape: Shape) -> None:
        self.text = text
        self.shape = shape
        self.uses: set[str] = set()
        self.parts = _lex(text)
        self.tokens: list[_Token] = []
        self.at = 0
        self.variables = ["$"]
        self.root = True
        self.top = True
        self.loops = 0
        self.depth = 0
        self.level = 0
        self.defined: dict[str, tuple[Node, ...]] = {}
        self.used: set[str] = set()

    def error(self, problem: str, accepted: str = "a template of Go's text/template") -> ConfigValueError:
        return _error(self.text, problem, accepted)

    def nodes(self, ends: Sequence[str]) -> tuple[tuple[Node, ...], str]:
        """Nodes up to one of these words, which is returned, and whose rest is not read yet; "" at the end."""
        found: list[Node] = []
        self.level += 1
        for part in self.parts:
            if isinstance(part, str):
                if part:
                    found.append(Text(part))
                continue
            self.tokens, self.at = part, 0
            word = self.peek().text if self.peek().kind == "word" else ""
            if word in ("else", "end"):
                self.next()
                if word not in ends:
                    raise self.error(f"{word} does not belong where it is")
                self.level -= 1
                return tuple(found), word
            if word == "define" and self.level == 1:
                self.next()
                name = self.named(word)
                self.close(word)
                self.define(name)
                continue
            found.append(self.node(word))
        if ends:
            raise self.error("an end is missing", "{{ end }} for each if, with, range, define and block")
        return tuple(found), ""

    def node(self, word: str) -> Node:
        if word == "define":
            raise self.error("define within another action", "{{ define }} outside of all others")
        if word in ("template", "block"):
            self.next()
            return self.use(word)
        if word in ("if", "with", "range"):
            self.next()
            return self.branch(word)
        if word in ("break", "continue"):
            self.next()
            self.close(word)
            if not self.loops:
                raise self.error(f"{word} outside of range")
            return Jump(word)
        before = len(self.variables)
        pipe = self.pipe("an action", "right")
        if not pipe.variables:
            del self.variables[before:]
            self.check_written(pipe)
        return Action(pipe)

    def branch(self, word: str) -> Branch:
        """`if`, `with` or `range`, behind the word."""
        scope, root = len(self.variables), self.root
        self.enter()
        pipe = self.pipe(word, "right")
        if word != "if":
            self.root = False
        self.loops += word == "range"
        nodes, ended = self.nodes(("else", "end"))
        self.loops -= word == "range"
        self.root = root
        otherwise: tuple[Node, ...] | None = None
        if ended == "else":
            again = self.peek()
            if again.kind == "word" and again.text in ("if", "with") and again.text == word:
                self.next()
                otherwise = (self.branch(word),)
            else:
                self.close("else")
                otherwise, _ = self.nodes(("end",))
                self.close("end")
        else:
            self.close("end")
        self.depth -= 1
        del self.variables[scope:]
        return Branch(word, pipe, nodes, otherwise)

    def named(self, word: str) -> str:
        """The name of a template, behind a word."""
        token = self.next()
        name = unquoted(token.text) if token.kind in ("string", "raw") else None
        if name is None:
            raise self.error(f"{shown(token.text)} is no name for {word}", f'{{{{ {word} "NAME" }}}}')
        return name

    def define(self, name: str) -> None:
        """A template up to its end, whose dot and `$` are what it will be given, and which has no other variables."""
        before = self.variables, self.root, self.top, self.loops
        self.variables, self.root, self.top, self.loops = ["$"], False, False, 0
        self.enter()
        nodes, _ = self.nodes(("end",))
        self.close("end")
        self.depth -= 1
        self.variables, self.root, self.top, self.loops = before
        full, had = _says_something(nodes), self.defined.get(name)
        if had is None or (full and not _says_something(had)):
            self.defined[name] = nodes
        elif full:
            raise self.error(f"the template {shown(name)} is defined twice", "one of them")

    def use(self, word: str) -> Use:
        """`template` or `block`, behind the word."""
        name = self.named(word)
        pipe = None
        if word == "block" or self.peek().kind != "right":
            pipe = self.pipe(word, "right")
        if word == "block":
            self.define(name)
        self.used.add(name)
        return Use(name, pipe)

    def enter(self) -> None:
        """One step deeper."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise self.error("too much is within each other", f"at most {DEEPEST} if, with, range and parentheses")

    def pipe(self, context: str, end: str) -> Pipe:
        """A pipeline and the token behind it."""
        variables, assigns = self.declared(context)
        commands: list[Command] = []
        while self.peek().kind != end and not (end == ")" and self.peek().text == ")"):
            if commands and not self.take("|"):
                raise self.unexpected(context)
            command = self.command()
            if commands and isinstance(command.operands[0], Constant | Dot):
                raise self.error(f"{command.operands[0]} takes nothing from the pipeline")
            commands.append(command)
        if not commands:
            raise self.error(f"there is no value for {context}")
        self.next()
        self.variables += [name for name in variables if not assigns]
        return Pipe(tuple(commands), variables, assigns)

    def declared(self, context: str) -> tuple[tuple[str, ...], bool]:
        """The variables in front of := or =, and whether it is =."""
        texts = [token.text for token in self.tokens[self.at :] if token.kind != "space"]
        found: list[str] = []
        while texts[len(found) * 2 : len(found) * 2 + 1] and texts[len(found) * 2].startswith("$"):
            found.append(texts[len(found) * 2])
            if texts[len(found) * 2 - 1] != ",":
                break
        sign = texts[len(found) * 2 - 1] if found else ""
        if sign not in (":=", "="):
            return (), False
        if len(found) > (2 if context == "range" else 1):
            raise self.error(f"too many variables for {context}")
        for name in found:
            if sign == "=":
                self.known(name)
        for _ in range(len(found) * 2):
            self.next()
        return tuple(found), sign == "="

    def command(self) -> Command:
        """Operands with spaces between them."""
        found = [self.operand()]
        while self.tokens[self.at].kind == "space":
            token = self.peek()
            if token.kind == "right" or token.text in ("|", ")"):
                break
            found.append(self.operand())
        if found[0] == Constant(None, "nil"):
            raise self.error("nil is no command")
        return Command(tuple(found))

    def operand(self) -> Operand:
        """A term, and the fields that follow it without a space."""
        token = self.next()
        names = [token.text[1:]] if token.kind == "field" else []
        term = self.term(token) if not names else None
        while self.tokens[self.at].kind == "field":
            names.append(self.tokens[self.at].text[1:])
            self.at += 1
        if term is None:
            self.check(names, rooted=self.root)
            return Field(tuple(names))
        if isinstance(term, Variable):
            self.check(names, rooted=self.top and term.name == "$")
            return Variable(term.name, tuple(names))
        if not names:
            return term
        if isinstance(term, Pipe):
            self.check(names, rooted=False)
            return Chain(term, tuple(names))
        raise self.error(f".{names[0]} follows {term}, which has no fields")

    def term(self, token: _Token) -> Operand:
        kind, text = token.kind, token.text
        if kind == "dot":
            return Dot()
        if kind == "variable":
            self.known(text)
            return Variable(text)
        if kind == "word":
            return self.word(text)
        if kind in ("string", "raw", "char", "number"):
            value = unquoted(text) if kind in ("string", "raw") else number(text)
            if value is None:
                raise self.error(f"{shown(text)} is no {kind}")
            return Constant(value, text)
        if text == "(":
            self.enter()
            pipe = self.pipe("parentheses", ")")
            self.depth -= 1
            return pipe
        raise self.error(f"{shown(text)} stands where a value belongs")

    def word(self, text: str) -> Operand:
        if text in ("true", "false"):
            return Constant(text == "true", text)
        if text == "nil":
            return Constant(None, text)
        if text not in _FUNCTIONS:
            problem = f"{text} is not supported" if text in _REFUSED else f"there is no function {shown(text)}"
            raise self.error(problem, choices(text, _FUNCTIONS))
        return Function(text)

    def known(self, name: str) -> None:
        if name not in self.variables:
            raise self.error(f"the variable {name} is not declared")

    def check(self, names: Sequence[str], *, rooted: bool) -> None:
        """Note what may be used of the data itself, and refuse what it does not have."""
        if names:
            self.uses.add(names[0])  # what has it may be the data, under another name
        if rooted and names:
            self.shape_of(names)

    def shape_of(self, names: Sequence[str]) -> Shape | str:
        """What a chain of fields leads to."""
        shape: Shape | str = self.shape
        for index, name in enumerate(names):
            if isinstance(shape, str):
                if shape == MAP:
                    return LEAF
                raise self.error(f".{'.'.join(names[: index + 1])}: .{'.'.join(names[:index])} has no fields")
            if name not in shape:
                problem = f".{'.'.join(names[: index + 1])} is not supported"
                raise self.error(problem, choices(name, shape))
            shape = shape[name]
        return shape

    def check_written(self, pipe: Pipe) -> None:
        """Refuse to write what has fields: data is more than a record can be made of."""
        operands = pipe.commands[-1].operands
        last = operands[0]
        is_root = (isinstance(last, Dot) and self.root) or (self.top and last == Variable("$"))
        names = last.names if isinstance(last, Field) and self.root else ()
        if isinstance(last, Variable) and last.name == "$" and self.top:
            names = last.names
        if is_root or (names and not isinstance(self.shape_of(names), str)):
            raise self.error(f"{last} is not supported by itself", self.accepted(names))

    def accepted(self, names: Sequence[str] = ()) -> str:
        shape = self.shape_of(names)
        prefix = "".join(f".{name}" for name in names)
        fields = ", ".join(f"{prefix}.{name}" for name in sorted(shape)) if not isinstance(shape, str) else ""
        return f"{fields}; {', '.join(sorted(_FUNCTIONS))}" if not names else fields

    # Tokens

    def peek(self) -> _Token:
        """The next token but for spaces, which are passed."""
        while self.tokens[self.at].kind == "space":
            self.at += 1
        return self.tokens[self.at]

    def next(self) -> _Token:
        token = self.peek()
        if token.kind != "right":
            self.at += 1
        return token

    def take(self, text: str) -> bool:
        found = self.peek().text == text
        self.at += found
        return found

    def close(self, word: str) -> None:
        if self.peek().kind != "right":
            raise self.unexpected(word)

    def unexpected(self, context: str) -> ConfigValueError:
        return self.error(f"{shown(self.peek().text)} makes no sense in {context}")


# Running


class _Break(Exception):  # noqa: N818 - they are no errors
    pass


class _Continue(Exception):  # noqa: N818
    pass


@dataclass(slots=True)
class _Run:
    """One run. size: characters that are written. variables: the last of a name counts. depth: of what it is in."""

    data: Struct
    defined: Mapping[str, tuple[Node, ...]]
    written: list[str] = field(default_factory=list)
    size: int = 0
    steps: int = 0
    depth: int = 0
    variables: list[tuple[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.variables.append(("$", self.data))

    def walk(self, nodes: Sequence[Node], dot: Any) -> None:
        self.enter()
        for node in nodes:
            self.step()
            if isinstance(node, Text):
                self.write(node.text)
            elif isinstance(node, Action):
                value = self.pipe(node.pipe, dot)
                if not node.pipe.variables:
                    self.write("<no value>" if value is None else printed(value))
            elif isinstance(node, Branch):
                self.branch(node, dot)
            elif isinstance(node, Use):
                self.use(node, dot)
            else:
                raise _Break if node.word == "break" else _Continue
        self.depth -= 1

    def enter(self) -> None:
        self.depth += 1
        if self.depth > DEEPEST + 1:  # the template itself is one
            raise TemplateError(f"more than {DEEPEST} templates, actions and parentheses are within each other")

    def use(self, node: Use, dot: Any) -> None:
        """Run a template that is defined, which has no variables but `$`."""
        given = self.pipe(node.pipe, dot) if node.pipe is not None else None
        variables, self.variables = self.variables, [("$", given)]
        self.walk(self.defined[node.name], given)
        self.variables = variables

    def step(self) -> None:
        self.steps += 1
        if self.steps > STEPS:
            raise TemplateError(f"it takes more than {STEPS} steps")

    def write(self, text: str) -> None:
        self.size += len(text)
        if self.size > LONGEST:
            raise TemplateError(f"it makes more than {LONGEST} characters")
        self.written.append(text)

    def branch(self, node: Branch, dot: Any) -> None:
        scope = len(self.variables)
        if node.word == "range":
            self.range(node, dot)
        else:
            value = self.pipe(node.pipe, dot)
            if _is_true(value):
                self.walk(node.nodes, value if node.word == "with" else dot)
            else:
                self.walk(node.otherwise or (), dot)
        del self.variables[scope:]

    def range(self, node: Branch, dot: Any) -> None:
        pipe = node.pipe
        value = self.pipe(Pipe(pipe.commands), dot)
        pairs = _items(value, len(pipe.variables))
        empty = True
        scope, depth = len(self.variables), self.depth
        for index, item in pairs:
            empty = False
            self.step()
            given = (item,) if len(pipe.variables) == 1 else (index, item)
            for name, each in zip(pipe.variables, given, strict=False):
                self.put(name, each, assigns=pipe.assigns)
            try:
                self.walk(node.nodes, item)
            except _Continue:
                continue
            except _Break:
                break
            finally:
                del self.variables[scope:]
                self.depth = depth
        if empty:
            self.walk(node.otherwise or (), dot)

    def put(self, name: str, value: Any, *, assigns: bool) -> None:
        if not assigns:
            self.variables.append((name, value))
            return
        for index in reversed(range(len(self.variables))):
            if self.variables[index][0] == name:
                self.variables[index] = name, value
                return

    def pipe(self, pipe: Pipe, dot: Any) -> Any:
        final: tuple[Any, ...] = ()
        for command in pipe.commands:
            self.step()
            final = (self.command(command, dot, final),)
        for name in pipe.variables:
            self.put(name, final[0], assigns=pipe.assigns)
        return final[0]

    def command(self, command: Command, dot: Any, final: tuple[Any, ...]) -> Any:
        first, *rest = command.operands
        if isinstance(first, Function):
            return self.call(first.name, rest, dot, final)
        arguments = [*(self.operand(each, dot) for each in rest), *final]
        if isinstance(first, Field | Variable | Chain):
            return self.operand(first, dot, arguments)
        if arguments:
            raise TemplateError(f"{first} takes no arguments")
        return self.operand(first, dot)

    def call(self, name: str, operands: Sequence[Operand], dot: Any, final: tuple[Any, ...]) -> Any:
        if name in ("and", "or"):  # what decides ends it
            count = len(operands) + len(final)
            value: Any = None
            for index in range(count):
                value = self.operand(operands[index], dot) if index < len(operands) else final[0]
                if _is_true(value) == (name == "or"):
                    return value
            if not count:
                raise TemplateError(f"{name} has no arguments")
            return value
        arguments = [*(self.operand(each, dot) for each in operands), *final]
        try:
            value = _FUNCTIONS[name](*arguments)
        except TypeError:
            raise TemplateError(f"{name} with {len(arguments)} arguments") from None
        if isinstance(value, str) and len(value) > LONGEST:
            raise TemplateError(f"{name} makes more than {LONGEST} characters")
        return value

    def within(self, pipe: Pipe, dot: Any) -> Any:
        """What is in parentheses."""
        self.enter()
        value = self.pipe(pipe, dot)
        self.depth -= 1
        return value

    def operand(self, operand: Operand, dot: Any, arguments: Sequence[Any] = ()) -> Any:
        """Its value; of a method, what it gives for arguments."""
        if isinstance(operand, Constant):
            return operand.value
        if isinstance(operand, Dot):
            return dot
        if isinstance(operand, Function):
            return self.call(operand.name, (), dot, ())
        if isinstance(operand, Pipe):
            return self.within(operand, dot)
        if isinstance(operand, Field):
            return _fields(dot, operand.names, arguments)
        if isinstance(operand, Chain):
            return _fields(self.within(operand.pipe, dot), operand.names, arguments)
        value = next(value for name, value in reversed(self.variables) if name == operand.name)
        return _fields(value, operand.names, arguments)


def _fields(value: Any, names: Sequence[str], arguments: Sequence[Any]) -> Any:
    for index, name in enumerate(names):
        last = index == len(names) - 1
        if isinstance(value, Struct):
            if name not in value.fields:
                raise TemplateError(f"{value.name} has no field {name}")
            value = value.fields[name]
            if callable(value):
                value = _method(value, name, arguments if last else ())
                if last:
                    return value
        elif isinstance(value, dict):
            value = value.get(name)
        elif value is not None:
            raise TemplateError(f"there is no field {name} in {_kind(value)}")
    if arguments:
        raise TemplateError(f"{names[-1] if names else 'a variable'} takes no arguments")
    return value


def _method(method: Callable[..., Any], name: str, arguments: Sequence[Any]) -> Any:
    if len(arguments) != 1 or not isinstance(arguments[0], str):
        raise TemplateError(f"{name} takes one string")
    return method(arguments[0])


def _items(value: Any, variables: int) -> Iterator[tuple[Any, Any]]:
    """What a range goes through, with the keys, for so many variables."""
    if value is None:
        return iter(())
    if isinstance(value, list):
        return enumerate(value)
    if isinstance(value, dict):
        return iter(sorted(value.items()))
    if isinstance(value, int) and not isinstance(value, bool) and variables < 2:
        return ((index, index) for index in range(value))
    raise TemplateError(f"range over {_kind(value)}")


def _kind(value: Any) -> str:
    if isinstance(value, Struct):
        return value.name
    if value is None:
        return "nil"
    names = {bool: "a bool", str: "a string", list: "a list", dict: "a map", float: "a float"}
    return names.get(type(value), "a number")


def _is_true(value: Any) -> bool:
    return isinstance(value, Struct) or bool(value)


def _basic(value: Any) -> str:
    """Go's basic kinds; "" for what has none."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int"
    return {str: "string", float: "float"}.get(type(value), "")


def _eq(first: Any, *others: Any) -> bool:
    if not others:
        raise TemplateError("there is nothing to compare with")
    for other in others:
        if first is None or other is None:
            if first is other:
                return True
        elif _basic(first) != _basic(other):
            raise TemplateError(f"{_kind(first)} cannot be compared with {_kind(other)}")
        elif not _basic(first):
            raise TemplateError(f"{_kind(first)} cannot be compared")
        elif first == other:
            return True
    return False


def _lt(first: Any, other: Any) -> bool:
    kind = _basic(first)
    if kind != _basic(other) or kind in ("", "bool"):
        raise TemplateError(f"{_kind(first)} cannot be less than {_kind(other)}")
    return bool(first < other)


def _index(value: Any, *keys: Any) -> Any:
    if value is None:
        raise TemplateError("nil cannot be indexed")
    for key in keys:
        if isinstance(value, dict):
            if not isinstance(key, str):
                raise TemplateError(f"{_kind(key)} is no key of a map")
            value = value.get(key, "")
            continue
        if not isinstance(value, list | str):
            raise TemplateError(f"{_kind(value)} cannot be indexed")
        items: Sequence[Any] = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
        at = _at(key, len(items) - 1)
        value = Unsigned(items[at]) if isinstance(value, str) else items[at]
    return value


def _at(key: Any, most: int) -> int:
    if isinstance(key, bool) or not isinstance(key, int):
        raise TemplateError(f"{_kind(key)} is no index")
    if not 0 <= key <= most:
        raise TemplateError(f"the index {key} is out of range")
    return key


def _slice(value: Any, *keys: Any) -> Any:
    if not isinstance(value, list | str) or len(keys) > (2 if isinstance(value, str) else 3):
        raise TemplateError(f"{_kind(value)} cannot be sliced so")
    items: Any = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    places = [_at(key, len(items)) for key in keys]
    if places != sorted(places):
        raise TemplateError("a slice ends before it begins")
    cut = items[slice(*(places + [0, len(items)][len(places) :])[:2])]
    return cut.decode("utf-8", "surrogateescape") if isinstance(value, str) else cut


def _len(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogateescape"))
    if isinstance(value, list | dict):
        return len(value)
    raise TemplateError(f"len of {_kind(value)}")


def _parse_int(text: Any, base: Any, bits: Any) -> Unsigned:
    """strconv.ParseUint."""
    for each in (base, bits):
        if isinstance(each, bool) or not isinstance(each, int):
            raise TemplateError(f"parseInt with {_kind(each)} where a number belongs")
    if not isinstance(text, str):
        raise TemplateError(f"parseInt of {_kind(text)}")
    if not (base == 0 or 2 <= base <= 36) or not 0 <= bits <= 64:
        raise TemplateError(f"parseInt with base {base} and {bits} bits")
    digits = re.fullmatch(r"[0-9A-Za-z]+", text) if base else re.fullmatch(r"[0-9A-Za-z_]+", text)
    try:
        if digits is None or len(text) > 100:
            raise ValueError
        octal = base == 0 and re.fullmatch(r"0[0-7_]+", text)
        if base and text[:2].lower() == {2: "0b", 8: "0o", 16: "0x"}.get(base):  # which int() would take
            raise ValueError
        found = int(text, 8) if octal else int(text, base)
    except ValueError:
        raise TemplateError(f"parseInt of {shown(text)}, which is no number") from None
    if found >= 1 << (bits or 64):
        raise TemplateError(f"parseInt of {shown(text)}, which has more than {bits or 64} bits")
    return Unsigned(found)


def _says_something(nodes: tuple[Node, ...]) -> bool:
    """Whether there is more than blanks."""
    return any(not isinstance(node, Text) or node.text.strip() for node in nodes)


_HTML = str.maketrans({"\0": "\ufffd", '"': "&#34;", "'": "&#39;", "&": "&amp;", "<": "&lt;", ">": "&gt;"})
_JS = {"\\": "\\\\", "'": "\\'", '"': '\\"'}


def _of_all(values: Sequence[Any]) -> str:
    """The one text that values are."""
    return values[0] if len(values) == 1 and isinstance(values[0], str) else print_all(values)


def _js(*values: Any) -> str:
    """template.JSEscaper."""
    return "".join(
        _JS[char] if char in _JS
        else f"\\u{ord(char):04X}" if char in "<>&=" or not (char.isprintable() or char == "\x7f")
        else char
        for char in _of_all(values)
    )  # fmt: skip


def _urlquery(*values: Any) -> str:
    """url.QueryEscape."""
    return quote_plus(_of_all(values).encode("utf-8", "surrogateescape"), safe="~")


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "and": _is_true,
    "or": _is_true,
    "not": lambda value: not _is_true(value),
    "eq": _eq,
    "ne": lambda first, other: not _eq(first, other),
    "lt": _lt,
    "le": lambda first, other: _lt(first, other) or _eq(first, other),
    "gt": lambda first, other: not (_lt(first, other) or _eq(first, other)),
    "ge": lambda first, other: not _lt(first, other),
    "index": _index,
    "slice": _slice,
    "len": _len,
    "print": lambda *values: print_all(values),
    "println": lambda *values: print_line(values),
    "printf": lambda form, *values: sprintf(form, values),
    "html": lambda *values: _of_all(values).translate(_HTML),
    "js": _js,
    "urlquery": _urlquery,
    "parseInt": _parse_int,
}
"""All functions; `and` and `or` are worked out by `_Run.call`."""
