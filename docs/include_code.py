"""A hook of mkdocs: put the package's own code into the pages, found by name, so that no page shows what is gone.

On a line of its own, a function, method or class as it stands in the package, with its line numbers there:

    {{ code poster_zoo/models/poster.py CrossAttention.forward }}

Anywhere in a line, the one line of it that holds the words between the quotation marks:

    {{ line poster_zoo/models/poster.py CrossAttention.forward "q = queries" }}

Where the name is gone, or the words stand in no line or in several, the build fails.
"""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from pathlib import Path
from textwrap import dedent
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CODE = re.compile(r"^\{\{ code (\S+) (\S+) \}\}$", re.MULTILINE)
LINE = re.compile(r'\{\{ line (\S+) (\S+) "([^"]+)" \}\}')


class CodeMovedError(LookupError):
    """A page names code that is not where it says."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return the page's text with the code in it; mkdocs calls this for each page."""
    return LINE.sub(_one_line, CODE.sub(_whole, markdown))


def _whole(match: re.Match[str]) -> str:
    file, name = match.groups()
    lines, first = cut(file, name)
    return f'```python title="{file}" linenums="{first}"\n{dedent("".join(lines))}```'


def _one_line(match: re.Match[str]) -> str:
    file, name, words = match.groups()
    found = [line.strip() for line in cut(file, name)[0] if words in line]
    if len(found) != 1:
        raise CodeMovedError(f'{len(found)} lines of {name} in {file} hold "{words}" instead of one.')
    return f"`{found[0]}`"


def cut(file: str, name: str) -> tuple[list[str], int]:
    """Return the lines of a definition, and the number of the first."""
    lines, node = _parsed(file)
    for part in name.split("."):
        node = next((child for child in ast.iter_child_nodes(node) if getattr(child, "name", None) == part), ast.Pass())
    if not isinstance(node, ast.FunctionDef | ast.ClassDef):
        raise CodeMovedError(f"There is no {name} in {file}.")
    return lines[node.lineno - 1 : node.end_lineno], node.lineno


@lru_cache
def _parsed(file: str) -> tuple[list[str], ast.AST]:
    text = (ROOT / file).read_text(encoding="utf-8")
    return text.splitlines(keepends=True), ast.parse(text)
