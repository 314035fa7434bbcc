"""To the Hub: a model, or a folder that `save_pretrained` or `convert` wrote, as one commit.

The repository holds config.json in timm's layout, model.safetensors and a model card, so that
`poster_zoo.create_model`, `timm.create_model` and `Predictor` load it as "hf-hub:owner/name". Everything is checked
before the first request; sending is huggingface_hub's.

Tried with the real client against a stand-in for the Hub on 127.0.0.1, large files by git-lfs. Not tried on the real
Hub: its own verdict on cards, uploads by Xet, the rights of tokens in organisations, and limits of storage.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from poster_zoo.errors import (
    LabelError,
    OptionError,
    PosterZooError,
    PublishError,
    UnknownModelError,
    WeightsError,
    WeightsMismatchError,
    WeightsNotFoundError,
    counted,
    nearest,
)
from poster_zoo.models._builder import ENTRIES, base_name, load_weights, weights_name
from poster_zoo.models._registry import create_model
from poster_zoo.weights.card import address_card, model_card, own_card
from poster_zoo.weights.entry import Weights
from poster_zoo.weights.find import (
    CONFIG_FILE,
    CREDENTIALS,
    WEIGHTS_FILE,
    client_errors,
    explain_connection,
    find_weights,
    http_status,
    hub_repository,
    read_config,
)
from poster_zoo.weights.save import model_config, save_pretrained

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

__all__ = ["Published", "PublishedFile", "push_to_hub"]

_CARD_FILE = "README.md"
_MAIN = "main"
_PICKLES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth", ".tar")
# What an architecture's entry says of its own weights is not so of other people's.
_CLAIMS = ("description", "license", "origin_url", "tag")


@dataclass(frozen=True)
class PublishedFile:
    """A file of a repository.

    Attributes:
        path: Its path there.
        size: In bytes.
        sha256: Of its content.
    """

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Published:
    """What went to the Hub, or would go.

    Attributes:
        repo_id: The repository, "owner/name".
        revision: The branch.
        private: Whether it was asked to be private.
        files: All files that are sent.
        card: The text of README.md, as it is there then.
        commit: The commit's name; None after a dry run.
        url: The commit's page; None after a dry run.
    """

    repo_id: str
    revision: str
    private: bool
    files: tuple[PublishedFile, ...]
    card: str
    commit: str | None = None
    url: str | None = None

    @property
    def address(self) -> str:
        """The name that `create_model` and `Predictor` take."""
        return f"hf-hub:{_with_branch(self.repo_id, self.revision)}"

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object that `poster-zoo publish --json` prints."""
        return asdict(self)


@dataclass(frozen=True)
class _Source:
    """What there is to publish.

    Attributes:
        config: The config.json.
        weights: The safetensors file.
        card: The card that lies beside them, if any.
        entry: The entry, where the weights are those that it describes.
        sha256: What the weights must have, where it is known.
    """

    config: dict[str, Any]
    weights: Path
    card: str | None = None
    entry: Weights | None = None
    sha256: str | None = None


def push_to_hub(
    model: nn.Module | str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    commit_message: str | None = None,
    token: str | None = None,
    label_names: Sequence[str] | None = None,
    model_args: dict[str, Any] | None = None,
    dry_run: bool = False,
) -> Published:
    """Publish a model on the Hub: config.json, model.safetensors and a model card, in one commit.

    The repository is made where it is missing. What fails leaves no half of a model there, at most an empty
    repository. A card (README.md) that lies in the folder is sent as it is, but for its example, which comes to name
    the repository. Otherwise the one that the branch has on the Hub stays, so that what you changed there does; only
    where there is none, one is written, which for weights of your own states no licence: add it.

    Not tried on the real Hub, only against a stand-in: see the module's text.

    Args:
        model: A model of the zoo; a folder that `save_pretrained` or `convert` wrote, of which nothing else is sent;
            or the name of a model whose weights are on this machine. A folder comes before a model of the same name.
        repo_id: Where to, "owner/name".
        private: Make the repository private. One that is there and public is refused.
        revision: The branch, made where it is missing; None for "main".
        commit_message: Title of the commit.
        token: A token of the Hub that may write; None for `HF_TOKEN` or that of `hf auth login`.
        label_names: Class names in the order of the logits; None for those that the model came with.
        model_args: Arguments without which the factory would build another model, such as `{"depth": 3}`; a folder's
            config.json holds its own.
        dry_run: Check everything, send nothing.

    Raises:
        OptionError: `repo_id` is no name of a repository, or there is nothing of that kind to publish.
        UnknownModelError: There is no such folder and no such model.
        LabelError: Not each class has a name.
        WeightsNotFoundError: The folder or the machine lacks the weights or their config.
        WeightsError: The folder holds pickles, or files that do not belong together.
        PublishError: The Hub refuses, or cannot be reached.
    """
    _check_repo_id(repo_id)
    revision = revision or _MAIN
    with tempfile.TemporaryDirectory(prefix="poster-zoo-") as scratch:
        source = _find_source(model, Path(scratch), label_names, model_args)
        source = replace(source, config=_named(source.config, label_names))
        _check_fit(source)
        card = _card(source, _with_branch(repo_id, revision))
        additions = _additions(source, card)
        published = Published(repo_id, revision, private, _files(additions), card)
        if dry_run:
            return published
        message = commit_message or f"Publish {source.config['architecture']}"
        return _send(published, additions, message, token, keep_card=source.card is None)


