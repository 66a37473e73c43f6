"""A minifier for the JavaScript module: no comments and spaces, short names for variables; properties keep theirs.

It knows as much of the language as the module uses. A test runs what it makes.
"""

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_TOKEN = re.compile(
    r"""
    (?P<space>(?:\s|//[^\n]*|/\*.*?\*/)+)
  | (?P<string>"(?:\\.|[^"\\])*")
  | (?P<name>\#?[A-Za-z_$][\w$]*)
  | (?P<number>(?:0x[\da-f]+|\d+(?:\.\d+)?(?:e[-+]?\d+)?)n?)
  | (?P<sign>=>|\.\.\.|\?\.|[-+*/%&|^!=<>?]+|[.,;:(){}\[\]~])
    """,
    re.VERBOSE | re.DOTALL,
)
_REGEX = re.compile(r"/(?:\\.|\[(?:\\.|[^\]\\])*\]|[^/\\\n\[])+/[a-z]*")
# What is no variable of the module.
_WORDS = """
async await break class const constructor continue else export extends false for function get if import in instanceof
let new null of return static super this throw true try catch typeof undefined while Infinity NaN
Array ArrayBuffer BigInt Boolean DataView Error Float32Array Float64Array Int16Array Int32Array JSON Map Math Number
Object RangeError Set String TextDecoder TypeError Uint16Array Uint32Array Uint8Array fetch
FormatError load parse
"""
# Properties that no user of the module sees.
_OWN = """
advance age ahead byte chance coded count data decide decoder depth end extent finish form format guess inputForm
isShared k low make masks modern negatives outputForm pass plan position pull setIndices shapes sizes spec start take
text traits type varint view weight
"""
_KNOWN, _PRIVATE = frozenset(_WORDS.split()), frozenset(_OWN.split())


class Token(NamedTuple):
    """A piece of the text; `role` is `variable`, `shorthand` for a property that is one too, or something else."""

    text: str
    role: str


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    """Kinds and texts of tokens, without spaces; templates are taken apart."""
    at, before = 0, ""
    while at < len(text):
        if text[at] == "`":
            end = yield from _template(text, at)
            at, before = end, "`"
            continue
        found = _REGEX.match(text, at) if text[at] == "/" and before in ("(", ",", "=", ":", "?", "=>") else None
        kind = "regex"
        if not found or text[at : at + 2] in ("//", "/*"):
            found = _TOKEN.match(text, at)
            if found is None:
                raise ValueError(f"No token at {text[at : at + 30]!r}")
            kind = str(found.lastgroup)
        at = found.end()
        if kind != "space":
            before = found.group()
            yield kind, before


def _template(text: str, at: int) -> Iterator[tuple[str, str]]:
    """The pieces of a template from `at` on; returns its end."""
    first = at
    at += 1
    while text[at] != "`":
        if text[at] == "\\":
            at += 2
        elif text.startswith("${", at):
            yield "string", text[first : at + 2]
            inner, depth = at + 2, 1
            at = inner
            while depth:
                if text[at] == "`":
                    at = _end_of_template(text, at)
                    continue
                depth += {"{": 1, "}": -1}.get(text[at], 0)
                at += 1
            yield "open", ""
            yield from _pieces(text[inner : at - 1])
            yield "close", ""
            first = at - 1
        else:
            at += 1
    yield "string", text[first : at + 1]
    return at + 1


def _end_of_template(text: str, at: int) -> int:
    pieces = _template(text, at)
    while True:
        try:
            next(pieces)
        except StopIteration as done:
            return done.value


def _tokens(text: str) -> Iterator[Token]:
    """Tokens with their roles."""
    pieces = [*_pieces(text), ("end", "")]
    brackets, after_class = [], False
    before = ""
    for (kind, piece), (_, following) in itertools.pairwise(pieces):
        role = kind
        inside = brackets[-1] if brackets else ""
        if kind == "name" and piece not in _KNOWN:
            is_key = inside == "{" and before in ("{", ",")
            is_member = inside == "class" and (before in ("{", "}", ";", "get") or following in ("=", ";"))
            if before in (".", "?.") or (is_key and following == ":") or piece[0] == "#" or is_member:
                role = "property"
            elif is_key and following in (",", "}", "="):
                role = "shorthand"
            else:
                role = "variable"
        after_class |= piece == "class" and before not in (".", "?.")
        if kind == "open":
            brackets.append("template")
        elif kind == "close" or (kind == "sign" and piece in ")]}"):
            brackets.pop()
        elif kind == "sign" and piece in "([{":
            is_block = piece == "{" and before in (")", "=>", "else", "try", ";", "{", "}")
            brackets.append("class" if piece == "{" and after_class else "block" if is_block else piece)
            after_class &= piece != "{"
        before = piece
        yield Token(piece, role)


