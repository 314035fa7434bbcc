"""From an authors' checkpoint to safetensors that prove themselves.

The authors pickle their checkpoints, name the tensors in their own way, keep layers that never run, and trained some
networks on images in the order blue, green, red. A converted file has our names, only what is used, and stems turned
to RGB, so that nobody has to know. One network is published as an ONNX graph: its constants are the tensors then.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from poster_zoo.errors import UnknownModelError, WeightsError, WeightsNotFoundError, counted, nearest, printable
from poster_zoo.models._builder import ENTRIES, base_name, weights_name
from poster_zoo.models._registry import create_model
from poster_zoo.weights.card import model_card
from poster_zoo.weights.checkpoint import read_checkpoint, state_dict
from poster_zoo.weights.entry import Weights
from poster_zoo.weights.find import CONFIG_FILE, WEIGHTS_FILE, installed_folder
from poster_zoo.weights.graph import read_constants, run_graph
from poster_zoo.weights.save import model_config, write_folder
from poster_zoo.weights.upstream import LAYOUTS, Renaming, rename

__all__ = ["Conversion", "convert", "load_checkpoint", "recognise"]


@dataclass(frozen=True)
class Conversion:
    """What became of a checkpoint.

    Attributes:
        model: The model's name.
        out: The folder that was written.
        used: Names of the file's tensors that the model has.
        dropped: Names of those it does not need, with the reason.
        left_over: Names that nothing is known about; always empty, since such a file is refused.
        placeholders: Python objects that the file names and that were not followed.
        largest_difference: Between the logits of the written file on RGB and those of the authors' tensors on the
            order they were trained with; or between its answers and those of the authors' graph.
    """

    model: str
    out: Path
    used: tuple[str, ...]
    dropped: dict[str, str]
    left_over: tuple[str, ...]
    placeholders: tuple[str, ...]
    largest_difference: float

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object that `poster-zoo convert --json` prints."""
        counts = {"used": len(self.used), "dropped": len(self.dropped), "left_over": len(self.left_over)}
        return {"model": self.model, "out": str(self.out), "tensors": counts}


@dataclass(frozen=True)
class _Recognised:
    """A checkpoint's tensors, sorted for a model of the zoo."""

    name: str
    path: Path
    tensors: dict[str, Tensor]
    renaming: Renaming
    placeholders: tuple[str, ...]

    @property
    def entry(self) -> Weights:
        return ENTRIES[self.name]

    def by_our_names(self, fold: bool = True) -> dict[str, Tensor]:
        """Return the tensors by our names, the stems turned to RGB unless `fold` is off."""
        renamed = {ours: self.tensors[theirs] for theirs, ours in self.renaming.used.items()}
        if fold and self.entry.upstream_bgr:
            for stem in self.entry.first_conv:
                renamed[f"{stem}.weight"] = renamed[f"{stem}.weight"].flip(1)
        return renamed


def convert(
    path: str | Path, model: str | None = None, *, out: str | Path | None = None, install: bool = False
) -> Conversion:
    """Convert an authors' checkpoint into a folder of config.json, model.safetensors and README.md.

    Before the folder gets its files they have proved themselves: loaded into a fresh model, each tensor is the
    checkpoint's bit for bit (the stems turned back), and logits on RGB input are those of the checkpoint's own tensors
    on its own order of colours, to 1e-5; or, of an ONNX file, the answers are those that ONNX Runtime gives on the
    authors' graph, to 1e-3.

    Args:
        path: The checkpoint, or ONNX file. No code in it is run.
        model: The model's name; needed where several models have the same tensors.
        out: Folder to write; None for one named after the model in the current folder.
        install: Write to this machine's folder of installed weights instead, where `pretrained=True` finds them.

    Raises:
        WeightsNotFoundError: There is no such file.
        WeightsError: The file is no checkpoint, fits no model or several, or its folder cannot be written.
        UnknownModelError: There is no model of that name.
        MissingExtraError: It is an ONNX file, and onnx or onnxruntime is not installed.
    """
    found = _recognise(Path(path).expanduser(), model)
    folder = installed_folder(found.name) if install else Path(out or found.name).expanduser()
    with tempfile.TemporaryDirectory(prefix="poster-zoo-") as scratch:
        config = _config(found)
        try:
            written = write_folder(scratch, {key: t.contiguous() for key, t in found.by_our_names().items()}, config)
        except WeightsError as error:
            raise WeightsError(f"{error} It holds what is not yet proved; TMPDIR puts it elsewhere.") from error
        difference = _prove(found, written / "model.safetensors")
        config["sha256"] = _sha256(written / "model.safetensors")
        card = model_card(found.name, found.entry, found.entry.label_names, provenance=_provenance(found, Path(path)))
        write_folder(folder, written / "model.safetensors", config, **{"README.md": card})
    return Conversion(
        model=found.name,
        out=folder,
        used=tuple(found.renaming.used),
        dropped=found.renaming.dropped,
        left_over=found.renaming.left_over,
        placeholders=found.placeholders,
        largest_difference=difference,
    )


