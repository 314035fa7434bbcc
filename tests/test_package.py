"""The package as a whole: what it says of itself, what importing it costs, and the commands that README promises."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import poster_zoo
from poster_zoo.models._builder import ENTRIES


@pytest.fixture(scope="module")
def setup_cfg(root: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(root / "setup.cfg")
    return parser


def requirements(lines: str) -> list[Requirement]:
    return [Requirement(line) for line in lines.splitlines() if line and not line.startswith("#")]


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_the_version_has_a_heading_in_the_changelog_and_stands_in_the_citation(root: Path) -> None:
    version = re.escape(poster_zoo.__version__)
    heading = re.search(rf"^## \[{version}\] - (\d{{4}}-\d\d-\d\d)$", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation = yaml.safe_load((root / "CITATION.cff").read_text())
    assert heading, f"CHANGELOG.md has no dated heading for {poster_zoo.__version__}"
    assert citation["version"] == poster_zoo.__version__
    assert str(citation["date-released"]) == heading[1]


def test_the_floor_that_is_tested_is_the_floor_that_setup_cfg_states(
    root: Path, setup_cfg: configparser.ConfigParser
) -> None:
    tested = {
        canonicalize_name(pin.name): {(s.operator, s.version) for s in pin.specifier}
        for pin in requirements((root / "tests" / "floor.txt").read_text())
    }
    stated = requirements(setup_cfg["options"]["install_requires"])
    stated += requirements(setup_cfg["options.extras_require"]["plot"])
    for requirement in stated:
        (lowest,) = (s.version for s in requirement.specifier if s.operator == ">=")
        (pin,) = tested[canonicalize_name(requirement.name)]
        operator, version = pin
        assert operator == "=="
        assert version.removesuffix(".0") == lowest.removesuffix(".0"), f"{requirement} is tested at {version}"


@pytest.mark.parametrize("extra", ["train", "plot", "export", "explain", "faces", "docs", "test", "dev"])
def test_the_extra_is_there(setup_cfg: configparser.ConfigParser, extra: str) -> None:
    assert extra in setup_cfg["options.extras_require"]


def test_importing_the_package_pulls_in_no_heavy_optional_library() -> None:
    loaded = run_python("import sys, poster_zoo; print(*sys.modules)").split()
    heavy = {
        "captum",
        "matplotlib",
        "transformers",
        "accelerate",
        "onnx",
        "onnxruntime",
        "sklearn",
        "pandas",
        "tensorboard",
    }
    assert heavy.isdisjoint(loaded)


def test_importing_the_package_builds_no_model() -> None:
    # timm and torchvision are imported first: what they build is not ours.
    built = run_python(
        "import timm, torch, torchvision\n"
        "count = 0\n"
        "init = torch.nn.Module.__init__\n"
        "def counted(self, *args, **kwargs):\n"
        "    global count\n"
        "    count += 1\n"
        "    init(self, *args, **kwargs)\n"
        "torch.nn.Module.__init__ = counted\n"
        "import poster_zoo\n"
        "print(count)\n"
    )
    assert int(built) == 0


def test_importing_the_package_writes_no_file_and_opens_no_connection() -> None:
    touched = run_python(
        "import os, sys, timm, torchvision\n"
        "sys.dont_write_bytecode = True\n"
        "touched = []\n"
        "writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT\n"
        "def hook(event, args):\n"
        "    writes = event == 'open' and isinstance(args[2], int) and args[2] & writing\n"
        "    if writes or event in ('os.mkdir', 'socket.connect', 'socket.getaddrinfo'):\n"
        "        touched.append((event, args[0]))\n"
        "sys.addaudithook(hook)\n"
        "import poster_zoo\n"
        "print(*touched)\n"
    )
    assert touched.strip() == ""


def test_every_make_command_that_the_documents_show_exists(root: Path) -> None:
    phony = re.search(r"^\.PHONY: (.*)$", (root / "Makefile").read_text(), re.MULTILINE)
    assert phony
    documents = [root / "README.md", root / "CONTRIBUTING.md", *(root / "docs" / "pages").glob("*.md")]
    shown = {
        (path.name, target)
        for path in documents
        for target in re.findall(r"(?:^|`)make ([a-z-]+)", path.read_text(), re.MULTILINE)
    }
    assert ("README.md", "predict") in shown
    assert ("README.md", "test") in shown
    assert not [(name, target) for name, target in shown if target not in phony[1].split()]


def test_every_paper_that_a_weights_entry_names_stands_in_the_citation(root: Path) -> None:
    citation = yaml.safe_load((root / "CITATION.cff").read_text())
    cited = {identifier["value"] for reference in citation["references"] for identifier in reference["identifiers"]}
    named = {paper for entry in ENTRIES.values() for paper in entry.paper_ids}
    assert named
    assert named <= cited


def test_every_model_is_a_public_name_of_the_package_and_of_its_file() -> None:
    files = {name: sys.modules[getattr(poster_zoo, name).__module__] for name in ENTRIES}
    assert not [name for name, file in files.items() if name not in poster_zoo.__all__ or name not in file.__all__]