_NAMED = ("variable", "shorthand")
_OPEN, _CLOSE = ("(", "[", "{"), (")", "]", "}")
_CHOOSING = ("if", "for", "while")
_LETTERS = "etnraiosclduphmfgbvywkxjqzETNRAIOSCLDUPHMFGBVYWKXJQZ$_"


class _Scope:
    """The tokens in which names are declared: the module, a function with its parameters, a loop, a block."""

    def __init__(self, start: int, end: int) -> None:
        self.start, self.end = start, end
        self.outer: _Scope | None = None
        self.declared: set[str] = set()
        self.uses: dict[str, int] = {}  # how often each name is used
        self.short: dict[str, str] = {}

    def home(self, name: str) -> "_Scope":
        """The scope that declares a name which is used in this one."""
        if name in self.declared:
            return self
        if self.outer is None:
            raise ValueError(f"Nothing declares {name}. If it is the language's, add it to _WORDS.")
        return self.outer.home(name)


class _Module:
    """The tokens of a module, where brackets end, and the scopes."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.ends: dict[int, int] = {}
        stack: list[int] = []
        for number, token in enumerate(tokens):
            if token.role == "open" or (token.role == "sign" and token.text in _OPEN):
                stack.append(number)
            elif self._closes(token):
                self.ends[stack.pop()] = number
        self.starts = {end: start for start, end in self.ends.items()}
        parameters = [*self._parameters()]
        bodies = {end for _, end, _ in parameters}
        scopes = [_Scope(0, len(tokens)), *(_Scope(start, end) for start, _, end in parameters)]
        for number, token in enumerate(tokens):
            if token == ("{", "sign") and number not in bodies:
                scopes.append(_Scope(number, self.ends[number] + 1))
            elif token == ("for", "name"):
                scopes.append(_Scope(number, self._end_of_statement(number)))
        self.scopes = sorted(scopes, key=lambda scope: (scope.start, -scope.end))
        self.inner = [*self._innermost()]
        for start, end, _ in parameters:
            self.inner[start].declared.update(self._names(start, end))
        for number, token in enumerate(tokens):
            if token.role == "name" and token.text in ("const", "let"):
                self._declare(number + 1)
            elif token.role == "name" and token.text in ("function", "class"):
                self.inner[number].declared.add(self._text(number + 1))

    @staticmethod
    def _closes(token: Token) -> bool:
        return token.role == "close" or (token.role == "sign" and token.text in _CLOSE)

    def _text(self, number: int) -> str:
        return self.tokens[number].text if 0 <= number < len(self.tokens) else ""

    def _after(self, number: int) -> int:
        """The token after one, or after a bracket and all that is in it."""
        return self.ends.get(number, number) + 1

    def _end_of_expression(self, at: int) -> int:
        """Where what stands between commas, semicolons, brackets or before a colon ends."""
        choices = 0
        while not self._closes(self.tokens[at]) and self._text(at) not in (",", ";"):
            choices += {"?": 1, ":": -1}.get(self._text(at), 0)
            if choices < 0:
                break
            at = self._after(at)
        return at

    def _end_of_statement(self, at: int) -> int:
        if self._text(at) in _CHOOSING:
            end = self._end_of_statement(self._after(at + 1))
            return self._end_of_statement(end + 1) if self._text(end) == "else" else end
        while self._text(at) not in (";", "{"):
            at = self._after(at)
        return self._after(at)

    def _parameters(self) -> Iterator[tuple[int, int, int]]:
        """Of each function: where its parameters begin, its body begins, and that ends."""
        for number, token in enumerate(self.tokens):
            end = self._after(number)
            if token == ("=>", "sign"):
                first = self.starts.get(number - 1, number - 1)
                is_block = self._text(number + 1) == "{"
                yield first, number + 1, self._after(number + 1) if is_block else self._end_of_expression(number + 1)
            elif token == ("(", "sign") and self._text(end) == "{" and self._text(number - 1) not in _CHOOSING:
                yield number, end, self._after(end)

    def _innermost(self) -> Iterator[_Scope]:
        """The scope of each token."""
        stack: list[_Scope] = []
        waiting = self.scopes[::-1]
        for number in range(len(self.tokens)):
            while stack and stack[-1].end <= number:
                stack.pop()
            while waiting and waiting[-1].start == number:
                scope = waiting.pop()
                scope.outer = stack[-1] if stack else None
                stack.append(scope)
            yield stack[-1]

    def _names(self, at: int, end: int) -> Iterator[str]:
        """The names in a pattern, without those in its defaults."""
        while at < end:
            token = self.tokens[at]
            if token.role in _NAMED and token.text not in _KNOWN:
                yield token.text
            at = self._end_of_expression(at + 1) if token.text == "=" else at + 1

    def _declare(self, at: int) -> None:
        """Note the names of a declaration, which begins here."""
        scope = self.inner[at - 1]
        while True:
            end = self._after(at)
            scope.declared.update(self._names(at, end))
            if self._text(end) == "=":
                end = self._end_of_expression(end + 1)
            if self._text(end) != ",":
                return
            at = end + 1

    def superfluous(self) -> set[int]:
        """Brackets around one statement, around the only parameter of an arrow and around what it returns."""
        found: set[int] = set()
        for first, end in self.ends.items():
            before, after, begin = self._text(first - 1), self._text(end + 1), self._text(first + 1)
            if self._text(first) == "(":
                is_parameter = after == "=>" and end == first + 2
                drops = is_parameter or (before == "=>" and begin != "{" and after in (",", ";", *_CLOSE))
            else:
                head = self._text(self.starts.get(first - 1, 0) - 1)
                at = first + 1
                while at < end and self._text(at) != ";":
                    at = self._after(at)
                is_body = before == "else" or head in _CHOOSING
                drops = is_body and at == end - 1 and begin not in ("const", "let", *_CHOOSING)
            if drops:
                found |= {first, end}
        return found


def _short_names() -> Iterator[str]:
    for length in itertools.count(1):
        for name in map("".join, itertools.product(_LETTERS, repeat=length)):
            if name not in _KNOWN and name not in ("do", "if", "in", "of"):
                yield name


def _shared_out(uses: dict[str, int], taken: set[str] | frozenset[str] = frozenset()) -> dict[str, str]:
    """Short names for names, the shorter for those that are used more often; letters in the order of first use."""
    free = (name for name in _short_names() if name not in taken)
    short = [*itertools.islice(free, len(uses))]
    letters = sum(len(name) == 1 for name in short)
    often = sorted(uses, key=lambda name: -uses[name])
    return dict(zip([*sorted(often[:letters], key=[*uses].index), *often[letters:]], short, strict=True))


def _renamed(tokens: list[Token]) -> list[Token]:
    """Tokens with short names for variables and for the module's own properties, without superfluous brackets."""
    module = _Module(tokens)
    homes: dict[int, _Scope] = {}  # of the variables
    own: dict[str, int] = {}
    for number, (text, role) in enumerate(tokens):
        if role in _NAMED and text not in _KNOWN:
            home = homes[number] = module.inner[number].home(text)
            home.uses[text] = home.uses.get(text, 0) + 1
        if role in ("property", "shorthand") and text in _PRIVATE:
            own[text] = own.get(text, 0) + 1
    for scope in module.scopes:
        inside = ((tokens[number].text, homes[number]) for number in range(scope.start, scope.end) if number in homes)
        scope.short = _shared_out(scope.uses, {home.short[name] for name, home in inside if home.short})
    keys = _shared_out(own)
    superfluous = module.superfluous()
    out: list[Token] = []
    for number, (text, role) in enumerate(tokens):
        key = keys.get(text, text)
        variable = homes[number].short[text] if number in homes else text
        both = key if key == variable else f"{key}:{variable}"
        if number not in superfluous:
            out.append(Token({"variable": variable, "shorthand": both, "property": key}.get(role, text), role))
    return out


