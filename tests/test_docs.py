"""What README and the pages show really runs: their Python and their commands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from poster_zoo.cli import main

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs" / "pages").glob("*.md"))]


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def with_blocks(language: str) -> list[Path]:
    return [path for path in DOCUMENTS if blocks(path, language)]


@pytest.fixture
def like_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the examples name, in which they may write."""
    for name in ("examples", "hubconf.py", "poster_zoo"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", with_blocks("python"), ids=lambda path: path.name)
def test_the_python_of_the_page_runs(page: Path, like_a_checkout: Path) -> None:
    code = "\n".join(blocks(page, "python"))
    run = subprocess.run([sys.executable, "-c", code], cwd=like_a_checkout, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("page", with_blocks("sh"), ids=lambda path: path.name)
def test_the_commands_of_the_page_run(page: Path, like_a_checkout: Path) -> None:
    lines = [shlex.split(line, comments=True) for block in blocks(page, "sh") for line in block.splitlines()]
    for command in [line for line in lines if line[:1] == ["poster-zoo"]]:
        result = CliRunner().invoke(main, command[1:])
        assert result.exit_code == 0, f"{shlex.join(command)}\n{result.output}"


def test_no_page_asks_the_package_index_for_a_release_that_is_not_there(root: Path) -> None:
    pages = [root / "README.md", *(root / "docs" / "pages").glob("*.md")]
    assert not [page.name for page in pages if re.search(r"pip install [\"']?poster-zoo", page.read_text("utf-8"))]
