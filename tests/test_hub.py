"""The Hub behaves and misbehaves: the real huggingface_hub client in a process of its own, and a Hub on 127.0.0.1.

The client reads `HF_ENDPOINT` and its like when it is imported, so each load is a process, as a user's is. The finder
knows neither torch nor the models, so the process leaves them out and takes a fraction of a second.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pty
import re
import shlex
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from hub_server import Fault, StandInHub, client_environment, closed_port
from packaging.version import Version

import poster_zoo.weights.find

CLIENT = huggingface_hub.__version__
WEIGHTS = bytes(range(256)) * 400
OTHERS = WEIGHTS[::-1]
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
CONFIG = b'{"architecture": "poster_rafdb"}'
FILES = {"config.json": CONFIG, "model.safetensors": WEIGHTS}
OURS = "poster-zoo/poster_rafdb"
ENTRY = {
    "hub_id": OURS,
    "upstream_layout": "poster",
    "upstream_file": "rafdb_best.pth",
    "origin_url": "https://authors.example/poster",
}

Load = Callable[..., dict[str, Any]]

# Reads a job, does it, says what came of it and what is in the cache. Anything but a PosterZooError is a traceback.
CHILD = """
import hashlib, json, os, pathlib, sys, time, types

job = json.loads(sys.argv[1])
package = types.ModuleType("poster_zoo")
package.__path__ = [job["package"]]
sys.modules["poster_zoo"] = package
if not job["patient"]:
    time.sleep = lambda seconds: None  # the client waits between its tries

from poster_zoo.errors import PosterZooError
from poster_zoo.weights.entry import FACE_224, Weights
from poster_zoo.weights.find import fetch_repository, fetch_weights, find_weights

def perform(call, arguments):
    if call == "fetch_repository":
        config, weights = fetch_repository(**arguments)
        return {"path": str(weights), "config": str(config)}
    entry = Weights(preprocessing=FACE_224, **arguments.pop("entry"))
    found = {"find": find_weights, "fetch": fetch_weights}[call](entry=entry, **arguments)
    return {"source": found.source, "path": found.path and str(found.path), "reason": found.reason,
            "config": found.config and str(found.config)}

exec(job["setup"])
try:
    said = perform(job["call"], job["arguments"])
    if said["path"]:
        said["sha256"] = hashlib.sha256(pathlib.Path(said["path"]).read_bytes()).hexdigest()
except PosterZooError as error:
    said = {"error": type(error).__name__, "message": str(error), "cause": type(error.__cause__).__name__}

said["cached"], said["broken"] = [], []
files = [pathlib.Path(folder, name) for folder, _, names in os.walk(job["cache"]) for name in names]
for path in filter(os.path.isfile, files):
    if path.parent.name == "blobs" and len(path.name) in (40, 64):
        content = path.read_bytes()
        blob = hashlib.sha1(b"blob %d\\0" % len(content) + content)
        name = (hashlib.sha256(content) if len(path.name) == 64 else blob).hexdigest()
        said["broken"] += [] if name == path.name else [str(path)]
    if "snapshots" in path.parts:
        said["cached"].append(path.name)
said["torch"] = "torch" in sys.modules
print(json.dumps(said))
"""


def client_before(version: str) -> bool:
    return Version(CLIENT) < Version(version)


@pytest.fixture
def hub() -> Iterator[StandInHub]:
    with StandInHub() as hub:
        hub.add(OURS, FILES)
        yield hub


def command_and_environment(
    endpoint: str,
    home: Path,
    *,
    call: str = "fetch",
    entry: dict[str, str] | None = None,
    setup: str = "",
    patient: bool = False,
    environment: dict[str, str] | None = None,
    **arguments: str,
) -> tuple[list[str], dict[str, str]]:
    if call != "fetch_repository":
        arguments = {"name": "poster_rafdb", "entry": ENTRY | (entry or {}), **arguments}  # type: ignore[dict-item]
    settings = client_environment(endpoint, home) | (environment or {})
    job = {
        "call": call,
        "arguments": arguments,
        "setup": setup,
        "patient": patient,
        "package": str(Path(poster_zoo.weights.find.__file__).parents[1]),
        "cache": arguments.get("cache_dir", settings["HF_HUB_CACHE"]),
    }
    return [sys.executable, "-c", CHILD, json.dumps(job)], os.environ | settings


def outcome(finished: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What the process said; every load must leave a sound cache and do without torch."""
    assert finished.returncode == 0, finished.stderr
    said: dict[str, Any] = json.loads(finished.stdout)
    assert said.pop("broken") == []
    assert said.pop("torch") is False
    return said | {"stderr": finished.stderr}