def load_checkpoint(path: str | Path, model: str | None = None, **kwargs: Any) -> nn.Module:
    """Build the model of an authors' checkpoint straight from the file, without writing anything.

    Args:
        path: The checkpoint; or a safetensors file with our names, or a folder that `save_pretrained` wrote.
        model: The model's name; needed where several models have the same tensors, and for a safetensors file without
            its config.json beside it.
        **kwargs: As for `create_model`.

    Raises:
        WeightsNotFoundError: There is no such file.
        WeightsError: The file is no checkpoint, or fits no model or several.
    """
    path = Path(path).expanduser()
    if path.is_dir() or path.suffix == ".safetensors":
        return create_model(model or _model_beside(path), weights=path, **kwargs)
    found = _recognise(path, model)
    return create_model(found.name, True, pretrained_cfg_overlay={"state_dict": found.by_our_names()}, **kwargs)


def _model_beside(path: Path) -> str:
    """Return what a folder, or the config.json beside a safetensors file, says that the model is."""
    if path.is_dir():
        return f"local-dir:{path}"
    if not path.exists():
        raise WeightsNotFoundError(f"There is no weights file {path}; check the path.")
    if path.name != WEIGHTS_FILE or not path.with_name(CONFIG_FILE).is_file():
        raise WeightsError(
            f"{path} has no {CONFIG_FILE} beside it that says which model it is of; name the model "
            "(--model at the command line)."
        )
    return f"local-dir:{path.parent}"


# -------------------------------------------------------------------------------------------------------- recognising


def recognise(path: str | Path, model: str | None = None) -> str:
    """Return the name of the model that an authors' checkpoint is of; raises as `convert` does."""
    return _recognise(Path(path).expanduser(), model).name


def _recognise(path: Path, model: str | None) -> _Recognised:
    tensors, placeholders = _read(path)
    candidates = _of_layout(tensors) if model is None else [_convertible_name(model)]
    fits = {name: _differences(name, tensors) for name in candidates}
    names = [name for name, differences in fits.items() if not differences]
    if len(names) > 1:
        raise WeightsError(
            f"{path} fits {_listed(names, 'and')}: their releases have the same tensors, "
            f"and their classes differ in order. Say which it is: poster-zoo convert {path} --model {names[0]}"
        )
    if not names:
        others = [name for name in _of_layout(tensors) if not _differences(name, tensors)] if model else []
        if others:
            advice = "leave out --model" if len(others) == 1 else "say which by --model"
            raise WeightsError(f"{path} is not {candidates[0]}, but {_listed(others, 'or')}: {advice}.")
        raise WeightsError(_unknown_layout(path, tensors, fits))
    renaming = rename(_layout(names[0]), tensors)
    return _Recognised(names[0], path, tensors, renaming, placeholders)


