"""A minifier for the JavaScript module: no comments and spaces, short names for variables; properties keep theirs.

It knows as much of the language as the module uses. A test runs what it makes.
"""

import itertools
import re
from collections.abc import Iterator
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
Array ArrayBuffer BigInt Boolean DataView Error Float32Array Float64Array Int32Array JSON Map Math Number Object
RangeError Set String TextDecoder TypeError Uint16Array Uint32Array Uint8Array fetch
FormatError load parse
"""
_KNOWN = frozenset(_WORDS.split())


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


def _statements(tokens: list[Token]) -> Iterator[list[Token]]:
    """Top-level statements."""
    depth, own = 0, []
    for token, following in itertools.zip_longest(tokens, tokens[1:]):
        own.append(token)
        if token.role == "sign":
            depth += (token.text in "([{") - (token.text in ")]}")
        elif token.role in ("open", "close"):
            depth += 1 if token.role == "open" else -1
        starts = following is None or following.text in ("function", "class", "const", "let", "export")
        if not depth and (token.text == ";" or (token.text == "}" and starts)):
            yield own
            own = []
    if own:
        yield own


_NAMED = ("variable", "shorthand")


def _top_level(statement: list[Token]) -> set[str]:
    """The names that a top-level statement declares."""
    head = 1 if statement[0].text in ("export", "async") else 0
    if statement[head].text in ("function", "class"):
        return {statement[head + 1].text}
    if statement[head].text not in ("const", "let"):
        return set()
    ends = [number for number, token in enumerate(statement) if token.text in ("=", ";")]
    return {token.text for token in statement[: ends[0]] if token.role in _NAMED}


def _short_names(taken: set[str]) -> Iterator[str]:
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    for length in itertools.count(1):
        for name in map("".join, itertools.product(letters, repeat=length)):
            if name not in taken and name not in _KNOWN and name not in ("do", "if", "in", "of"):
                yield name


def minified(text: str) -> str:
    """The module without comments and spaces, its variables with short names; properties keep theirs."""
    statements = [*_statements([*_tokens(text)])]
    uses: dict[str, int] = {}
    for token in itertools.chain.from_iterable(statements):
        if token.role in _NAMED:
            uses[token.text] = uses.get(token.text, 0) + 1
    top = set().union(*map(_top_level, statements)) - _KNOWN
    local_names = [*itertools.islice(_short_names(set()), 40)]
    names = _short_names({*local_names})
    short = {name: next(names) for name in sorted(top, key=lambda name: -uses[name])}
    out: list[str] = []
    for statement in statements:
        counts: dict[str, int] = {}
        for token in statement:
            if token.role in _NAMED and token.text not in top:
                counts[token.text] = counts.get(token.text, 0) + 1
        own = itertools.chain(local_names, _short_names({*local_names, *short.values()}))
        local = {name: next(own) for name in sorted(counts, key=lambda name: -counts[name])}
        _write(statement, {**short, **local}, out)
    return re.sub(r";(?=})|,(?=[}\])])", "", "".join(out)) + "\n"


def _write(statement: list[Token], short: dict[str, str], out: list[str]) -> None:
    for token in statement:
        piece = token.text
        if token.role == "variable":
            piece = short[piece]
        elif token.role == "shorthand":
            piece = f"{piece}:{short[piece]}"
        if piece and out:
            last = out[-1][-1]
            touches = re.match(r"[\w$#]", piece) and re.match(r"[\w$]", last)
            if touches or (last in "+-" and piece[0] == last):
                out.append(" ")
        if piece:
            out.append(piece)
