"""Published and loaded again: the real huggingface_hub client in processes of its own, and a Hub on 127.0.0.1.

In the tests' own process huggingface_hub is offline, where every request is an error: what succeeds there has sent
nothing.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from hub_server import Fault, StandInHub, closed_port
from huggingface_hub import ModelCard
from torch import nn

import poster_zoo
from poster_zoo.cli import main
from poster_zoo.errors import (
    LabelError,
    OptionError,
    PublishError,
    UnknownModelError,
    WeightsError,
    WeightsMismatchError,
    WeightsNotFoundError,
)

TOKEN = "hf_secret"  # noqa: S105
LABELS = ["Freude", 'keine: "Freude"', "weiß nicht"]
ARGS = {"depth": 1}
SENT = ["README.md", "config.json", "model.safetensors"]

# In each child `said` is what comes back; `attempt` calls something and says what came of it.
PROLOGUE = """
import contextlib, io, json, os, pathlib, sys
import huggingface_hub, poster_zoo, poster_zoo.cli, timm, torch
from poster_zoo import PosterZooError
job, said = json.loads(sys.argv[1]), {}
def attempt(call, *args, **kwargs):
    try:
        return {"done": call(*args, **kwargs)}
    except PosterZooError as error:
        return {"error": type(error).__name__, "message": str(error), "cause": type(error.__cause__).__name__}
"""
EPILOGUE = """
print(json.dumps(said))
"""


def child(hub: StandInHub, home: Path, code: str, token: str = TOKEN, **job: Any) -> dict[str, Any]:
    package = str(Path(poster_zoo.__file__).parents[1])
    environment = os.environ | hub.environment(home) | {"HF_TOKEN": token, "PYTHONPATH": package}
    command = [sys.executable, "-c", PROLOGUE + code + EPILOGUE, json.dumps(job)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr
    said: dict[str, Any] = json.loads(finished.stdout)
    return said | {"stderr": finished.stderr}


def files_of(published: poster_zoo.Published) -> dict[str, tuple[int, str]]:
    return {file.path: (file.size, file.sha256) for file in published.files}


def run(*arguments: str) -> Result:
    """Run a command in this process; nothing but an exit may leave it."""
    apart = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
    result = CliRunner(**apart).invoke(main, arguments)  # type: ignore[arg-type]
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


@pytest.fixture(scope="module")
def model() -> Any:
    """A user's model: grey, of another depth, with three classes of his own."""
    torch.manual_seed(3)
    return poster_zoo.create_model("poster_tiny", num_classes=3, in_chans=1, **ARGS).eval()


