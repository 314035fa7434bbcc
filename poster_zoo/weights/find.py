"""Where a model's weights file is found: given, bundled, installed, in the Hub's cache, or on the Hub; in that order.

`find_weights` says which of these it would be and asks no network; `fetch_weights` brings the file. Both know the disk
and huggingface_hub, no tensors. huggingface_hub reads `HF_HOME`, `HF_HUB_OFFLINE`, `HF_ENDPOINT`, `HF_TOKEN` and the
timeouts from the environment when it is imported, which happens here on first use.

What is checked: a bundled file and one from the Hub must have the sha256 that the entry records; without a record, a
file from the Hub, the config too, must have the digest that the Hub states for it. An installed file must have the
sha256 that its own config.json states (`poster-zoo convert` wrote both on this machine), or else the entry's. A file
that the caller names is the caller's own and is not compared. A checked file is hashed again only after it has changed:
`verified.json` in `zoo_home()` remembers its size, times and digest.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shlex
import tempfile
from dataclasses import dataclass
from functools import partial
from os.path import exists, isfile  # unlike Path's, these take a folder that may not be read for one without the file
from pathlib import Path
from typing import Any, Literal, TypeGuard

from poster_zoo.errors import WeightsError, WeightsNotFoundError
from poster_zoo.weights.entry import Weights

__all__ = [
    "CONFIG_FILE",
    "CREDENTIALS",
    "WEIGHTS_FILE",
    "Found",
    "client_errors",
    "config_beside",
    "explain_connection",
    "fetch_config",
    "fetch_repository",
    "fetch_weights",
    "find_weights",
    "http_status",
    "hub_org",
    "hub_repository",
    "installed_folder",
    "read_config",
    "zoo_home",
]

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"

_OUR_ORG = "poster-zoo"
_BUNDLED = Path(__file__).parent / "bundled"
_VERIFIED = "verified.json"
_PICKLE = "pytorch_model.bin"
CREDENTIALS = "set HF_TOKEN or run `hf auth login`"
_SHA256_LENGTH = 64
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def zoo_home() -> Path:
    """Return our folder: `POSTER_ZOO_HOME`, else `poster_zoo` in `XDG_DATA_HOME`, else in `~/.local/share`."""
    if home := os.environ.get("POSTER_ZOO_HOME"):
        return Path(home).expanduser()
    data = Path(os.environ.get("XDG_DATA_HOME", ""))
    if not data.is_absolute():  # the XDG specification has relative paths ignored
        try:
            data = Path("~/.local/share").expanduser()
        except RuntimeError:  # a user without a home: a place where nothing is and nothing can be made
            data = Path(os.devnull)
    return data / "poster_zoo"


def installed_folder(name: str) -> Path:
    """Return the folder in which `poster-zoo convert --install` puts the weights of the model `name`."""
    return zoo_home() / "weights" / name


def hub_org() -> str:
    """Return the organisation on the Hub that holds our weights: `POSTER_ZOO_HUB_ORG`, or "poster-zoo"."""
    return os.environ.get("POSTER_ZOO_HUB_ORG") or _OUR_ORG


def hub_repository(entry: Weights) -> str | None:
    """Return the entry's repository on the Hub, in the organisation that is set, or None where it has none."""
    if entry.hub_id and entry.hub_id.startswith(f"{_OUR_ORG}/"):
        return f"{hub_org()}/{entry.hub_id.removeprefix(f'{_OUR_ORG}/')}"
    return entry.hub_id


def _revision(entry: Weights) -> str | None:
    """Return the commit to ask for. Another organisation's repository has other commits than ours."""
    return entry.revision if hub_repository(entry) == entry.hub_id else None


@dataclass(frozen=True)
class Found:
    """Which weights file is used, or would be.

    Attributes:
        source: Kind of place.
        path: The file; None where it is on the Hub alone, or nowhere.
        config: The config.json that belongs to it, or None where the entry says it all.
        reason: One sentence: why this one.
    """

    source: Literal["file", "bundled", "installed", "cache", "hub", "nowhere"]
    path: Path | None
    config: Path | None
    reason: str