@pytest.fixture
def load(hub: StandInHub, tmp_path: Path) -> Load:
    """Load weights in a new process, from `hub` unless another endpoint is named."""

    def run(endpoint: str = hub.url, *, wrapper: tuple[str, ...] = (), **job: Any) -> dict[str, Any]:
        command, environment = command_and_environment(endpoint, tmp_path, **job)
        command = [*wrapper, *command]
        return outcome(subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300))

    return run


def assert_one_sentence(said: dict[str, Any], *words: str) -> None:
    """A WeightsNotFoundError or a WeightsError that says so in a line, from an error of the client's."""
    assert said["error"] in ("WeightsNotFoundError", "WeightsError")
    assert "\n" not in said["message"]
    assert said["message"].endswith(".")
    for word in words:
        assert word in said["message"]


def assert_way_out(said: dict[str, Any], *words: str) -> None:
    """The text of at most eight lines that ends in the authors' file, and says what happened on the way."""
    assert said["error"] == "WeightsNotFoundError"
    lines = said["message"].splitlines()
    assert len(lines) <= 8
    assert any("rafdb_best.pth" in line and "https://authors.example/poster" in line for line in lines)
    command = next(line for line in lines if line.strip().startswith("poster-zoo"))
    assert shlex.split(command) == ["poster-zoo", "convert", "rafdb_best.pth", "--model", "poster_rafdb", "--install"]
    for word in words:
        assert any(word in line for line in lines)


def test_weights_come_from_the_hub_with_their_config(hub: StandInHub, load: Load) -> None:
    said = load()
    assert (said["source"], said["sha256"]) == ("hub", SHA256)
    assert Path(said["config"]).read_bytes() == CONFIG
    assert [request.path for request in hub.asked("GET", "model.safetensors")] == [
        f"/{OURS}/resolve/main/model.safetensors"
    ]


def test_a_second_load_does_not_ask_for_the_file(hub: StandInHub, load: Load) -> None:
    load()
    said = load()
    assert (said["source"], said["sha256"]) == ("cache", SHA256)
    assert len(hub.asked("GET", "model.safetensors")) == 1


@pytest.mark.parametrize("pin", ["sha256", "revision"])
def test_a_second_load_of_pinned_weights_asks_nothing(hub: StandInHub, load: Load, pin: str) -> None:
    entry = {"sha256": SHA256} if pin == "sha256" else {"revision": hub.repositories[OURS].branches["main"]}
    assert load(entry=entry)["source"] == "hub"
    hub.requests.clear()
    assert load(entry=entry)["source"] == "cache"
    assert hub.requests == []


def test_finding_asks_no_network(hub: StandInHub, load: Load) -> None:
    assert load(call="find")["source"] == "hub"
    assert hub.requests == []
    load()
    hub.requests.clear()
    found = load(call="find")
    assert (found["source"], found["sha256"]) == ("cache", SHA256)
    assert hub.requests == []


def test_new_weights_on_the_hub_replace_unpinned_ones(hub: StandInHub, load: Load) -> None:
    load()
    hub.repositories[OURS].commit({"model.safetensors": OTHERS})
    said = load()
    assert (said["source"], said["sha256"]) == ("hub", hashlib.sha256(OTHERS).hexdigest())


def test_a_pinned_revision_is_loaded_though_the_branch_went_on(hub: StandInHub, load: Load) -> None:
    first = hub.repositories[OURS].branches["main"]
    hub.repositories[OURS].commit({"model.safetensors": OTHERS})
    assert load(entry={"revision": first})["sha256"] == SHA256


def test_another_organisation_is_asked_for_its_own_newest(hub: StandInHub, load: Load) -> None:
    hub.add("their-lab/poster_rafdb", FILES)
    entry = {"revision": "0" * 40}  # a commit of ours, which theirs does not have
    said = load(entry=entry, environment={"POSTER_ZOO_HUB_ORG": "their-lab"})
    assert said["sha256"] == SHA256
    assert hub.asked(path=f"/{OURS}/resolve/main/model.safetensors") == []