@pytest.fixture(scope="module")
def saved(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return poster_zoo.save_pretrained(model, tmp_path_factory.mktemp("saved"), LABELS, ARGS)


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the saved folder to spoil."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for file in saved.iterdir():
        os.link(file, folder / file.name)
    return folder


# ---------------------------------------------------------------------------------------------------- there and back


@pytest.fixture(scope="module")
def hub() -> Iterator[StandInHub]:
    with StandInHub(token=TOKEN) as hub:
        yield hub


@pytest.fixture(scope="module")
def published(hub: StandInHub, saved: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the command says that publishes the folder."""
    package = str(Path(poster_zoo.__file__).parents[1])
    home = hub.environment(tmp_path_factory.mktemp("publisher"))
    command = ["publish", str(saved), "a-user/faces", "--private", "--json"]
    finished = subprocess.run(
        [sys.executable, "-m", "poster_zoo", *command],
        env=os.environ | home | {"HF_TOKEN": TOKEN, "PYTHONPATH": package},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""  # no bar where stderr is no terminal
    said: dict[str, Any] = json.loads(finished.stdout)
    return said


def test_three_files_arrive_in_one_commit(hub: StandInHub, published: dict[str, Any], saved: Path) -> None:
    repository = hub.repositories["a-user/faces"]
    files = repository.files(published["commit"])
    assert sorted(files) == SENT
    assert files["model.safetensors"] == (saved / "model.safetensors").read_bytes()
    told = {file["path"]: (file["size"], file["sha256"]) for file in published["files"]}
    assert told == {path: (len(body), hashlib.sha256(body).hexdigest()) for path, body in files.items()}
    assert len(hub.asked("POST", "/api/models/a-user/faces/commit/main")) == 1
    assert published["url"].endswith(published["commit"])


def test_the_repository_is_private_as_asked(hub: StandInHub, published: dict[str, Any]) -> None:
    assert published["private"]
    assert hub.repositories["a-user/faces"].private


def test_the_config_is_timms_with_the_sha256_of_the_weights(hub: StandInHub, published: dict[str, Any]) -> None:
    files = hub.repositories["a-user/faces"].files(published["commit"])
    config = json.loads(files["config.json"])
    assert config["architecture"] == "poster_tiny"
    assert config["label_names"] == LABELS
    assert config["model_args"] == ARGS | {"in_chans": 1}
    assert config["sha256"] == hashlib.sha256(files["model.safetensors"]).hexdigest()


def test_neither_config_nor_card_claims_what_is_so_of_other_weights(hub: StandInHub, published: dict[str, Any]) -> None:
    files = hub.repositories["a-user/faces"].files(published["commit"])
    assert not {"license", "description", "origin_url", "tag"} & set(json.loads(files["config.json"])["pretrained_cfg"])
    assert files["README.md"].decode() == published["card"]
    assert ModelCard(published["card"]).data.license is None


LOAD = """
name, face = job["name"], job["face"]
mine = poster_zoo.create_model(name).eval()
other = poster_zoo.create_model(name)
with torch.no_grad():
    other.head.bias += 1
again = poster_zoo.push_to_hub(other, name.removeprefix("hf-hub:"), revision="v2", model_args=job["args"])
predictor = poster_zoo.Predictor(name, device="cpu", optimize=False)
models = {
    "main": poster_zoo.create_model(name + "@main"),
    "commit": poster_zoo.create_model(name + "@" + job["commit"]),
    "timm": timm.create_model(name, pretrained=True),
    "predictor": predictor.model,
    "v2": poster_zoo.create_model(again.address),
}
x = poster_zoo.create_transform(mine)(poster_zoo.read_image(face))[None]
with torch.inference_mode():
    said["logits"] = mine(x)[0].tolist()
    for place, model in models.items():
        said[place] = (model.eval()(x)[0] - mine(x)[0]).tolist()
said["labels"] = list(models["timm"].pretrained_cfg["label_names"])
said["predicted"] = predictor(face).to_dict()
said["v2_address"] = again.address
def command(*arguments):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        poster_zoo.cli.main(arguments)
    return printed.getvalue()
said["command"] = json.loads(command("predict", "--model", name, face, "--faces", "none", "--json", "--device", "cpu"))
said["told"] = command("publish", job["folder"], "a-user/told", "--revision", "v3")
"""


@pytest.fixture(scope="module")
def loaded(
    hub: StandInHub, published: dict[str, Any], saved: Path, root: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What a stranger's process gets from the repository."""
    return child(
        hub,
        tmp_path_factory.mktemp("stranger"),
        LOAD,
        name="hf-hub:a-user/faces",
        face=str(root / "examples" / "face.png"),
        commit=published["commit"],
        args=ARGS,
        folder=str(saved),
    )


def test_a_stranger_gets_the_publishers_logits(loaded: dict[str, Any], model: Any, root: Path) -> None:
    x = poster_zoo.create_transform(model)(poster_zoo.read_image(root / "examples" / "face.png"))[None]
    with torch.inference_mode():
        assert loaded["logits"] == pytest.approx(model(x)[0].tolist(), abs=1e-5)


@pytest.mark.parametrize("place", ["main", "commit", "timm", "predictor"])
def test_every_way_of_loading_gives_equal_logits(loaded: dict[str, Any], place: str) -> None:
    assert loaded[place] == [0, 0, 0]


def test_another_branch_gives_its_own_weights(hub: StandInHub, loaded: dict[str, Any]) -> None:
    assert loaded["v2_address"] == "hf-hub:a-user/faces@v2"
    assert loaded["v2"] == pytest.approx([1, 1, 1], abs=1e-5)
    assert sorted(hub.repositories["a-user/faces"].branches) == ["main", "v2"]
    assert "hf-hub:a-user/faces@v2" in hub.repositories["a-user/faces"].files("v2")["README.md"].decode()


def test_the_users_labels_come_along(loaded: dict[str, Any]) -> None:
    expected = torch.tensor(loaded["logits"]).softmax(0).tolist()
    assert loaded["labels"] == LABELS
    for answer in (loaded["predicted"], loaded["command"]):
        assert answer["probabilities"] == pytest.approx(dict(zip(LABELS, expected, strict=True)), abs=1e-5)
        assert answer["label"] == LABELS[expected.index(max(expected))]


SHAPES = """
from poster_zoo.train.prepare import saved_config
model = poster_zoo.create_model("hf-hub:a-user/shapes", pretrained=False)
said["classes"], said["depth"] = model.num_classes, model.built_with["depth"]
said["config"] = saved_config("hf-hub:a-user/shapes")["architecture"]
given = poster_zoo.create_model("hf-hub:a-user/shapes", weights=job["folder"])
said["given"] = given.head.bias.sum().item()
said["weights"] = attempt(poster_zoo.create_model, "hf-hub:a-user/shapes")
"""


def test_a_model_without_its_weights_asks_for_none(hub: StandInHub, saved: Path, model: Any, tmp_path: Path) -> None:
    hub.add("a-user/shapes", {"config.json": (saved / "config.json").read_bytes()})
    said = child(hub, tmp_path, SHAPES, folder=str(saved))
    assert (said["classes"], said["depth"], said["config"]) == (3, 1, "poster_tiny")
    assert said["given"] == pytest.approx(model.head.bias.sum().item())
    assert said["weights"]["error"] == "WeightsNotFoundError"


AGAIN = """
model = poster_zoo.from_pretrained(job["folder"])
said["first"] = poster_zoo.push_to_hub(model, "a-user/again").to_dict()
huggingface_hub.HfApi().upload_file(
    path_or_fileobj=job["edited"].encode(), path_in_repo="README.md", repo_id="a-user/again")
with torch.no_grad():
    model.head.bias += 1
said["second"] = poster_zoo.push_to_hub(model, "a-user/again").to_dict()
said["branch"] = poster_zoo.push_to_hub(model, "a-user/again", revision="v2").to_dict()
(pathlib.Path(job["folder"]) / "README.md").write_text(job["own"])
said["own"] = poster_zoo.push_to_hub(job["folder"], "a-user/again").to_dict()
"""


def test_a_card_that_was_edited_on_the_hub_stays(hub: StandInHub, folder: Path, tmp_path: Path) -> None:
    edited = '---\nlicense: mit\n---\nMine.\n\n```python\nmodel = poster_zoo.create_model("hf-hub:a-user/again")\n```\n'
    own = "---\nlicense: mit\n---\nOf the folder.\n"
    said = child(hub, tmp_path / "publisher", AGAIN, folder=str(folder), edited=edited, own=own)
    repository = hub.repositories["a-user/again"]

    def card(push: str) -> str:
        text: str = said[push]["card"]
        assert repository.files(said[push]["commit"])["README.md"].decode() == text
        return text

    assert [file["path"] for file in said["first"]["files"]] == ["config.json", "model.safetensors", "README.md"]
    assert card("first").startswith("---")
    assert card("second") == edited
    assert [file["path"] for file in said["second"]["files"]] == ["config.json", "model.safetensors"]
    weights = [repository.files(said[push]["commit"])["model.safetensors"] for push in ("first", "second")]
    assert weights[0] != weights[1]
    assert card("branch").startswith("---\nlicense: mit")
    assert card("own") == own


# ------------------------------------------------------------------------------------------------- the Hub misbehaves

REFUSALS = """
def publish(repo_id, **options):
    return attempt(lambda: poster_zoo.push_to_hub(job["folder"], repo_id, **options).to_dict())
good = {"token": job["good"]}
for name in job["faults"]:
    said[name] = publish(f"a-user/{name}", **good)
said["no token"] = publish("a-user/untold")
said["public"] = publish("a-user/public", private=True, **good)
said["first"] = publish("a-user/twice", **good)
said["second"] = publish("a-user/twice", **good)
huggingface_hub.constants.ENDPOINT = job["nobody"]
said["refused"] = publish("a-user/refused", **good)
"""
# Each is used up by the attempt of its name, in this order.
FAULTS = {
    "forbidden": Fault(status=403, path="/api/repos/create"),
    "missing": Fault(status=404, path="/api/repos/create"),
    "broken": Fault(status=500, path="/api/repos/create"),
    "card": Fault(status=400, path="/api/validate-yaml"),
    "quota": Fault(status=403, path="/commit/main"),
    "conflict": Fault(status=412, path="/commit/main"),
}
# The error of the client, and what the sentence must say.
SENTENCES = {
    "no token": ("HfHubHTTPError", ["401", "a-user/untold", "HF_TOKEN", "hf auth login"]),
    "forbidden": ("HfHubHTTPError", ["403", "may not write to a-user/forbidden", "as the test asked", "HF_TOKEN"]),
    "missing": ("HfHubHTTPError", ["404", "'a-user'", "check the owner's name"]),
    "broken": ("HfHubHTTPError", ["answers 500", "a-user/broken", "try again later"]),
    "card": ("ValueError", ["Invalid metadata in README.md", "mend"]),
    "quota": ("HfHubHTTPError", ["403", "a-user/quota", "as the test asked"]),
    "conflict": ("HfHubHTTPError", ["412", "a-user/conflict", "as the test asked"]),
    "public": ("NoneType", ["a-user/public is there already and is public", "make it private"]),
    "refused": ("ConnectError", ["upload of a-user/refused", "Connection refused", "HF_ENDPOINT"]),
}


@pytest.fixture(scope="module")
def refusing() -> Iterator[StandInHub]:
    with StandInHub(token=TOKEN) as hub:
        hub.add("a-user/public", {})
        hub.faults += FAULTS.values()
        yield hub


@pytest.fixture(scope="module")
def refused(refusing: StandInHub, saved: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What comes of one attempt after the other, in one process."""
    home = tmp_path_factory.mktemp("publisher")
    faults = list(FAULTS)
    return child(refusing, home, REFUSALS, "", folder=str(saved), good=TOKEN, faults=faults, nobody=closed_port())


@pytest.mark.parametrize("name", SENTENCES)
def test_a_refusal_is_one_sentence_that_says_what_to_do(refused: dict[str, Any], name: str) -> None:
    cause, words = SENTENCES[name]
    said = refused[name]
    assert said["error"] == "PublishError"
    assert said["message"].endswith(".")
    assert "\n" not in said["message"]
    for word in words:
        assert word in said["message"]
    assert said["cause"] == cause or name == "refused"  # the HTTP library's own, by the client's version


@pytest.mark.usefixtures("refused")
def test_what_was_refused_left_no_file(refusing: StandInHub) -> None:
    stored = {name: repository.files() for name, repository in refusing.repositories.items()}
    assert [name for name, files in stored.items() if files] == ["a-user/twice"]


def test_publishing_the_same_again_makes_no_second_commit(refusing: StandInHub, refused: dict[str, Any]) -> None:
    first, second = refused["first"]["done"], refused["second"]["done"]
    assert first["commit"] == second["commit"] == refusing.repositories["a-user/twice"].branches["main"]
    assert len(refusing.asked("POST", "/api/models/a-user/twice/commit/main")) == 1
    assert not refusing.repositories["a-user/twice"].private


def test_offline_is_one_sentence(saved: Path) -> None:
    with pytest.raises(PublishError, match="HF_HUB_OFFLINE is set") as error:
        poster_zoo.push_to_hub(saved, "a-user/faces")
    assert type(error.value.__cause__).__name__ == "OfflineModeIsEnabled"


WRONG_BYTES = """
os.environ["POSTER_ZOO_HUB_ORG"] = "their-lab"
def load(name, **options):
    came = attempt(lambda: sum(p.numel() for p in poster_zoo.create_model(name, **options).parameters()))
    cache = pathlib.Path(os.environ["HF_HUB_CACHE"])
    return came | {"cached": [path.name for path in cache.rglob("*") if path.stat().st_size > 100_000]}
for name in ("hf-hub:their-lab/mobilefacenet", "mobilefacenet"):
    said[name] = [load(name, pretrained=True), load(name, pretrained=True)]
    for link in pathlib.Path(os.environ["HF_HUB_CACHE"]).rglob("model.safetensors"):
        link.resolve().unlink()
        link.unlink()
"""


@pytest.fixture(scope="module")
def tampered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two loads each, by a repository's name and by a model's, of which the first gets wrong bytes."""
    lab = poster_zoo.save_pretrained(poster_zoo.create_model("mobilefacenet"), tmp_path_factory.mktemp("lab"))
    files = {file.name: file.read_bytes() for file in lab.iterdir()}
    wrong = bytes(len(files["model.safetensors"]))
    with StandInHub() as hub:
        hub.add("their-lab/mobilefacenet", files)
        for _ in range(2):
            hub.faults.append(Fault(body=wrong, path="model.safetensors", method="GET"))
            hub.faults.append(Fault(path="model.safetensors", method="GET"))
        return child(hub, tmp_path_factory.mktemp("stranger"), WRONG_BYTES)


@pytest.mark.parametrize("name", ["hf-hub:their-lab/mobilefacenet", "mobilefacenet"])
def test_wrong_bytes_are_refused_and_leave_the_cache(tampered: dict[str, Any], name: str) -> None:
    first, second = tampered[name]
    assert first["error"] == "WeightsError"
    assert re.search(r"model\.safetensors of their-lab/mobilefacenet has sha256 \w+… instead of", first["message"])
    assert first["cached"] == []
    assert second["done"] == sum(p.numel() for p in poster_zoo.create_model("mobilefacenet").parameters())
    assert second["cached"]


# ------------------------------------------------------------------------------------------- before anything is sent


def test_a_dry_run_shows_what_would_arrive_and_sends_nothing(
    hub: StandInHub, published: dict[str, Any], model: Any, saved: Path
) -> None:
    asked = len(hub.requests)
    for source in (saved, str(saved)):
        would = poster_zoo.push_to_hub(source, "a-user/faces", private=True, dry_run=True)
        assert would.commit is would.url is None
        assert json.loads(json.dumps(would.to_dict())) == published | {"commit": None, "url": None}
    given = poster_zoo.push_to_hub(model, "a-user/faces", label_names=LABELS, model_args=ARGS, dry_run=True)
    assert files_of(given) == files_of(would)
    assert len(hub.requests) == asked


def test_stray_files_stay_here(folder: Path) -> None:
    (folder / "notes.txt").write_text("secret")
    (folder / "runs").mkdir()
    (folder / "runs" / "last.pth").write_bytes(b"")
    assert sorted(files_of(poster_zoo.push_to_hub(folder, "a-user/faces", dry_run=True))) == SENT


def test_nothing_is_written_into_the_folder(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    poster_zoo.push_to_hub(folder, "a-user/faces", dry_run=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("name", ["last.pth", "pytorch_model.bin", "best.pth.tar", "OPTIMIZER.PT"])
def test_a_folder_with_a_pickle_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_bytes(pickle.dumps({}))
    with pytest.raises(WeightsError, match=f"holds {re.escape(name)}, which may run code"):
        poster_zoo.push_to_hub(folder, "a-user/faces", dry_run=True)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_without_config_or_weights_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(WeightsNotFoundError, match=f"holds no {re.escape(name)}"):
        poster_zoo.push_to_hub(folder, "a-user/faces", dry_run=True)


def spoil(file: Path, content: str | bytes) -> None:
    file.unlink(missing_ok=True)  # it is a link to what other tests read
    file.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", "{", "cannot be read as JSON"),
        ("config.json", '{"architecture": "poster_tiny"}', "not a model's config"),
        ("config.json", '{"architecture": "poster_tiny", "pretrained_cfg": {}}', "not as save_pretrained writes it"),
        ("model.safetensors", pickle.dumps({"head": [1]}), "cannot be read as safetensors"),
        ("README.md", b"\xff", "cannot be read as UTF-8"),
        ("README.md", "---\nlicense: [mit\n---\n", "front matter of README.md cannot be read"),
    ],
)
def test_a_broken_file_is_named(folder: Path, name: str, content: str | bytes, words: str) -> None:
    spoil(folder / name, content)
    with pytest.raises(WeightsError, match=words) as error:
        poster_zoo.push_to_hub(folder, "a-user/faces", dry_run=True)
    assert "\n" not in str(error.value)


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    spoil(folder / "config.json", json.dumps(config))


def test_an_architecture_of_timm_is_left_to_timm(folder: Path) -> None:
    change_config(folder, architecture="resnet18")
    with pytest.raises(WeightsError, match=r"'resnet18'.*timm\.models\.push_to_hf_hub"):
        poster_zoo.push_to_hub(folder, "a-user/faces", dry_run=True)


def test_a_wrapped_model_is_refused(model: Any) -> None:
    with pytest.raises(OptionError, match="A DataParallel cannot be published"):
        poster_zoo.push_to_hub(nn.DataParallel(model), "a-user/faces", dry_run=True)


def test_weights_that_the_config_would_not_build_are_refused(folder: Path) -> None:
    with pytest.raises(OptionError, match="model_args go with a model"):
        poster_zoo.push_to_hub(folder, "a-user/faces", model_args=ARGS, dry_run=True)
    change_config(folder, model_args={})
    with pytest.raises(WeightsMismatchError, match=r"give them as model_args"):
        poster_zoo.push_to_hub(folder, "a-user/faces", dry_run=True)


def test_weights_other_than_the_config_records_are_refused(folder: Path) -> None:
    change_config(folder, sha256="0" * 64)
    with pytest.raises(WeightsError, match="instead of the recorded 000000000000"):
        poster_zoo.push_to_hub(folder, "a-user/faces", dry_run=True)


def test_every_class_needs_a_name(folder: Path, model: Any) -> None:
    with pytest.raises(LabelError, match="3 classes and 2 label names"):
        poster_zoo.push_to_hub(folder, "a-user/faces", label_names=["a", "b"], dry_run=True)
    with pytest.raises(LabelError, match="3 classes and no label names"):
        poster_zoo.push_to_hub(model, "a-user/faces", model_args=ARGS, dry_run=True)


def test_labels_can_be_given_when_publishing(folder: Path) -> None:
    card = poster_zoo.push_to_hub(folder, "a-user/faces", label_names=["x", "y", "z"], dry_run=True).card
    assert "0. x\n1. y\n2. z\n" in card


def test_a_model_without_classes_needs_no_names() -> None:
    landmarks = poster_zoo.create_model("mobilefacenet")
    assert "create_model" in poster_zoo.push_to_hub(landmarks, "a-user/points", dry_run=True).card


@pytest.mark.parametrize("repo_id", ["faces", "a/b/c", "a user/faces", "a-user/", "hf-hub:a-user/faces", "a--b/faces"])
def test_a_name_that_no_repository_can_have_is_refused(saved: Path, repo_id: str) -> None:
    with pytest.raises(OptionError, match="write OWNER/NAME"):
        poster_zoo.push_to_hub(saved, repo_id, dry_run=True)


def test_what_is_neither_folder_nor_model_is_refused() -> None:
    with pytest.raises(UnknownModelError, match=r"no folder and no model 'poster_tinny'.*'poster_tiny'"):
        poster_zoo.push_to_hub("poster_tinny", "a-user/faces", dry_run=True)


def test_weights_that_are_not_on_this_machine_are_not_fetched_to_be_published() -> None:
    with pytest.raises(WeightsNotFoundError, match=r"poster_rafdb are not on this machine.*--install"):
        poster_zoo.push_to_hub("poster_rafdb", "a-user/faces", dry_run=True)


def test_installed_weights_are_published_by_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTER_ZOO_HOME", str(tmp_path))
    installed = poster_zoo.save_pretrained(
        poster_zoo.create_model("mobilefacenet"), tmp_path / "weights" / "mobilefacenet"
    )
    code = 'import poster_zoo\n\nmodel = poster_zoo.create_model("mobilefacenet", pretrained=True)'
    card = f"Mine.\n\n```python\n{code}\n```\n"
    (installed / "README.md").write_text(card)
    would = poster_zoo.push_to_hub("mobilefacenet", "a-user/points", dry_run=True)
    assert would.card == card.replace('"mobilefacenet"', '"hf-hub:a-user/points"')
    (installed / "README.md").unlink()
    described = poster_zoo.push_to_hub("mobilefacenet", "a-user/points", dry_run=True).card
    assert "https://github.com/cunjian/pytorch_face_landmark" in described


def test_bundled_weights_are_published_with_the_entrys_card() -> None:
    if poster_zoo.model_info("poster_tiny").source.source != "bundled":
        pytest.skip("this checkout carries no weights of poster_tiny")
    would = poster_zoo.push_to_hub("poster_tiny", "a-user/tiny", dry_run=True)
    assert sorted(files_of(would)) == SENT
    assert ModelCard(would.card).data.license == "apache-2.0"


# ---------------------------------------------------------------------------------------------------- the command line


def test_the_command_shows_every_file_and_the_card_in_a_dry_run(saved: Path) -> None:
    result = run("publish", str(saved), "a-user/faces", "--revision", "v3", "--dry-run")
    assert result.exit_code == 0
    would = poster_zoo.push_to_hub(saved, "a-user/faces", revision="v3", dry_run=True)
    header, *rows = result.stdout.splitlines()[:4]
    assert header.split() == ["file", "bytes", "sha256"]
    assert [row.split() for row in rows] == [[file.path, f"{file.size:,}", file.sha256] for file in would.files]
    assert would.card in result.stdout
    assert "Nothing was sent" in result.stderr
    assert "a-user/faces@v3" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["nothing-here", "a-user/faces"], 2, "no folder and no model 'nothing-here'"),
        (["poster_tiny", "faces"], 2, "write OWNER/NAME"),
        (["poster_rafdb", "a-user/faces"], 1, "not on this machine"),
    ],
)
def test_the_command_ends_in_one_sentence(arguments: list[str], exit_code: int, words: str) -> None:
    result = run("publish", *arguments)
    assert result.exit_code == exit_code
    assert result.stdout == ""
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_the_command_tells_where_it_went_and_how_to_load_it(hub: StandInHub, loaded: dict[str, Any]) -> None:
    commit = hub.repositories["a-user/told"].branches["v3"]
    assert f"Published: {hub.url}/a-user/told/commit/{commit}" in loaded["told"]
    assert 'create_model("hf-hub:a-user/told@v3")' in loaded["told"]
