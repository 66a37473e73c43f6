"""A network as one HTML page that runs it: `page.html` with `page.css`, `page.mjs`, `deepcomp.mjs` and the file."""

import base64
import hashlib
import html
import json
import re
from importlib import resources
from typing import Any

from deepcomp.errors import printable

_IMPORT = re.compile(r'^import (\{.*\}) from "\./deepcomp\.mjs";$', re.MULTILINE)
_EXPORT = re.compile(r"^export ", re.MULTILINE)
_PLACE = re.compile(r"\{\{(\w+)\}\}")


def document(data: bytes, name: str, limits: dict[str, int], value_range: tuple[float, float] | None) -> str:
    """The page of the bytes of a `.dcz` file of some name; `limits` are those that `parse` in JavaScript takes.

    Its policy lets a browser run the one script and use the one style sheet in it, and connect to nothing.
    """
    script, style = _script(), _text("page.css")
    sources = f"script-src {_hash(script)}; style-src {_hash(style)}; img-src data:"
    given = {"file": base64.b64encode(data).decode(), "limits": limits, "range": value_range}
    return _filled(
        _text("page.html"),
        name=html.escape(printable(name)),
        bytes=f"{len(data):,}",
        policy=f"default-src 'none'; {sources}; base-uri 'none'; form-action 'none'",
        style=style,
        data=json.dumps(given).replace("<", "\\u003c"),
        script=script,
    )


def _script() -> str:
    """The script of the page with `deepcomp.mjs` in the place of its import, in a scope of its own."""
    module = _EXPORT.sub("", _text("deepcomp.mjs"))
    page = _text("page.mjs")
    return _IMPORT.sub(lambda found: f"const {found[1]} = (() => {{\n{module}\nreturn {found[1]};\n}})();", page)


def _text(name: str) -> str:
    return resources.files("deepcomp.export").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _filled(template: str, **parts: Any) -> str:
    """A template with each `{{name}}` replaced, at once: what is filled in is not searched."""
    return _PLACE.sub(lambda found: parts[found[1]], template)