def _with_branch(repo_id: str, revision: str) -> str:
    return repo_id if revision == _MAIN else f"{repo_id}@{revision}"


def _check_repo_id(repo_id: str) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import HFValidationError

    try:
        hf_hub_url(repo_id, CONFIG_FILE)  # asks nobody
        valid = repo_id.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise OptionError(
            f"{repo_id!r} cannot be a repository of the Hub; write OWNER/NAME in letters, digits, '-', '_' and '.'."
        )


# --------------------------------------------------------------------------------------------------- what to publish


def _find_source(
    model: nn.Module | str | Path,
    scratch: Path,
    label_names: Sequence[str] | None,
    model_args: dict[str, Any] | None,
) -> _Source:
    if isinstance(model, nn.Module):
        if _architecture(model) not in ENTRIES:
            raise OptionError(
                f"A {type(model).__name__} cannot be published: it is no model of the zoo. Give the model itself, out "
                "of any wrapper; models of timm are published by timm.models.push_to_hf_hub."
            )
        return _in_folder(save_pretrained(model, scratch, label_names, model_args))
    if model_args:
        raise OptionError("model_args go with a model that is given itself; a folder's config.json holds its own.")
    folder = Path(model).expanduser()
    if folder.is_dir():
        return _in_folder(folder)
    if (name := base_name(str(model))) in ENTRIES:
        return _on_this_machine(weights_name(name))
    raise UnknownModelError(
        f"There is no folder and no model {str(model)!r} to publish.{nearest(str(model), ENTRIES)} "
        "Name a folder that save_pretrained or `poster-zoo convert` wrote, or a model of `poster-zoo list`."
    )


def _architecture(model: nn.Module) -> str | None:
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    return cfg.get("architecture")


def _in_folder(folder: Path) -> _Source:
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise WeightsNotFoundError(
                f"The folder {folder} holds no {name}; name one that save_pretrained or `poster-zoo convert` wrote."
            )
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in _PICKLES)
    if pickles:
        raise WeightsError(
            f"The folder {folder} holds {', '.join(pickles[:3])}, which may run code where it is loaded; "
            f"move it elsewhere, so that it is plain that {WEIGHTS_FILE} is what is published."
        )
    config = _read_config(folder / CONFIG_FILE)
    sha256 = config.get("sha256")
    if sha256 is None:  # as `save_pretrained` writes it, with the words of the entry
        config["pretrained_cfg"] = {k: v for k, v in config["pretrained_cfg"].items() if k not in _CLAIMS}
    return _Source(config, folder / WEIGHTS_FILE, card=_read_card(folder / _CARD_FILE), sha256=sha256)


def _read_config(path: Path) -> dict[str, Any]:
    config = read_config(path)
    match config:
        case {"num_classes": int(), "pretrained_cfg": {"input_size": [_, _, _]}}:
            pass
        case _:
            raise WeightsError(f"{path} is not as save_pretrained writes it; save the model again.")
    if config["architecture"] not in ENTRIES:
        raise WeightsError(
            f"{path} is of the architecture {config['architecture']!r}, which is not of this zoo; "
            "models of timm are published by timm.models.push_to_hf_hub."
        )
    return config