def test_hf_home_holds_the_cache(load: Load, tmp_path: Path) -> None:
    said = load(environment={"HF_HOME": str(tmp_path / "elsewhere"), "HF_HUB_CACHE": str(tmp_path / "elsewhere/hub")})
    assert Path(said["path"]).is_relative_to(tmp_path / "elsewhere")


def test_cache_dir_holds_the_cache(load: Load, tmp_path: Path) -> None:
    said = load(cache_dir=str(tmp_path / "given"))
    assert Path(said["path"]).is_relative_to(tmp_path / "given")
    assert load(cache_dir=str(tmp_path / "given"), call="find")["source"] == "cache"
    assert load(call="find")["source"] == "hub"


def test_a_private_repository_answers_401_and_the_sentence_names_the_token(hub: StandInHub, load: Load) -> None:
    hub.token = "hf_secret"  # noqa: S105
    hub.add("a-user/faces", FILES, private=True)
    assert_one_sentence(load(call="fetch_repository", repo_id="a-user/faces"), "a-user/faces", "401", "HF_TOKEN")
    said = load(call="fetch_repository", repo_id="a-user/faces", environment={"HF_TOKEN": "hf_secret"})
    assert said["sha256"] == SHA256


def test_a_gated_repository_says_where_to_accept_its_terms(hub: StandInHub, load: Load) -> None:
    hub.token = "hf_secret"  # noqa: S105
    hub.add("a-user/faces", FILES, gated=True)
    said = load(call="fetch_repository", repo_id="a-user/faces")
    assert_one_sentence(said, "gated", f"{hub.url}/a-user/faces", "HF_TOKEN", "hf auth login")
    assert said["cause"] == "GatedRepoError"


def test_a_forbidden_repository_says_so(hub: StandInHub, load: Load) -> None:
    hub.faults.append(Fault(status=403, times=None))
    assert_one_sentence(load(call="fetch_repository", repo_id=OURS), "403", OURS, "HF_TOKEN")


def test_an_unknown_repository_is_one_sentence(load: Load) -> None:
    said = load(call="fetch_repository", repo_id="nobody/nothing")
    assert_one_sentence(said, "no repository nobody/nothing", "404", "check the name")
    assert said["cause"] == "RepositoryNotFoundError"


def test_a_name_that_no_repository_can_have_is_one_sentence(load: Load) -> None:
    assert_one_sentence(load(call="fetch_repository", repo_id="no spaces please"), "no spaces please", "OWNER/NAME")
    assert_way_out(load(environment={"POSTER_ZOO_HUB_ORG": "no spaces"}), "no spaces/poster_rafdb", "OWNER/NAME")


def test_our_missing_repository_leads_to_the_authors_file(hub: StandInHub, load: Load) -> None:
    del hub.repositories[OURS]
    said = load()
    assert_way_out(said, "404", "Our organisation on the Hub, poster-zoo, has no weights yet.")
    assert said["cause"] == "RepositoryNotFoundError"


def test_published_weights_are_not_said_to_be_unpublished(hub: StandInHub, load: Load) -> None:
    del hub.repositories[OURS]
    assert "has no weights yet" not in load(entry={"sha256": SHA256})["message"]


def test_a_repository_without_weights_says_which_file_is_missing(hub: StandInHub, load: Load) -> None:
    hub.add("a-user/empty", {"config.json": CONFIG})
    said = load(call="fetch_repository", repo_id="a-user/empty")
    assert_one_sentence(said, "a-user/empty", "no model.safetensors")


def test_a_repository_with_a_pickle_alone_is_refused(hub: StandInHub, load: Load) -> None:
    hub.add("a-user/pickle", {"config.json": CONFIG, "pytorch_model.bin": b"\x80\x04."})
    said = load(call="fetch_repository", repo_id="a-user/pickle")
    assert_one_sentence(said, "pytorch_model.bin", "no model.safetensors", "poster-zoo convert pytorch_model.bin")
    assert hub.asked("GET", "pytorch_model.bin") == []


def test_a_stranger_without_config_is_refused_but_our_entry_says_it_all(hub: StandInHub, load: Load) -> None:
    hub.add(OURS, {"model.safetensors": WEIGHTS})
    assert_one_sentence(load(call="fetch_repository", repo_id=OURS), OURS, "no config.json")
    said = load()
    assert (said["sha256"], said["config"]) == (SHA256, None)