def find_weights(
    name: str, entry: Weights, *, file: str | Path | None = None, cache_dir: str | Path | None = None
) -> Found:
    """Say which weights a model would be loaded with, without asking the network.

    Args:
        name: The model's name.
        entry: The model's weights entry.
        file: A weights file, or a folder that holds model.safetensors, to be used whatever else there is.
        cache_dir: The Hub's cache; None for huggingface_hub's own.

    Raises:
        WeightsNotFoundError: `file` does not exist, or is a folder without model.safetensors.
    """
    if file is not None:
        return _given(Path(file).expanduser())
    if entry.bundled and isfile(bundled := _BUNDLED / entry.bundled):
        return Found("bundled", bundled, None, f"The weights of {name} come with the package.")
    if isfile(installed := installed_folder(name) / WEIGHTS_FILE):
        return Found("installed", installed, _config_beside(installed), f"They are installed in {installed.parent}.")
    repo_id = hub_repository(entry)
    if repo_id is None:
        return Found("nowhere", None, None, "They are neither bundled nor installed, and no Hub repository has them.")
    if cached := _cached(repo_id, _revision(entry), cache_dir):
        return Found("cache", cached, _config_beside(cached), f"The Hub's cache holds them, from {repo_id}.")
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return Found("nowhere", None, None, _offline(repo_id))
    doubt = ", which held no weights when this version was made" if _is_unpublished(entry) else ""
    return Found("hub", None, None, f"They are not on this machine; the Hub would be asked for {repo_id}{doubt}.")


def config_beside(file: str | Path) -> Path | None:
    """Return the config.json of weights that a caller names, a file or a folder as for `find_weights`, or None.

    Raises:
        WeightsNotFoundError: There are no such weights.
    """
    return _given(Path(file).expanduser()).config


def _given(path: Path) -> Found:
    """Return the file that the caller names, or the one in the folder that the caller names."""
    if isfile(path):
        config = _config_beside(path) if path.name == WEIGHTS_FILE else None
        return Found("file", path, config, f"{path} was asked for.")
    if not exists(path):
        raise WeightsNotFoundError(f"There is no weights file {path}; check the path, and that you may read it.")
    weights = path / WEIGHTS_FILE
    if not isfile(weights):
        raise WeightsNotFoundError(
            f"The folder {path} holds no {WEIGHTS_FILE}; name the weights file itself, "
            "or write one from an authors' checkpoint with `poster-zoo convert FILE --out DIR`."
        )
    return Found("file", weights, _config_beside(weights), f"The folder {path} was asked for.")


def _config_beside(weights: Path) -> Path | None:
    config = weights.with_name(CONFIG_FILE)
    return config if isfile(config) else None


def _cached(repo_id: str, revision: str | None, cache_dir: str | Path | None) -> Path | None:
    """Return the weights that the Hub's cache holds of a repository, or None."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(repo_id, WEIGHTS_FILE, cache_dir=_expanded(cache_dir), revision=revision)
    except HFValidationError:  # an organisation that no repository can have: fetching says so
        return None
    return Path(cached) if isinstance(cached, str) else None


def _expanded(cache_dir: str | Path | None) -> Path | None:
    return None if cache_dir is None else Path(cache_dir).expanduser()


def _is_unpublished(entry: Weights) -> bool:
    """Return whether this version knows of no weights in our own organisation's repository."""
    return hub_org() == _OUR_ORG and not (entry.sha256 or entry.revision)


