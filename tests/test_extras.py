"""Optional packages: what counts as one."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from poster_zoo.data.datasets import open_dataset
from poster_zoo.errors import MissingExtraError
from poster_zoo.extras import installed


def test_a_folder_of_a_packages_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("logs_of_mine", "package_of_mine"):
        (tmp_path / name).mkdir()
    (tmp_path / "package_of_mine" / "__init__.py").touch()
    (tmp_path / "module_of_mine.py").touch()
    importlib.invalidate_caches()
    expected = {"logs_of_mine": False, "package_of_mine": True, "module_of_mine": True, "absent": False, "sys": True}
    assert {name: installed(name) for name in expected} == expected
    importlib.import_module("logs_of_mine")  # which Python does
    assert not installed("logs_of_mine")
    assert "package_of_mine" not in sys.modules


def test_a_folder_called_datasets_is_not_taken_for_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "datasets").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(p for p in sys.path if not (Path(p) / "datasets").exists())])
    monkeypatch.delitem(sys.modules, "datasets", raising=False)
    importlib.invalidate_caches()
    with pytest.raises(MissingExtraError, match=r'pip install "poster-zoo\[hf\]"'):
        open_dataset("hf:somebody/faces", "train")