def test_a_wrong_revision_is_named(load: Load) -> None:
    said = load(call="fetch_repository", repo_id=OURS, revision="v9")
    assert_one_sentence(said, OURS, "no revision 'v9'")
    assert said["cause"] == "RevisionNotFoundError"


def test_a_revision_gives_its_own_files(hub: StandInHub, load: Load) -> None:
    first = hub.repositories[OURS].branches["main"]
    hub.repositories[OURS].commit({"config.json": b"{}", "model.safetensors": OTHERS})
    said = load(call="fetch_repository", repo_id=OURS, revision=first)
    assert said["sha256"] == SHA256
    assert Path(said["config"]).read_bytes() == CONFIG


def test_config_and_weights_are_of_one_commit(hub: StandInHub, load: Load) -> None:
    def publish() -> None:
        hub.repositories[OURS].commit({"config.json": b"{}", "model.safetensors": OTHERS})

    hub.faults.append(Fault(meanwhile=publish, path="model.safetensors", method="GET"))
    for said in (load(call="fetch_repository", repo_id=OURS), load()):
        assert Path(said["config"]).parent == Path(said["path"]).parent
    assert len(hub.asked("GET", "config.json")) == 2


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_one_500_is_asked_again(hub: StandInHub, load: Load, method: str) -> None:
    if method == "HEAD" and client_before("2"):
        pytest.skip(f"huggingface_hub {CLIENT} does not always ask again for the headers of a file")
    hub.faults.append(Fault(status=500, method=method, path="model.safetensors"))
    assert load()["sha256"] == SHA256


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_always_500_leads_to_the_authors_file(hub: StandInHub, load: Load, method: str) -> None:
    hub.faults.append(Fault(status=500, method=method, times=None))
    said = load()
    assert_way_out(said, f"{hub.url} answers 500", "try again later")
    assert said["cached"] == []
    assert_one_sentence(load(call="fetch_repository", repo_id=OURS), "answers 500")


def test_always_500_does_not_matter_to_who_has_the_weights(hub: StandInHub, load: Load) -> None:
    load()
    hub.faults.append(Fault(status=500, times=None))
    assert load()["source"] == "cache"


def test_a_refused_connection_is_told_with_the_address(load: Load) -> None:
    nobody = closed_port()
    said = load(nobody)
    assert_way_out(said, nobody, "Connection refused")
    assert_one_sentence(
        load(nobody, call="fetch_repository", repo_id=OURS), nobody, "Connection refused", "HF_ENDPOINT"
    )


def test_a_refused_connection_does_not_matter_to_who_has_the_weights(load: Load) -> None:
    load()
    assert load(closed_port())["sha256"] == SHA256


def test_an_endpoint_that_is_no_hub_is_told(hub: StandInHub, load: Load) -> None:
    hub.faults.append(Fault(status=200, times=None))  # a page, with none of the Hub's headers
    assert_way_out(load(), f"from {hub.url} failed (", "check the connection")


def test_a_slow_hub_is_waited_for(hub: StandInHub, load: Load) -> None:
    hub.faults.append(Fault(pause=0.05, path="model.safetensors", method="GET"))
    assert load()["sha256"] == SHA256


def test_a_stalled_body_is_asked_for_again(hub: StandInHub, load: Load) -> None:
    if client_before("2"):
        pytest.skip(f"huggingface_hub {CLIENT} does not always ask again for a body that did not begin")
    hub.faults.append(Fault(delay=60, path="model.safetensors", method="GET"))
    assert load(environment={"HF_HUB_DOWNLOAD_TIMEOUT": "1"})["sha256"] == SHA256


def test_a_hub_that_never_answers_in_time_names_the_settings(hub: StandInHub, load: Load) -> None:
    hub.faults.append(Fault(delay=60, path="model.safetensors", method="GET", times=None))
    said = load(environment={"HF_HUB_DOWNLOAD_TIMEOUT": "1"})
    assert_way_out(said, hub.url, "did not answer in time", "HF_HUB_DOWNLOAD_TIMEOUT")
    assert said["cached"] == []


def test_a_body_cut_in_the_middle_is_resumed(hub: StandInHub, load: Load) -> None:
    large = WEIGHTS * 120  # the client writes by 10 MiB, and resumes after what it wrote
    hub.add(OURS, {"config.json": CONFIG, "model.safetensors": large})
    hub.faults.append(Fault(cut=11 << 20, path="model.safetensors", method="GET"))
    said = load()
    if client_before("2") and "error" in said:  # it gives up at once, and resumes when asked again
        assert_way_out(said, hub.url)
        said = load()
    assert said["sha256"] == hashlib.sha256(large).hexdigest()
    whole, rest = hub.asked("GET", "model.safetensors")
    assert "range" not in whole.headers
    assert re.fullmatch(r"bytes=[1-9]\d+-", rest.headers["range"])