def fetch_weights(
    name: str, entry: Weights, *, file: str | Path | None = None, cache_dir: str | Path | None = None
) -> Found:
    """Return the weights file to load, downloaded where need be and checked.

    The Hub is not asked where its cache holds the very file that the entry pins by commit or sha256. Otherwise
    huggingface_hub asks whether there is a newer one, and keeps to its cache where the Hub is out of reach.

    Args:
        name: The model's name.
        entry: The model's weights entry.
        file: A weights file, or a folder that holds model.safetensors, to be used whatever else there is.
        cache_dir: The Hub's cache; None for huggingface_hub's own.

    Raises:
        WeightsNotFoundError: the weights are nowhere, or the Hub or the disk does not let them through.
        WeightsError: a file that is not the one recorded. One from the Hub has left its cache.
    """
    found = find_weights(name, entry, file=file, cache_dir=cache_dir)
    if found.source == "file":
        return found
    if found.source in ("cache", "hub"):
        return _fetch_from_hub(name, entry, found, cache_dir)
    if found.path is None:
        raise WeightsNotFoundError(_nowhere(name, entry, found.reason))
    expected = _stated_sha256(found.config) or entry.sha256
    if expected and (actual := _other_digest(found.path, expected)):
        remedy = "install poster_zoo again" if found.source == "bundled" else "remove it and convert or load it again"
        raise WeightsError(f"The file {found.path} {_instead_of(actual, expected)}; {remedy}.")
    return found


def fetch_repository(
    repo_id: str, revision: str | None = None, cache_dir: str | Path | None = None, sha256: str | None = None
) -> tuple[Path, Path]:
    """Return the config.json and the model.safetensors of a repository on the Hub, both of the same commit.

    Args:
        repo_id: "owner/name".
        revision: A branch, a tag or a commit; None for the newest.
        cache_dir: The Hub's cache; None for huggingface_hub's own.
        sha256: Of the weights, where it is known. Otherwise they are compared with what the Hub states for them.

    Raises:
        WeightsNotFoundError: the repository has no such files, or the Hub or the disk does not let them through.
        WeightsError: a file with another digest. It has left the cache.
    """
    weights = _download(repo_id, WEIGHTS_FILE, revision, cache_dir)
    _check_download(repo_id, weights, sha256)
    config = _download(repo_id, CONFIG_FILE, weights.parent.name, cache_dir)
    _check_download(repo_id, config)
    return config, weights


def fetch_config(repo_id: str, revision: str | None = None, cache_dir: str | Path | None = None) -> Path:
    """Return the config.json of a repository on the Hub alone, which need not have weights; as `fetch_repository`."""
    config = _download(repo_id, CONFIG_FILE, revision, cache_dir)
    _check_download(repo_id, config)
    return config


def _fetch_from_hub(name: str, entry: Weights, found: Found, cache_dir: str | Path | None) -> Found:
    repo_id, revision = hub_repository(entry) or "", _revision(entry)
    pinned = bool(entry.sha256 or re.fullmatch("[0-9a-f]{40}", revision or ""))
    cache_only = pinned and found.source == "cache"
    try:
        weights = _download(repo_id, WEIGHTS_FILE, revision, cache_dir, cache_only)
    except WeightsNotFoundError as error:
        if _is_disk_trouble(error.__cause__):  # which the authors' file would meet too
            raise
        raise WeightsNotFoundError(_nowhere(name, entry, str(error))) from error.__cause__
    _check_download(repo_id, weights, entry.sha256)
    commit = weights.parent.name
    config = _download_config(repo_id, commit, cache_dir, cache_only)
    if found.path and found.path.parent.name == commit:
        return Found("cache", weights, config, found.reason)
    return Found("hub", weights, config, f"They were fetched from the Hub, from {repo_id}.")


def _download(
    repo_id: str, filename: str, revision: str | None, cache_dir: str | Path | None, cache_only: bool = False
) -> Path:
    """Return a repository's file in the Hub's cache, whose folder is named after the commit.

    Raises:
        WeightsNotFoundError: in one sentence, from the client's own error.
    """
    from huggingface_hub import hf_hub_download

    # The client shows a progress bar where stderr is a terminal, and none elsewhere.
    download = partial(
        hf_hub_download,
        repo_id,
        filename,
        revision=revision,
        cache_dir=_expanded(cache_dir),
        local_files_only=cache_only,
    )
    try:
        try:
            return Path(download())
        except client_errors() as error:
            if (http_status(error) or 0) < 500:
                raise
            # Where the Hub fails, the client repeats the request for a file's headers, but not the one for its body.
            return Path(download())
    except client_errors() as error:
        raise WeightsNotFoundError(_explain(error, repo_id, filename, revision)) from error


