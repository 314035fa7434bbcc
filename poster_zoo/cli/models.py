"""How commands get at models and at the processes that share their work."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import click

from poster_zoo.cli.errors import WrongUse
from poster_zoo.cli.output import note
from poster_zoo.errors import LabelError

if TYPE_CHECKING:
    from accelerate import PartialState
    from PIL.Image import Image

    from poster_zoo.faces import Face
    from poster_zoo.predict import Predictor

__all__ = ["join", "load_model", "load_predictor", "model_name", "prints", "surest_face"]


def load_model(ctx: click.Context, model: str, checkpoint: str | None) -> Any:
    """Return what `Predictor` takes: the model's name, or the model of a checkpoint."""
    if checkpoint is None:
        return model
    import poster_zoo

    given = ctx.get_parameter_source("model") is click.core.ParameterSource.COMMANDLINE
    return poster_zoo.load_checkpoint(checkpoint, model if given else None)


def model_name(model: Any) -> str:
    """Return the name of what `load_model` returned."""
    return model if isinstance(model, str) else str(model.pretrained_cfg["architecture"])


def load_predictor(
    model: Any, device: str | None, batch_size: int, processes: PartialState | None, **options: Any
) -> Predictor:
    """Return a predictor of expressions.

    Args:
        model: What `load_model` returned.
        device: As the user gave it; None for a GPU where there is one.
        batch_size: Images at a time.
        processes: Those that share the work, if there are several.
        options: Of `Predictor`.

    Raises:
        WrongUse: The model knows no expressions.
    """
    import torch

    from poster_zoo.predict import Predictor

    if processes is not None and ":" not in (device or ""):
        device = str(processes.device)  # "cuda" is the same GPU for all of them
    # A model that was built from a checkpoint is on the CPU, and a predictor leaves a model where it is.
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with contextlib.suppress(LabelError):
        predictor = Predictor(model, device=device, batch_size=batch_size, optimize=True, **options)
        if predictor.labels:
            return predictor
    raise WrongUse(
        f"The model {model_name(model)!r} has no names of expressions; `poster-zoo list` shows which have classes."
    )


def join(ctx: click.Context, device: str | None) -> PartialState | None:
    """Return the processes that share the work, until the command ends; None where there is one."""
    from poster_zoo.predict import join_processes

    processes = join_processes(device)
    if processes is not None:
        ctx.call_on_close(processes.destroy_process_group)
    return processes


def prints(processes: PartialState | None) -> bool:
    """Return whether it is this process that tells the user."""
    return processes is None or processes.is_main_process


def surest_face(picture: Image, device: str | None) -> Face | None:
    """Return the face that the detector is surest of, and say what was chosen where that is not plain."""
    from poster_zoo.faces import FaceDetector

    (found,) = FaceDetector(device=device).find([picture])
    if len(found) > 1:
        note(f"Of {len(found)} faces the surest is taken.")
    elif not len(found):
        note("No face was found; the whole image is taken.")
    return found[0] if len(found) else None