def test_a_body_always_cut_leaves_nothing_under_a_good_name(hub: StandInHub, load: Load) -> None:
    hub.faults.append(Fault(cut=1000, path="model.safetensors", method="GET", times=None))
    said = load()
    assert_way_out(said, hub.url)
    assert said["cached"] == []
    hub.faults.clear()
    assert load()["sha256"] == SHA256


@pytest.mark.parametrize("sha256", [SHA256, None], ids=["recorded", "stated by the Hub"])
def test_wrong_bytes_are_refused_and_leave_the_cache(hub: StandInHub, load: Load, sha256: str | None) -> None:
    entry = {"sha256": sha256} if sha256 else {}
    hub.faults.append(Fault(body=OTHERS, path="model.safetensors", method="GET"))
    said = load(entry=entry)
    wrong = hashlib.sha256(OTHERS).hexdigest()
    assert_one_sentence(said, OURS, f"has sha256 {wrong[:12]}", f"instead of {SHA256[:12]}", "load again")
    assert said["cached"] == []
    assert load(entry=entry)["sha256"] == SHA256


def test_wrong_bytes_of_a_stranger_are_refused_and_leave_the_cache(hub: StandInHub, load: Load) -> None:
    hub.faults.append(Fault(body=OTHERS, path="model.safetensors", method="GET"))
    said = load(call="fetch_repository", repo_id=OURS)
    assert_one_sentence(said, "instead of", "load again")
    assert said["cached"] == []
    assert load(call="fetch_repository", repo_id=OURS)["sha256"] == SHA256


@pytest.mark.parametrize("call", ["fetch", "fetch_repository"])
def test_a_wrong_config_is_refused_and_leaves_the_cache(hub: StandInHub, load: Load, call: str) -> None:
    """The Hub names a small file as git does."""
    job = {"call": call} | ({"repo_id": OURS} if call == "fetch_repository" else {})
    hub.faults.append(Fault(body=CONFIG.replace(b"rafdb", b"bfdar"), path="config.json", method="GET"))
    said = load(**job)
    assert_one_sentence(said, "config.json", OURS, "instead of", "load again")
    assert "config.json" not in said["cached"]
    assert Path(load(**job)["config"]).read_bytes() == CONFIG


def test_a_hub_with_other_weights_than_recorded_is_refused(hub: StandInHub, load: Load) -> None:
    hub.add(OURS, {"config.json": CONFIG, "model.safetensors": OTHERS})
    said = load(entry={"sha256": SHA256})
    assert_one_sentence(said, "instead of")
    assert said["cached"] == []


def test_wrong_bytes_are_refused_where_the_cache_has_no_links(hub: StandInHub, load: Load) -> None:
    if client_before("2"):
        pytest.skip(f"huggingface_hub {CLIENT} cannot be told to do without links")
    hub.faults.append(Fault(body=OTHERS, path="model.safetensors", method="GET"))
    said = load(environment={"HF_HUB_DISABLE_SYMLINKS": "1"})
    assert_one_sentence(said, "instead of", "load again")
    assert said["cached"] == []
    said = load(environment={"HF_HUB_DISABLE_SYMLINKS": "1"})
    assert said["sha256"] == SHA256
    assert not Path(said["path"]).is_symlink()
    offline = {"HF_HUB_DISABLE_SYMLINKS": "1", "HF_HUB_OFFLINE": "1"}
    assert load(environment=offline)["sha256"] == SHA256


@pytest.mark.parametrize("entry", [{"sha256": SHA256}, {}], ids=["recorded", "stated by the Hub"])
def test_a_cached_file_that_changed_is_refused_and_fetched_anew(load: Load, entry: dict[str, str]) -> None:
    path = Path(load(entry=entry)["path"])
    path.resolve().write_bytes(OTHERS)
    assert_one_sentence(load(entry=entry), "instead of")
    assert not path.exists()
    assert load(entry=entry)["sha256"] == SHA256


