"""Processes of one start find each other, whatever an earlier start has left where they meet."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import TCPStore, rendezvous

import poster_zoo
from poster_zoo.devices import meeting_options

PATIENCE = timedelta(seconds=120)
SECOND = """
from datetime import timedelta
from torch.distributed import rendezvous
from poster_zoo.devices import meeting_options
options = meeting_options(timedelta(seconds=120))
print("asks", flush=True)
store, rank, size = next(rendezvous(options["init_method"], timeout=options["timeout"]))
print(store.get("said").decode(), rank, size)
"""


@pytest.fixture
def agents(monkeypatch: pytest.MonkeyPatch) -> TCPStore:
    """The store of torchrun's agents, and what they tell their first process."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port, "RANK": 0, "WORLD_SIZE": 2}
    for name, value in (told | {"TORCHELASTIC_USE_AGENT_STORE": True}).items():
        monkeypatch.setenv(name, str(value))
    return store


def test_a_process_that_is_started_again_does_not_believe_the_dead(agents: TCPStore) -> None:
    others = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    others.set("poster-zoo", "alive, and another program's")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        for port in (nobody.getsockname()[1], others.port):
            agents.set("poster-zoo", f"{port} of-an-earlier-start")
            second = subprocess.Popen(
                [sys.executable, "-c", SECOND],
                env=os.environ | {"RANK": "1", "PYTHONPATH": str(Path(poster_zoo.__file__).parents[1])},
                text=True, stdout=subprocess.PIPE,
            )  # fmt: skip
            assert second.stdout is not None
            assert second.stdout.readline() == "asks\n"
            options = meeting_options(PATIENCE)
            store, rank, size = next(rendezvous(options["init_method"], timeout=options["timeout"]))
            assert (rank, size) == (0, 2)
            store.set("said", "now")
            assert second.communicate(timeout=120)[0] == "now 1 2\n"


def test_without_torchruns_agents_processes_meet_as_torch_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    assert meeting_options(PATIENCE) == {"timeout": PATIENCE}