def _download_config(repo_id: str, commit: str, cache_dir: str | Path | None, cache_only: bool) -> Path | None:
    """Return the config.json of a repository that has an entry, or None where none is to be had: the entry will do."""
    from huggingface_hub.errors import EntryNotFoundError

    try:
        config = _download(repo_id, CONFIG_FILE, commit, cache_dir, cache_only)
    except WeightsNotFoundError as error:
        if isinstance(error.__cause__, EntryNotFoundError):
            return None
        raise
    _check_download(repo_id, config)
    return config


def _check_download(repo_id: str, path: Path, sha256: str | None = None) -> None:
    """Refuse a file with another digest and take it out of the cache: the client keeps whatever bytes it gets."""
    expected = sha256 or _hub_digest(repo_id, path)
    if expected is None or not (actual := _other_digest(path, expected)):
        return
    try:
        _forget(path)
        outcome = "it was removed from the Hub's cache, so load again to fetch it anew"
    except OSError as error:
        outcome = f"remove {path} from the Hub's cache yourself ({error.strerror}) and load again"
    raise WeightsError(f"The file {path.name} of {repo_id} {_instead_of(actual, expected)}; {outcome}.")


def _hub_digest(repo_id: str, path: Path) -> str | None:
    """Return the digest that the Hub states for a cached file, or None where it states none or is out of reach.

    It is the file's etag, the sha256 of a large one and git's sha1 of a small one, and names the blob that the cache's
    link points to. A cache without links, as on many Windows machines, has lost it, so the Hub is asked, unless the
    file has been compared before.
    """
    if path.is_symlink():
        etag = Path(os.readlink(path)).name  # one step: the blob may itself be a link, to one that is shared
    elif _verified_digest(path):
        return None
    else:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        url = hf_hub_url(repo_id, path.name, revision=path.parent.name)
        try:
            etag = get_hf_file_metadata(url).etag or ""
        except client_errors():
            return None
    return etag if re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", etag) else None


def read_config(path: Path) -> dict[str, Any]:
    """Return what a config.json says, in timm's layout: an architecture and its `pretrained_cfg`.

    Raises:
        WeightsError: The file cannot be read, or is something else.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read as JSON ({error}); save the model again.") from error
    match config:
        case {"architecture": str(), "pretrained_cfg": {}}:
            return dict(config)
    raise WeightsError(f"{path} is not a model's config as save_pretrained writes it; save the model again.")


def _stated_sha256(config: Path | None) -> str | None:
    """Return the sha256 that an installed config.json states for its weights, or None."""
    try:
        stated = json.loads(config.read_text(encoding="utf-8")) if config else None
    except (OSError, ValueError):  # a broken config is for its reader to refuse
        return None
    sha256 = stated.get("sha256") if isinstance(stated, dict) else None
    return sha256 if isinstance(sha256, str) else None


def _instead_of(actual: str, expected: str) -> str:
    kind = "sha256" if len(expected) == _SHA256_LENGTH else "sha1"
    return f"has {kind} {actual[:12]}… instead of {expected[:12]}…"


def _other_digest(path: Path, expected: str) -> str | None:
    """Return the digest of a file where it is not the expected one, or None; hash only what is not known to match."""
    if _verified_digest(path) == expected:
        return None
    try:
        with path.open("rb") as file:
            stamp = _stamp(os.fstat(file.fileno()))
            digests = _digests(len(expected), stamp[0])
            while chunk := file.read(1 << 20):
                for digest in digests:
                    digest.update(chunk)
    except OSError as error:
        raise WeightsError(f"The file {path} cannot be read ({error.strerror}); check it, or load again.") from error
    if expected not in [digest.hexdigest() for digest in digests]:
        return digests[0].hexdigest()
    _remember(path, [*stamp, expected])
    return None


def _digests(length: int, size: int) -> list[hashlib._Hash]:
    """Return what a digest of so many letters can be: a sha256, git's sha1, or a plain one, as mirrors state it."""
    if length == _SHA256_LENGTH:
        return [hashlib.sha256()]
    return [hashlib.sha1(start, usedforsecurity=False) for start in (b"blob %d\0" % size, b"")]