def test_a_wrong_blob_that_repositories_share_leaves_the_shared_store_too(load: Load, tmp_path: Path) -> None:
    blob = Path(load()["path"]).resolve()
    shared = tmp_path / "huggingface/hub/blobs/ab" / ("ab" * 32)
    shared.parent.mkdir(parents=True)
    shared.write_bytes(OTHERS)
    blob.unlink()
    blob.symlink_to(os.path.relpath(shared, blob.parent))
    assert_one_sentence(load(), "instead of")
    assert not shared.exists()
    assert not blob.is_symlink()
    assert load()["sha256"] == SHA256


def test_a_checked_file_is_read_once_and_not_again(load: Load) -> None:
    """The second load opens it no more: the process counts the openings as Python's audit reports them."""
    count = """
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
checked = perform
def perform(call, arguments):
    said = checked(call, arguments)
    name = said["path"]
    said["reason"] = str(opened.count(name))
    return said
"""
    path = load(entry={"sha256": SHA256})["path"]
    assert load(entry={"sha256": SHA256}, setup=count)["reason"] == "0"
    Path(path).resolve().write_bytes(WEIGHTS)
    assert load(entry={"sha256": SHA256}, setup=count)["reason"] == "1"


def test_a_file_that_outgrows_the_disk_is_one_sentence(hub: StandInHub, load: Load) -> None:
    hub.add(OURS, {"config.json": CONFIG, "model.safetensors": WEIGHTS * 20})
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    said = load(setup=limit)
    assert_one_sentence(said, "no room on the disk", OURS, "HF_HOME")
    assert said["cached"] == []


@pytest.fixture
def load_on_disk(load: Load, tmp_path: Path) -> Load:
    """Load weights into a cache on a disk of its own, made with the given mount options."""
    alone = ("unshare", "--user", "--map-root-user", "--mount")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o {{}} none {shlex.quote(str(disk))}"
    attempt = [*alone, "sh", "-c", mount.format("size=4k")]
    if not shutil.which("unshare") or subprocess.run(attempt, capture_output=True).returncode:
        pytest.skip("no disk to spoil: this machine lets a user mount none of his own (unshare)")

    def run(options: str, **job: Any) -> dict[str, Any]:
        wrapper = (*alone, "sh", "-c", f'{mount.format(options)} && exec "$@"', "sh")
        return load(wrapper=wrapper, cache_dir=str(disk / "hub"), **job)

    return run


def test_a_full_disk_is_one_sentence_and_leaves_nothing_broken(hub: StandInHub, load_on_disk: Load) -> None:
    hub.add(OURS, {"config.json": CONFIG, "model.safetensors": WEIGHTS * 20})
    said = load_on_disk("size=512k")
    assert_one_sentence(said, "no room on the disk", "No space left on device", OURS, "cache_dir")
    assert said["cached"] == []


def test_a_cache_that_may_not_be_written_is_one_sentence(load_on_disk: Load) -> None:
    assert_one_sentence(load_on_disk("ro"), "cannot be used", "Read-only file system", "cache_dir")


def test_a_cache_that_is_no_folder_is_one_sentence(load: Load, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = load(cache_dir=str(tmp_path / "file/hub"))
    assert_one_sentence(said, "cannot be used", "Not a directory", str(tmp_path / "file"), "cache_dir")


def test_two_processes_at_once_both_load(hub: StandInHub, tmp_path: Path) -> None:
    hub.faults.append(Fault(pause=0.05, path="model.safetensors", method="GET", times=None))
    first, second = _load_twice_at_once(hub, tmp_path)
    assert first["sha256"] == second["sha256"] == SHA256
    assert len(hub.asked("GET", "model.safetensors")) == 1  # the other one waited


def test_two_processes_at_once_both_refuse_wrong_bytes(hub: StandInHub, tmp_path: Path) -> None:
    hub.faults.append(Fault(pause=0.05, body=OTHERS, path="model.safetensors", method="GET", times=None))
    for said in _load_twice_at_once(hub, tmp_path):
        assert_one_sentence(said, "load again")
    hub.faults.clear()
    command, environment = command_and_environment(hub.url, tmp_path)
    said = outcome(subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300))
    assert said["sha256"] == SHA256


def _load_twice_at_once(hub: StandInHub, home: Path) -> list[dict[str, Any]]:
    command, environment = command_and_environment(hub.url, home, patient=True)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, env=environment, **pipes) for _ in range(2)]
    ended = [(process, *process.communicate(timeout=300)) for process in running]
    return [outcome(subprocess.CompletedProcess(command, p.returncode, out, err)) for p, out, err in ended]


