"""A hook of mkdocs: put the package's own code into the pages, found by name, so that no page shows what is gone.

On a line of its own, a definition as it stands in the package, with its line numbers there; with a second name, all
from the first to the second:

    {{ code poster_zoo/models/poster.py CrossAttention.forward }}
    {{ code poster_zoo/models/mobilefacenet.py WEIGHTS mobilefacenet }}

Anywhere in a line, the one line of a definition that holds the words between the quotation marks:

    {{ line poster_zoo/models/poster.py CrossAttention.forward "q = queries" }}

Where a name is gone, or the words stand in no line or in several, the build fails.
"""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from pathlib import Path
from textwrap import dedent
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CODE = re.compile(r"^\{\{ code (\S+) (\S+)(?: (\S+))? \}\}$", re.MULTILINE)
LINE = re.compile(r'\{\{ line (\S+) (\S+) "([^"]+)" \}\}')


class CodeMovedError(LookupError):
    """A page names code that is not where it says."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return the page's text with the code in it; mkdocs calls this for each page."""
    return LINE.sub(_one_line, CODE.sub(_block, markdown))


def _block(match: re.Match[str]) -> str:
    file, name, last = match.groups()
    first = _lines(file, name).start
    code = dedent("".join(_parsed(file)[0][first : _lines(file, last or name).stop]))
    return f'```python title="{file}" linenums="{first + 1}"\n{code}```'


def _one_line(match: re.Match[str]) -> str:
    file, name, words = match.groups()
    found = [line.strip() for line in _parsed(file)[0][_lines(file, name)] if words in line]
    if len(found) != 1:
        raise CodeMovedError(f'{len(found)} lines of {name} in {file} hold "{words}" instead of one.')
    return f"`{found[0]}`"


def _lines(file: str, name: str) -> slice:
    """Return which lines of a file hold a definition, decorators included."""
    node: Any = _parsed(file)[1]
    for part in name.split("."):
        node = next((child for child in getattr(node, "body", ()) if part in _names(child)), None)
    if node is None:
        raise CodeMovedError(f"There is no {name} in {file}.")
    return slice(min(part.lineno for part in (node, *getattr(node, "decorator_list", ()))) - 1, node.end_lineno)


def _names(node: ast.stmt) -> list[str]:
    """Return what a statement defines."""
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign):
        return [node.target.id] if isinstance(node.target, ast.Name) else []
    return [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else []


@lru_cache
def _parsed(file: str) -> tuple[list[str], ast.Module]:
    text = (ROOT / file).read_text(encoding="utf-8")
    return text.splitlines(keepends=True), ast.parse(text)