def _stamp(stat: os.stat_result) -> list[int]:
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _verified() -> dict[str, Any]:
    """Return what `verified.json` holds: by path, the stamp and digest of each file that matched. Empty if broken."""
    try:
        verified = json.loads((zoo_home() / _VERIFIED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return verified if isinstance(verified, dict) else {}


def _verified_digest(path: Path) -> str | None:
    """Return the digest that a file matched, if it has not changed since."""
    try:
        stamp = _stamp(path.stat())
    except OSError:
        return None
    match _verified().get(str(path.resolve())):
        case [*seen, str(digest)] if seen == stamp:
            return digest
    return None


def _remember(path: Path, line: list[int | str]) -> None:
    """Add a line to `verified.json`. Of two processes at once one's line may be lost, which costs one more hashing."""
    verified = {known: value for known, value in _verified().items() if exists(known)}
    verified[str(path.resolve())] = line
    home = zoo_home()
    with contextlib.suppress(OSError):  # a home that cannot be written costs a hashing at each load, no more
        home.mkdir(parents=True, exist_ok=True)
        descriptor, beside = tempfile.mkstemp(prefix=_VERIFIED, dir=home)
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                json.dump(verified, file, indent=1)
            os.replace(beside, home / _VERIFIED)
        except OSError:
            os.unlink(beside)
            raise


def _forget(path: Path) -> None:
    """Remove a file from the Hub's cache: the snapshot's link, its blob, and the shared blob that may stand behind."""
    while path.is_symlink():
        target = path.parent / os.readlink(path)
        path.unlink(missing_ok=True)
        path = target
    path.unlink(missing_ok=True)


def client_errors() -> tuple[type[Exception], ...]:
    """Return what huggingface_hub lets out: its own errors, the disk's, those of its HTTP library and of hf_xet.

    The library is requests, httpx or httpx2, by version; the base of its errors is the base of `HfHubHTTPError`.
    hf_xet, which carries large files from the real Hub, reports its failures as RuntimeError.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    return (OSError, RuntimeError, HFValidationError, *HfHubHTTPError.__bases__)


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status that the Hub answered, be it in huggingface_hub's or the HTTP library's error, or None."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _is_disk_trouble(error: BaseException | None) -> TypeGuard[OSError]:
    """Return whether the cache's disk failed. A socket's errors come without a number, wrapped by the HTTP library."""
    return isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError)


def _offline(repo_id: str) -> str:
    return f"HF_HUB_OFFLINE is set and the Hub's cache does not hold {repo_id}; unset it to download."


def _explain(error: BaseException, repo_id: str, filename: str, revision: str | None) -> str:
    """Return one sentence: what keeps a repository's file from us, and what to do about it."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError):  # it is not in the cache, and its cause is why
        return _explain(error.__cause__ or OSError(str(error)), repo_id, filename, revision)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return _offline(repo_id)
    if isinstance(error, errors.HFValidationError):
        return f"{repo_id!r} is no repository of the Hub; write OWNER/NAME."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"The repository {repo_id} has no revision {revision or 'main'!r}; name one of its branches or commits."
    if isinstance(error, errors.EntryNotFoundError):
        return _explain_missing(repo_id, filename, revision)
    if isinstance(error, errors.GatedRepoError):
        return _explain_gated(repo_id)
    if status := http_status(error):
        return _explain_status(status, repo_id)
    if _is_disk_trouble(error):
        return _explain_disk(error, repo_id)
    return explain_connection(error, repo_id)


def _explain_missing(repo_id: str, filename: str, revision: str | None) -> str:
    from huggingface_hub import file_exists

    if filename == CONFIG_FILE:
        return f"The repository {repo_id} has no {CONFIG_FILE}, which would say what model it is; it must have one."
    with contextlib.suppress(*client_errors()):
        if file_exists(repo_id, _PICKLE, revision=revision):
            return (
                f"The repository {repo_id} has {_PICKLE} but no {WEIGHTS_FILE}, and no pickle is loaded from the Hub; "
                f"download it yourself and run `poster-zoo convert {_PICKLE}`."
            )
    return f"The repository {repo_id} has no {WEIGHTS_FILE} at revision {revision or 'main'!r}; check its name."


def _explain_gated(repo_id: str) -> str:
    from huggingface_hub import constants

    page = f"{constants.ENDPOINT}/{repo_id}"
    return f"The repository {repo_id} is gated: accept its terms at {page}, then {CREDENTIALS}."


def _explain_status(status: int, repo_id: str) -> str:
    from huggingface_hub import constants

    if status == 401:
        return f"The Hub answers 401: {repo_id} is private or not there; check the name, and {CREDENTIALS}."
    if status == 403:
        return f"The Hub answers 403: your token may not read {repo_id}; {CREDENTIALS} with one that may."
    if status == 404:
        return f"The Hub has no repository {repo_id} (404), or it is private; check the name, or {CREDENTIALS}."
    return f"{constants.ENDPOINT} answers {status} for {repo_id}; try again later."


def _explain_disk(error: OSError, repo_id: str) -> str:
    remedy = "or put the Hub's cache elsewhere by HF_HOME or cache_dir"
    if error.errno in _NO_ROOM:
        return f"There is no room on the disk for {repo_id} ({error.strerror}); make room, {remedy}."
    return f"The Hub's cache cannot be used ({error.strerror}: {error.filename}); mend that, {remedy}."


def explain_connection(error: BaseException, repo_id: str, *, upload: bool = False) -> str:
    """Return one sentence: how the talk with the Hub broke off while a repository was fetched, or sent."""
    from huggingface_hub import constants

    # The HTTP libraries share no base for time-outs but the word in their names.
    if any("Timeout" in kind.__name__ for kind in type(error).__mro__):
        patience = "" if upload else ", or allow more seconds by HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT"
        return f"{constants.ENDPOINT} did not answer in time for {repo_id}; try again{patience}."
    what = f"upload of {repo_id} to" if upload else f"download of {repo_id} from"
    return (
        f"The {what} {constants.ENDPOINT} failed ({_root_cause(error)}); "
        "try again, and check the connection, the proxy and HF_ENDPOINT."
    )


def _root_cause(error: BaseException) -> str:
    """Return what the system said first, or else the first sentence of the error itself."""
    said = re.split(r"\.?\s*\n|\. |\.$", str(error).strip())[0] or type(error).__name__
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            said = cause.strerror
        cause = cause.__cause__ or cause.__context__
    return said


def _nowhere(name: str, entry: Weights, happened: str) -> str:
    """Return the text for weights that are nowhere, in at most eight lines."""
    lines = [f"There are no weights for {name!r} on this machine, and none came from elsewhere.", happened]
    if hub_repository(entry) and _is_unpublished(entry):
        lines.append(f"Our organisation on the Hub, {_OUR_ORG}, has no weights yet.")
    if entry.upstream_layout is None:
        advice = "Build it with pretrained=False and train it, or choose one of `poster-zoo list --pretrained`."
        return "\n".join([*lines, advice])
    file = entry.upstream_file or "CHECKPOINT"
    where = f" at {entry.origin_url}" if entry.origin_url else ""
    return "\n".join(
        [
            *lines,
            f"Make them from the authors' file: get {file}, which they publish{where}, and run"
            if entry.upstream_file
            else f"Make them from a checkpoint of the authors' code{where}: run",
            f"    poster-zoo convert {shlex.quote(file)} --model {name} --install",
            "From then on pretrained=True finds them, without a network too.",
        ]
    )