_SHORTER = {"const": "let", "true": "!0", "false": "!1", "undefined": "void 0", "Infinity": "1/0"}


def _shortened(tokens: Iterable[Token]) -> Iterator[Token]:
    """Declarations that follow each other are one; one parameter has no brackets."""
    out: list[Token] = []
    declares = [False]  # in each bracket: whether the statement is a declaration
    for text, role in tokens:
        if role not in ("property", "string"):
            text = _SHORTER.get(text, text)
        if text == "let":
            if declares[-1] and out[-1].text == ";":
                out[-1] = Token(",", "sign")
                continue
            declares[-1] = True
        elif out and out[-1].text == ";":
            declares[-1] = False
        if (role == "sign" and text in "([{") or role == "open":
            declares.append(False)
        elif (role == "sign" and text in ")]}") or role == "close":
            declares.pop()
        if role == "number":
            text = re.sub(r"^0(?=\.)", "", text)
        out.append(Token(text, role))
    return iter(out)


def minified(text: str) -> str:
    """The module without comments and spaces, its variables with short names; properties that users see keep theirs."""
    tokens = _renamed([*_tokens(text)])
    out: list[str] = []
    for piece, _ in _shortened(tokens):
        if piece and out:
            last = out[-1][-1]
            touches = re.match(r"[\w$#]", piece) and re.match(r"[\w$]", last)
            if touches or (last in "+-" and piece[0] == last):
                out.append(" ")
        if piece:
            out.append(piece)
    return re.sub(r";(?=})|,(?=[}\])])", "", "".join(out)) + "\n"