def _read_card(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise WeightsError(f"The model card {path} cannot be read as UTF-8 ({error}); mend or remove it.") from error


def _on_this_machine(name: str) -> _Source:
    entry = ENTRIES[name]
    found = find_weights(name, entry)
    if found.path is None:
        raise WeightsNotFoundError(
            f"The weights of {name} are not on this machine, so they cannot be published: {found.reason} "
            "Convert an authors' file with --install, or name a folder."
        )
    if found.config is None:
        with torch.device("meta"):
            config = model_config(create_model(name))
        return _Source(config, found.path, entry=entry, sha256=entry.sha256)
    # The cache may hold another organisation's weights, of which the entry says nothing.
    described = found.source != "cache" or hub_repository(entry) == entry.hub_id
    source = _in_folder(found.path.parent)
    return replace(source, entry=entry if described else None, sha256=source.sha256 or entry.sha256)


# ------------------------------------------------------------------------------------------------------------ checks


def _named(config: dict[str, Any], label_names: Sequence[str] | None) -> dict[str, Any]:
    """Return the config with the names of all classes, which a stranger cannot guess."""
    entry, classes = ENTRIES[config["architecture"]], config["num_classes"]
    names = list(config.get("label_names") or () if label_names is None else label_names)
    if len(names) != classes and (names or classes not in (0, entry.num_outputs)):
        raise LabelError(
            f"The model has {counted(classes, 'class', 'classes')} and "
            f"{counted(len(names), 'label name') if names else 'no label names'}; "
            "give label_names (to push_to_hub, or when you save it), one for each class in the order of the logits."
        )
    return config | {"label_names": names} if names else config


def _check_fit(source: _Source) -> None:
    """Refuse weights that whoever loads the repository could not load into the model that the config describes."""
    with tempfile.TemporaryDirectory(prefix="poster-zoo-") as folder, torch.device("meta"):
        (Path(folder) / CONFIG_FILE).write_text(json.dumps(source.config), encoding="utf-8")
        model = create_model(f"local-dir:{folder}", pretrained=False)
        shapes = {name: torch.empty(shape) for name, shape in _shapes(source.weights).items()}
    try:
        load_weights(model, shapes, name=source.config["architecture"])
    except WeightsMismatchError as error:
        raise WeightsMismatchError(
            f"{error} {CONFIG_FILE} must name those arguments: give them as model_args when you save the model."
        ) from error


def _shapes(weights: Path) -> dict[str, list[int]]:
    try:
        with safe_open(weights, "pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 – it is no dict
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{weights} cannot be read as safetensors ({error}); save the model again.") from error


def _card(source: _Source, repository: str) -> str:
    name, labels = source.config["architecture"], source.config.get("label_names", ())
    if source.card is not None:
        card = address_card(source.card, name, repository)
        _check_card(card)
        return card
    if source.entry is not None:
        return model_card(name, source.entry, labels, repository=repository)
    return own_card(source.config, ENTRIES[name], repository=repository)


def _check_card(card: str) -> None:
    """Refuse front matter that the Hub would refuse, before the repository is made."""
    import yaml  # type: ignore[import-untyped]  # a part of huggingface_hub's own needs
    from huggingface_hub import ModelCard

    try:
        ModelCard(card)
    except (ValueError, yaml.YAMLError) as error:
        raise WeightsError(
            f"The front matter of {_CARD_FILE} cannot be read ({_in_one_line(error)}); mend it, or remove the file."
        ) from error


def _additions(source: _Source, card: str) -> list[CommitOperationAdd]:
    """Return the files to send; the weights' sha256 stands in the config."""
    from huggingface_hub import CommitOperationAdd

    weights = CommitOperationAdd(WEIGHTS_FILE, str(source.weights))
    sha256 = weights.upload_info.sha256.hex()
    if source.sha256 not in (None, sha256):
        raise WeightsError(
            f"{source.weights} has sha256 {sha256[:12]}… instead of the recorded {str(source.sha256)[:12]}…; "
            "convert or save the model again."
        )
    config = json.dumps(source.config | {"sha256": sha256}, indent=2) + "\n"
    return [
        CommitOperationAdd(CONFIG_FILE, config.encode()),
        weights,
        CommitOperationAdd(_CARD_FILE, card.encode()),
    ]


# ----------------------------------------------------------------------------------------------------------- sending


def _send(
    published: Published, additions: list[CommitOperationAdd], message: str, token: str | None, *, keep_card: bool
) -> Published:
    from huggingface_hub import HfApi

    api, repo_id, branch = HfApi(token=token), published.repo_id, published.revision
    refusals: tuple[type[Exception], ...] = (*client_errors(), ValueError)  # the last where it does not take the card
    try:
        # Without the wish to be private the owner's own default counts.
        api.create_repo(repo_id, private=published.private or None, exist_ok=True)
        if published.private and not api.model_info(repo_id).private:
            raise PublishError(
                f"The repository {repo_id} is there already and is public; make it private in its settings on the "
                "Hub, or choose another name."
            )
        if branch != _MAIN:
            api.create_branch(repo_id, branch=branch, exist_ok=True)
        if keep_card and (there := _card_there(api, repo_id, branch)) is not None:
            published, additions = _with_card(published, additions, there)
        with _bars_on_terminals():
            commit = api.create_commit(repo_id, additions, commit_message=message, revision=branch)
    except PosterZooError:
        raise
    except refusals as error:
        raise PublishError(_explain(error, repo_id)) from error
    return replace(published, commit=commit.oid, url=commit.commit_url)


def _card_there(api: HfApi, repo_id: str, branch: str) -> str | None:
    """Return the card that a branch has on the Hub, or None where it has none."""
    if not api.file_exists(repo_id, _CARD_FILE, revision=branch):
        return None
    card = Path(api.hf_hub_download(repo_id, _CARD_FILE, revision=branch))
    return card.read_text(encoding="utf-8", errors="replace")


def _with_card(
    published: Published, additions: list[CommitOperationAdd], there: str
) -> tuple[Published, list[CommitOperationAdd]]:
    """Leave the branch's card as it is there; on a new branch, which has another's, its example comes to name it."""
    from huggingface_hub import CommitOperationAdd

    card = address_card(there, f"hf-hub:{published.repo_id}", _with_branch(published.repo_id, published.revision))
    additions = [each for each in additions if each.path_in_repo != _CARD_FILE]
    if card != there:
        additions.append(CommitOperationAdd(_CARD_FILE, card.encode()))
    return replace(published, card=card, files=_files(additions)), additions


def _files(additions: list[CommitOperationAdd]) -> tuple[PublishedFile, ...]:
    return tuple(
        PublishedFile(each.path_in_repo, each.upload_info.size, each.upload_info.sha256.hex()) for each in additions
    )


@contextlib.contextmanager
def _bars_on_terminals() -> Iterator[None]:
    """Keep the client's bars of uploads off where stderr is no terminal; those of downloads keep off by themselves."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled() or (sys.stderr is not None and sys.stderr.isatty()):
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _explain(error: Exception, repo_id: str) -> str:
    """Return one sentence: why the Hub has not taken a repository, and what to do about it."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, and nothing can be published without the Hub; unset it."
    if status := http_status(error):
        said = _in_one_line(getattr(error, "server_message", None) or "no reason given")
        return _explain_status(status, repo_id, said)
    if isinstance(error, ValueError) and not isinstance(error, (OSError, json.JSONDecodeError)):
        return f"{constants.ENDPOINT} does not take the files ({_in_one_line(error)}); mend them and publish again."
    return explain_connection(error, repo_id, upload=True)


def _explain_status(status: int, repo_id: str, said: str) -> str:
    from huggingface_hub import constants

    owner = repo_id.partition("/")[0]
    if status == 401:
        return f"The Hub answers 401: {repo_id} is written with a valid token alone; {CREDENTIALS}."
    if status == 403:
        return f"The Hub answers 403: your token may not write to {repo_id} ({said}); {CREDENTIALS} with one that may."
    if status == 404:
        return f"The Hub answers 404: there is no {owner!r} that you may write to ({said}); check the owner's name."
    todo = "try again later" if status >= 500 or status == 429 else "mend that and publish again"
    return f"{constants.ENDPOINT} answers {status} for {repo_id} ({said}); {todo}."


def _in_one_line(said: object) -> str:
    return " ".join(str(said).split()).rstrip(".")
