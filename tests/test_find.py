"""Which weights a model is loaded with, and why; no network is asked."""

from __future__ import annotations

import hashlib
import json
import pwd
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

from poster_zoo.errors import WeightsError, WeightsNotFoundError
from poster_zoo.weights import find
from poster_zoo.weights.entry import FACE_224, Weights
from poster_zoo.weights.find import fetch_weights, find_weights, hub_org, hub_repository, installed_folder, zoo_home

NAME = "poster_rafdb"
HUB_ID = f"poster-zoo/{NAME}"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONTENT = b"weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def nowhere_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without weights, and a Hub that is out of reach."""
    monkeypatch.setenv("POSTER_ZOO_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("POSTER_ZOO_HUB_ORG", raising=False)
    monkeypatch.setattr(find, "_BUNDLED", tmp_path / "bundled")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def bundle(tmp_path: Path, content: bytes = CONTENT) -> Path:
    return write(tmp_path / "bundled" / f"{NAME}.safetensors", content)


def install(content: bytes = CONTENT, **config: object) -> Path:
    write(installed_folder(NAME) / "config.json", json.dumps(config).encode())
    return write(installed_folder(NAME) / "model.safetensors", content)


def cache(folder: Path, content: bytes = CONTENT) -> Path:
    """Lay a file into a Hub cache as huggingface_hub does where there are no links."""
    repository = folder / f"models--poster-zoo--{NAME}"
    write(repository / "refs/main", COMMIT.encode())
    write(repository / "snapshots" / COMMIT / "config.json", b"{}")
    return write(repository / "snapshots" / COMMIT / "model.safetensors", content)


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def entry(**facts: str | None) -> Weights:
    return Weights(**{"preprocessing": FACE_224, "hub_id": HUB_ID, "bundled": f"{NAME}.safetensors"} | facts)  # type: ignore[arg-type]


def test_the_nearest_source_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Laid down from the farthest to the nearest, each is taken before all that were there."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert find_weights(NAME, entry(hub_id=None)).source == "nowhere"
    assert find_weights(NAME, entry()).source == "hub"
    ways: dict[str, Callable[[], Path]] = {
        "cache": lambda: cache(tmp_path / "hub"),
        "installed": lambda: install(),
        "bundled": lambda: bundle(tmp_path),
    }
    for source, lay in ways.items():
        path = lay()
        found = find_weights(NAME, entry())
        assert (found.source, found.path) == (source, path)
        assert found.reason.endswith(".")
    given = write(tmp_path / "mine.safetensors", CONTENT)
    assert find_weights(NAME, entry(), file=given).path == given


def test_a_given_folder_gives_its_weights_and_config(tmp_path: Path) -> None:
    write(tmp_path / "run/config.json", b"{}")
    weights = write(tmp_path / "run/model.safetensors", CONTENT)
    found = find_weights(NAME, entry(), file=tmp_path / "run")
    assert (found.source, found.path, found.config) == ("file", weights, tmp_path / "run/config.json")
    assert find_weights(NAME, entry(), file=str(weights)).config == tmp_path / "run/config.json"


def test_a_given_file_takes_no_config_from_a_folder_that_is_not_its_own(tmp_path: Path) -> None:
    write(tmp_path / "config.json", b"{}")
    assert find_weights(NAME, entry(), file=write(tmp_path / "rafdb_best.pth", CONTENT)).config is None


def test_a_given_file_starts_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "mine.safetensors", CONTENT)
    assert find_weights(NAME, entry(), file="~/mine.safetensors").path == tmp_path / "mine.safetensors"


def test_a_given_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    install()
    with pytest.raises(WeightsNotFoundError, match=r"no weights file .*absent\.safetensors; check the path"):
        fetch_weights(NAME, entry(), file=tmp_path / "absent.safetensors")


def test_a_given_folder_without_weights_says_what_it_wants(tmp_path: Path) -> None:
    write(tmp_path / "run/pytorch_model.bin", CONTENT)
    with pytest.raises(WeightsNotFoundError, match=r"run holds no model\.safetensors; .*poster-zoo convert"):
        find_weights(NAME, entry(), file=tmp_path / "run")


def test_a_given_file_is_the_callers_own_and_is_not_compared(tmp_path: Path) -> None:
    given = write(tmp_path / "mine.safetensors", b"trained at home")
    assert fetch_weights(NAME, entry(sha256=SHA256), file=given).path == given


