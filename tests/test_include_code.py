"""The pages show the package's code as it stands, or the site is not built."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def fill(root: Path) -> Callable[[str], str]:
    hook: Callable[[str], str] = runpy.run_path(str(root / "docs" / "include_code.py"))["on_page_markdown"]
    return hook


def test_a_page_gets_a_definition_with_its_place(fill: Callable[[str], str], root: Path) -> None:
    block = fill("before\n\n{{ code poster_zoo/models/layers.py Gate.forward }}\n\nafter")
    match = re.fullmatch(r'before\n\n```python title="(.+)" linenums="(\d+)"\n(.+)```\n\nafter', block, re.DOTALL)
    assert match
    file, number, code = match.groups()
    lines = (root / "poster_zoo" / "models" / "layers.py").read_text().splitlines()
    assert file == "poster_zoo/models/layers.py"
    assert ["    " + line for line in code.splitlines()] == lines[int(number) - 1 :][: len(code.splitlines())]
    assert code.startswith("def forward(self, x: Tensor)")
    assert "sigmoid" in code


def test_a_page_gets_everything_between_two_names(fill: Callable[[str], str]) -> None:
    block = fill("{{ code poster_zoo/models/mobilefacenet.py WEIGHTS mobilefacenet }}")
    assert block.splitlines()[1].startswith("WEIGHTS = {")
    assert "\n@register_model\ndef mobilefacenet(" in block


def test_a_page_gets_a_name_that_is_annotated(fill: Callable[[str], str]) -> None:
    block = fill("{{ code poster_zoo/train/recipe.py RECIPES }}")
    assert block.splitlines()[1].startswith("RECIPES: dict[str, Recipe] = {")


def test_a_page_gets_the_one_line_that_it_quotes(fill: Callable[[str], str]) -> None:
    line = '{{ line poster_zoo/models/poster_v2.py FusionLevel.forward "self.norm1" }}'
    assert fill(f"so: {line}.") == "so: `x = self.norm1(to_tokens(self.down(image)))`."


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        ("{{ code poster_zoo/models/layers.py Gate.backward }}", "no Gate.backward in poster_zoo/models/layers.py"),
        ('{{ line poster_zoo/models/layers.py Gate.forward "tanh" }}', "0 lines of Gate.forward"),
        ('{{ line poster_zoo/models/layers.py EncoderBlock.forward "drop_path" }}', "2 lines of EncoderBlock.forward"),
    ],
)
def test_code_that_is_not_there_stops_the_build(fill: Callable[[str], str], page: str, complaint: str) -> None:
    with pytest.raises(LookupError, match=complaint):
        fill(page)
