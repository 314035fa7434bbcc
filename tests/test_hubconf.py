"""torch.hub finds every factory, from any folder, without the package installed."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import poster_zoo

# A fresh interpreter that does not know the checkout, even where the package is installed from it in place.
PREAMBLE = """
import sys
sys.path[:] = [p for p in sys.path if p != {root!r}]
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
import importlib.util
assert importlib.util.find_spec("poster_zoo") is None, "the package is to be had without torch.hub"
import torch
"""


def in_a_fresh_interpreter(code: str, root: Path, folder: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    script = PREAMBLE.format(root=str(root)) + code
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_model_is_loaded_from_an_unrelated_folder(root: Path, tmp_path: Path) -> None:
    code = f"""
model = torch.hub.load({str(root)!r}, "poster", source="local", device="meta")
print(type(model).__name__, model.num_classes)
tiny = torch.hub.load({str(root)!r}, "poster_tiny", source="local", pretrained=True).eval()
print(tuple(tiny(torch.zeros(1, 3, 112, 112)).shape))
"""
    assert in_a_fresh_interpreter(code, root, tmp_path).splitlines() == ["Poster 7", "(1, 8)"]


def test_list_and_help_read_an_unpacked_copy(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "hub" / "owner_poster-zoo_main"
    shutil.copytree(root / "poster_zoo", copy / "poster_zoo")
    shutil.copy(root / "hubconf.py", copy)
    code = f"""
torch.hub.set_dir({str(tmp_path / "hub")!r})
print(" ".join(torch.hub.list("owner/poster-zoo:main", skip_validation=True, trust_repo=True)))
print(torch.hub.help("owner/poster-zoo:main", "poster_rafdb", skip_validation=True, trust_repo=True))
"""
    listed, help_text = in_a_fresh_interpreter(code, root, tmp_path).strip().split("\n", 1)
    assert listed.split() == sorted(poster_zoo.list_models())
    assert "seven classes of RAF-DB" in help_text


@pytest.mark.parametrize("name", poster_zoo.list_models())
def test_every_factory_has_a_docstring(name: str) -> None:
    assert getattr(poster_zoo, name).__doc__


def test_dependencies_are_what_importing_needs(root: Path) -> None:
    declared: set[str] = set()
    for node in ast.parse((root / "hubconf.py").read_text()).body:
        if isinstance(node, ast.Assign):
            declared = set(ast.literal_eval(node.value))
    code = "import sys, poster_zoo; print(*{m.split('.')[0] for m in sys.modules})"
    environment = os.environ | {"PYTHONPATH": str(root)}
    loaded = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    direct = {"torch", "torchvision", "timm", "huggingface_hub", "safetensors", "PIL", "numpy", "tqdm", "click"}
    imported = set()
    for file in (root / "poster_zoo").rglob("*.py"):
        if "cli" in file.parts or file.name in ("__main__.py", "plots.py"):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.split(".")[0])
    assert declared == imported & direct
    assert declared <= set(loaded.stdout.split()) | {"huggingface_hub"}


def test_importing_stays_light(root: Path) -> None:
    code = "import sys, poster_zoo; print(*sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(root)}
    loaded = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    modules = set(loaded.stdout.split())
    assert not modules & {"matplotlib", "transformers", "accelerate", "onnx", "onnxruntime", "sklearn", "scipy"}