def test_who_has_no_home_loads_what_is_bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user is a mere number."""
    for variable in ("HOME", "POSTER_ZOO_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])
    path = bundle(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert fetch_weights(NAME, entry(sha256=SHA256)).path == path
    assert find_weights(NAME, entry(bundled=None)).source == "nowhere"
    assert [file.name for file in tmp_path.iterdir()] == ["bundled"]


def test_installed_weights_bring_their_config() -> None:
    install()
    assert fetch_weights(NAME, entry()).config == installed_folder(NAME) / "config.json"


def test_the_cache_is_looked_up_where_the_caller_says(tmp_path: Path) -> None:
    path = cache(tmp_path / "other")
    assert find_weights(NAME, entry()).source == "nowhere"
    assert find_weights(NAME, entry(), cache_dir=tmp_path / "other").path == path


def test_the_cache_of_another_commit_does_not_count(tmp_path: Path) -> None:
    cache(tmp_path / "hub")
    assert find_weights(NAME, entry(revision=COMMIT)).source == "cache"
    assert find_weights(NAME, entry(revision=COMMIT[::-1])).source == "nowhere"


def test_pinned_weights_load_from_the_cache_without_the_hub(tmp_path: Path) -> None:
    path = cache(tmp_path / "hub")
    found = fetch_weights(NAME, entry(sha256=SHA256))
    assert (found.source, found.path, found.config) == ("cache", path, path.with_name("config.json"))


def test_finding_says_that_the_hub_has_no_weights_of_ours_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert "held no weights when this version was made" in find_weights(NAME, entry()).reason
    assert "held no weights" not in find_weights(NAME, entry(sha256=SHA256)).reason


@pytest.mark.parametrize("lay", [lambda path: bundle(path, b"other"), lambda path: install(b"other")])
def test_a_local_file_with_another_sha256_is_refused_and_stays(tmp_path: Path, lay: Callable[[Path], Path]) -> None:
    path = lay(tmp_path)
    wrong = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(WeightsError, match=rf"{path} has sha256 {wrong[:12]}… instead of {SHA256[:12]}…; .*again"):
        fetch_weights(NAME, entry(sha256=SHA256))
    assert path.exists()


def test_installed_weights_are_compared_with_what_was_converted_here() -> None:
    path = install(b"converted here", sha256=hashlib.sha256(b"converted here").hexdigest())
    assert fetch_weights(NAME, entry(sha256=SHA256)).path == path
    path.write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="instead of"):
        fetch_weights(NAME, entry())


def test_a_broken_installed_config_leaves_the_entrys_sha256() -> None:
    path = install()
    path.with_name("config.json").write_text("{")
    assert fetch_weights(NAME, entry(sha256=SHA256)).path == path


@pytest.mark.parametrize("record", ["", "[]", "{", '{"%s": 1}', '{"%s": [0, 0, 0, "%s"]}'])
def test_a_record_of_checked_files_that_is_broken_or_stale_is_not_believed(record: str) -> None:
    path = install(b"other")
    write(zoo_home() / "verified.json", record.replace("%s", str(path), 1).replace("%s", SHA256).encode())
    with pytest.raises(WeightsError, match="instead of"):
        fetch_weights(NAME, entry(sha256=SHA256))


def test_a_home_that_cannot_be_written_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bundle(tmp_path)
    monkeypatch.setenv("POSTER_ZOO_HOME", str(write(tmp_path / "file", b"") / "home"))
    assert fetch_weights(NAME, entry(sha256=SHA256)).path == path


def test_the_record_forgets_files_that_are_gone(tmp_path: Path) -> None:
    write(zoo_home() / "verified.json", json.dumps({str(tmp_path / "gone"): [1, 2, 3, SHA256]}).encode())
    path = install()
    fetch_weights(NAME, entry(sha256=SHA256))
    assert list(json.loads((zoo_home() / "verified.json").read_bytes())) == [str(path.resolve())]
    assert [file.name for file in zoo_home().iterdir() if file.is_file()] == ["verified.json"]


def test_weights_that_are_nowhere_lead_to_the_authors_file() -> None:
    facts = {
        "upstream_layout": "ir50",
        "upstream_file": "ir50 (backbone).pth",
        "origin_url": "https://authors.example/ir50",
    }
    with pytest.raises(WeightsNotFoundError) as caught:
        fetch_weights(NAME, entry(**facts))
    lines = str(caught.value).splitlines()
    assert len(lines) <= 8
    assert NAME in lines[0]
    assert any("HF_HUB_OFFLINE is set" in line for line in lines)
    assert any("Our organisation on the Hub, poster-zoo, has no weights yet." in line for line in lines)
    assert any(facts["upstream_file"] in line and facts["origin_url"] in line for line in lines)
    command = next(line for line in lines if line.strip().startswith("poster-zoo"))
    assert shlex.split(command) == ["poster-zoo", "convert", facts["upstream_file"], "--model", NAME, "--install"]


def test_weights_that_nobody_publishes_lead_to_training() -> None:
    with pytest.raises(WeightsNotFoundError) as caught:
        fetch_weights("poster_tiny_image", entry(hub_id=None))
    assert len(str(caught.value).splitlines()) <= 8
    assert "Build it with pretrained=False and train it" in str(caught.value)
    assert "pretrained=False" in str(caught.value)


def test_home_follows_its_variable_then_xdg_then_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/user")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert zoo_home() == tmp_path / "home"
    monkeypatch.setenv("POSTER_ZOO_HOME", "~/zoo")
    assert zoo_home() == Path("/home/user/zoo")
    monkeypatch.setenv("POSTER_ZOO_HOME", "")
    assert zoo_home() == tmp_path / "data/poster_zoo"
    assert installed_folder(NAME) == tmp_path / "data/poster_zoo/weights" / NAME
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert zoo_home() == Path("/home/user/.local/share/poster_zoo")
    monkeypatch.delenv("XDG_DATA_HOME")
    assert zoo_home() == Path("/home/user/.local/share/poster_zoo")


def test_the_organisation_can_be_set_and_moves_our_repositories_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub_org() == "poster-zoo"
    assert hub_repository(entry()) == HUB_ID
    monkeypatch.setenv("POSTER_ZOO_HUB_ORG", "their-lab")
    assert hub_repository(entry()) == f"their-lab/{NAME}"
    assert hub_repository(entry(hub_id="someone/else")) == "someone/else"
    assert hub_repository(entry(hub_id=None)) is None