@pytest.mark.parametrize("entry", [{}, {"sha256": SHA256}], ids=["newest", "pinned"])
def test_offline_with_a_cache_loads(hub: StandInHub, load: Load, entry: dict[str, str]) -> None:
    load(entry=entry)
    hub.requests.clear()
    said = load(entry=entry, environment={"HF_HUB_OFFLINE": "1"})
    assert (said["source"], said["sha256"]) == ("cache", SHA256)
    assert hub.requests == []


def test_offline_without_a_cache_leads_to_the_authors_file(hub: StandInHub, load: Load) -> None:
    assert_way_out(load(environment={"HF_HUB_OFFLINE": "1"}), "HF_HUB_OFFLINE is set")
    assert load(call="find", environment={"HF_HUB_OFFLINE": "1"})["source"] == "nowhere"
    said = load(call="fetch_repository", repo_id=OURS, environment={"HF_HUB_OFFLINE": "1"})
    assert_one_sentence(said, "HF_HUB_OFFLINE is set", OURS)
    assert hub.requests == []


def test_a_download_draws_a_bar_on_a_terminal_and_none_elsewhere(hub: StandInHub, tmp_path: Path) -> None:
    command, environment = command_and_environment(hub.url, tmp_path)
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))  # a new one has no columns to draw in
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=terminal, timeout=300, check=True)
    os.close(terminal)
    drawn = os.read(screen, 1 << 20).decode()
    os.close(screen)
    assert "model.safetensors" in drawn
    assert "100%" in drawn
    command, environment = command_and_environment(hub.url, tmp_path / "again")
    said = outcome(subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300))
    assert said["stderr"] == ""


UPLOAD = """
import sys
from huggingface_hub import HfApi
api = HfApi()
url = api.create_repo("a-user/faces", private=True, exist_ok=True)
info = api.upload_folder(repo_id=url.repo_id, folder_path=sys.argv[1], commit_message="weights")
print(info.oid, api.model_info("a-user/faces").sha)
"""


def _upload(hub: StandInHub, home: Path, folder: Path, token: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | hub.environment(home) | {"HF_TOKEN": token}
    command = [sys.executable, "-c", UPLOAD, str(folder)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What `publish` would upload."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in (FILES | {"README.md": b"---\nlicense: mit\n---\n# Faces\n"}).items():
        (folder / name).write_bytes(content)
    return folder


def test_what_the_client_uploads_can_be_loaded(hub: StandInHub, load: Load, tmp_path: Path, folder: Path) -> None:
    hub.token = "hf_secret"  # noqa: S105
    uploaded = _upload(hub, tmp_path, folder, "hf_secret")
    assert uploaded.returncode == 0, uploaded.stderr
    oid, newest = uploaded.stdout.split()
    assert oid == newest
    repository = hub.repositories["a-user/faces"]
    assert repository.private
    assert repository.files() == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert [request.path for request in hub.asked("PUT")] == [f"/lfs/{SHA256}"]
    assert len(hub.asked("POST", "/commit/main")) == 1
    said = load(call="fetch_repository", repo_id="a-user/faces", environment={"HF_TOKEN": "hf_secret"})
    assert said["sha256"] == SHA256


def test_an_unchanged_upload_makes_no_second_commit(hub: StandInHub, tmp_path: Path, folder: Path) -> None:
    first = _upload(hub, tmp_path, folder, "")
    second = _upload(hub, tmp_path, folder, "")
    assert first.returncode == second.returncode == 0, second.stderr
    assert len(hub.asked("PUT")) == 1


def test_an_upload_without_the_token_is_refused(hub: StandInHub, tmp_path: Path, folder: Path) -> None:
    hub.token = "hf_secret"  # noqa: S105
    refused = _upload(hub, tmp_path, folder, "hf_wrong")
    assert refused.returncode != 0
    assert "401" in refused.stderr
    assert "a-user/faces" not in hub.repositories


def test_a_card_with_broken_front_matter_is_refused(hub: StandInHub, tmp_path: Path, folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: [mit\n---\n")
    refused = _upload(hub, tmp_path, folder, "")
    assert refused.returncode != 0
    assert "metadata" in refused.stderr.lower()
    assert hub.asked("POST", "/commit/main") == []