def _read(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return an authors' tensors, and the names of Python objects that were not followed."""
    if path.suffix == ".onnx":
        return read_constants(path), ()
    checkpoint = read_checkpoint(path)
    return state_dict(checkpoint).tensors, checkpoint.placeholders


def _listed(names: list[str], word: str) -> str:
    return f" {word} ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _convertible() -> list[str]:
    """Return the models that an authors' file can be of; those that share their weights once."""
    return [name for name in ENTRIES if ENTRIES[name].upstream_layout and weights_name(name) == name]


def _of_layout(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the models whose release has names like these, or all where no release has."""
    left_over = {name: len(rename(layout, tensors).left_over) for name, layout in LAYOUTS.items()}
    fewest = min(left_over.values())
    layouts = [name for name, count in left_over.items() if count == fewest]
    return [name for name in _convertible() if ENTRIES[name].upstream_layout in layouts]


def _convertible_name(model: str) -> str:
    model = base_name(model)
    if model not in ENTRIES:
        raise UnknownModelError(f"There is no model {model!r}.{nearest(model, ENTRIES)} `poster-zoo list` shows all.")
    if ENTRIES[model].upstream_layout is None:
        raise WeightsError(
            f"No authors' file is of the model {model}; convert knows the releases of {', '.join(_convertible())}."
        )
    return weights_name(model)


def _layout(name: str) -> Any:
    return LAYOUTS[ENTRIES[name].upstream_layout or ""]


def _differences(name: str, tensors: Mapping[str, Tensor]) -> list[str]:
    """Return in what a file differs from a model's release; nothing where it fits."""
    renaming = rename(_layout(name), tensors)
    wanted = _shapes(name)
    given = {ours: tuple(tensors[theirs].shape) for theirs, ours in renaming.used.items()}
    differences = [f"it has {theirs}, which is not of this release" for theirs in renaming.left_over]
    differences += [f"{ours} is missing" for ours in wanted if ours not in given]
    differences += [f"it has {ours}, which the model has not" for ours in given if ours not in wanted]
    differences += [
        f"{ours} is {given[ours]} instead of {wanted[ours]}"
        for ours in wanted
        if ours in given and given[ours] != wanted[ours]
    ]
    return differences


@lru_cache
def _shapes(name: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = create_model(name)
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def _unknown_layout(path: Path, tensors: Mapping[str, Tensor], fits: Mapping[str, list[str]]) -> str:
    parts = Counter(name.split(".")[0] for name in tensors)
    held = ", ".join(f"{_shown(part)} ({count})" for part, count in parts.most_common(5))
    number = counted(len(tensors), "tensor")
    lines = [f"{path} holds {number} ({held}) and fits no release that convert knows. Nearest:"]
    for name in sorted(fits, key=lambda n: len(fits[n]))[:3]:
        count = counted(len(fits[name]), "difference")
        first = "; ".join(map(_shown, fits[name][:3]))
        lines.append(f"  {name}: {count}: {first}{' …' if len(fits[name]) > 3 else ''}")
    lines.append("Convert takes the authors' own files; for a network of your own use poster_zoo.save_pretrained.")
    return "\n".join(lines)


def _shown(text: str) -> str:
    """Return something with a name from the file in a form that is safe and short to print."""
    return printable(text if len(text) <= 200 else f"{text[:200]}…")


# ------------------------------------------------------------------------------------------------------------ proving


def _config(found: _Recognised) -> dict[str, Any]:
    with torch.device("meta"):
        return model_config(create_model(found.name))


def _prove(found: _Recognised, file: Path) -> float:
    """Check a written file against its checkpoint and return the largest difference of the answers.

    Raises:
        WeightsError: They differ; the file is not to be used.
    """
    written = load_file(file)
    stems = {f"{stem}.weight" for stem in found.entry.first_conv} if found.entry.upstream_bgr else set()
    for theirs, ours in found.renaming.used.items():
        back = written[ours].flip(1) if ours in stems else written[ours]
        original = found.tensors[theirs]
        if back.dtype != original.dtype or not torch.equal(_bits(back), _bits(original)):
            raise WeightsError(f"The conversion went wrong: {theirs} does not come back as it was. {_OUR_BUG}")
    with torch.device("meta"):
        model = create_model(found.name).eval()
    model.load_state_dict(written, assign=True)
    images = _test_images(found.entry)
    with torch.inference_mode():
        answers = _as_tuple(model.float()(images))
    expected, tolerance = _authors_answers(found, model, images)
    difference = max(float((a - e).abs().max()) for a, e in zip(answers, expected, strict=True))
    if not difference <= tolerance * max(1.0, *(float(e.abs().max()) for e in expected)):
        raise WeightsError(
            f"The converted weights of {found.name} answer with a difference of {difference:.2g}. "
            "The checkpoint's numbers may be damaged (not finite); compare its sha256 with its origin's."
        )
    return difference


def _test_images(entry: Weights) -> Tensor:
    """Return two random images such as the model takes: a detector takes small ones too, in 0…255."""
    generator = torch.Generator().manual_seed(0)
    if entry.detects:
        return torch.rand(2, 3, 96, 128, generator=generator) * 255
    return torch.randn(2, 3, *entry.preprocessing.size, generator=generator)


def _authors_answers(found: _Recognised, model: nn.Module, images: Tensor) -> tuple[tuple[Tensor, ...], float]:
    """Return what the authors' graph, or else their tensors in `model`, answer, and how near ours must be to that."""
    if found.path.suffix == ".onnx":
        return run_graph(found.path, images), 1e-3
    model.load_state_dict(found.by_our_names(fold=False), assign=True)
    with torch.inference_mode():
        return _as_tuple(model.float()(images.flip(1) if found.entry.upstream_bgr else images)), 1e-5


def _as_tuple(answer: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (answer,) if isinstance(answer, Tensor) else answer


_OUR_BUG = "This is our bug: please report it with the name of the file and where it came from."


def _bits(tensor: Tensor) -> Tensor:
    """Return a tensor's memory as bytes: equal numbers that are not a number compare equal too."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _provenance(found: _Recognised, path: Path) -> str:
    order = "turned from BGR to RGB input" if found.entry.upstream_bgr else "RGB, as released"
    return (
        f"Converted from `{path.name}` by poster-zoo: {len(found.renaming.used)} tensors used, "
        f"{len(found.renaming.dropped)} never run and dropped; stems {order}."
    )
