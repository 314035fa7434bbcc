"""Fixtures for every test."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Tests that run side by side share the cores; more threads than those only wait for each other.
if (workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))) > 1:
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())  # of the programs that tests start

# Read by huggingface_hub as it is imported: no test asks the real Hub. Those that ask a server of their own on this
# machine do so in processes of their own.
os.environ["HF_HUB_OFFLINE"] = "1"

# A shell makes what it starts in the background ignore Ctrl-C, and so would the programs that the tests send one.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference numbers and data beside the checkout; a test that asks for it is skipped without it."""
    folder = Path(os.environ.get("POSTER_ZOO_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no reference data: there is no folder {folder} (POSTER_ZOO_SHARED names another place)")
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A poster_tiny with random weights, by the name that --model takes: the commands do not mind."""
    import poster_zoo  # late: it imports huggingface_hub, which reads what is set above

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    poster_zoo.save_pretrained(poster_zoo.create_model("poster_tiny"), folder)
    return f"local-dir:{folder}"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with class folders `faces` and a small model `model`, for tests of training."""
    from training_faces import save_small_model, write_class_folders

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)
    write_class_folders(tmp_path / "faces", 30)
    save_small_model(tmp_path / "model")
    return tmp_path


@pytest.fixture(autouse=True)
def no_weights_of_the_user(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep weights that are installed on this machine, or were by another test, out of each test."""
    monkeypatch.setenv("POSTER_ZOO_HOME", str(tmp_path_factory.mktemp("poster_zoo_home")))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute on one thread, as processes that share the work do: sums on two are rounded otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
