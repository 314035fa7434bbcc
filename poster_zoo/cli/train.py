"""`poster-zoo train`: a model, a recipe, faces."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from poster_zoo.cli.options import examples, json_option
from poster_zoo.cli.output import note, print_json, print_table
from poster_zoo.errors import PosterZooError, counted

if TYPE_CHECKING:
    from accelerate import Accelerator

    from poster_zoo.data.check import Report
    from poster_zoo.train import Recipe, Training
    from poster_zoo.train.prepare import Faces
    from poster_zoo.train.run import RunFolder

# What run.json holds of the command, so that --resume needs none of it again; and what it holds under "options", which
# may be another each time.
_KEPT = ("model", "pretrained", "pretrained_streams", "checkpoint", "new_head", "data", "skip_bad")
_RECALLED = ("device", "check", "workers", "save_every")
# Options that are fields of the recipe.
_FIELDS = ("epochs", "batch_size", "seed", "select_on")
_PRECISION = "ACCELERATE_MIXED_PRECISION"  # where `accelerate launch --mixed_precision` puts it


@click.command(
    "train",
    epilog=examples(
        "poster-zoo train --model poster_tiny --pretrained --data folder:faces --out runs/faces --epochs 2",
        "poster-zoo train --out runs/faces --resume --json",
    ),
)
@click.option(
    "-m",
    "--model",
    metavar="MODEL",
    help="A name of `poster-zoo list`, hf-hub:OWNER/NAME or local-dir:FOLDER.",
)
@click.option("--data", multiple=True, metavar="NAME:PATH", help="Faces, as rafdb:DIR; several are joined.")
@click.option("--out", required=True, type=click.Path(file_okay=False), metavar="RUN", help="Folder of the run.")
@click.option("--recipe", metavar="NAME", help="rafdb, study …, or a run's recipe.json.  [default: the model's own]")
@click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Change any field of the recipe.")
@click.option("--epochs", type=int, help="How often the images are gone through.")
@click.option("--batch-size", type=int, help="Images a step, over all processes.")
@click.option("--seed", type=int, help="Of everything random.")
@click.option(
    "--select-on",
    type=click.Choice(["valid", "test"]),
    help="Images by which the best epoch is chosen; test is what the authors did.",
)
@click.option("--pretrained/--no-pretrained", default=None, help="Begin with the model's weights, or without.")
@click.option(
    "--pretrained-streams/--no-pretrained-streams",
    default=None,
    help="Begin a POSTER that has no weights with those of ir50 and mobilefacenet (the tiny ones: with poster_tiny's "
    "landmark stream), or with random numbers, the landmark stream learning too.  [default: with the weights]",
)
@click.option("--checkpoint", type=click.Path(), metavar="FILE", help="Begin with these weights.")
@click.option("--new-head", is_flag=True, help="Give the model a new head, for the classes of the data.")
@click.option("--resume", is_flag=True, help="Go on with the run in RUN; other options need not be said again.")
@click.option("--skip-bad", is_flag=True, help="Leave out images and labels that cannot be used.")
@click.option("--check/--no-check", default=True, help="Read every image before the first step.  [default: check]")
@click.option("--workers", type=click.IntRange(min=0), default=0, show_default=True, help="Processes that load images.")
@click.option(
    "--save-every", type=click.IntRange(min=0), default=500, show_default=True, help="Steps between two checkpoints."
)
@click.option(
    "--device",
    metavar="KIND",
    help="cpu, cuda, mps …; CUDA_VISIBLE_DEVICES says which GPUs.  [default: GPUs where there are any]",
)
@json_option("Print one JSON object: out, epochs, best_epoch, best and last (rows of metrics.jsonl).")
def command(**options: Any) -> None:
    """Train a model by a recipe and write everything about it into RUN.

    RUN/best and RUN/last are models at once, for `--model local-dir:RUN/best`. Labels are matched by name: a class of
    the data that the model lacks is an error, unless --new-head gives the model the data's classes.

    A POSTER begins with pretrained streams, as the authors' training does; those weights have to be installed first,
    see `poster-zoo convert --help`.

    Every image is read before the first step. Where a collection has no validation part, a tenth of train is kept
    back to choose the best epoch by, persons whole.

    A run that was killed, at any moment, goes on with --resume, on a CPU to the same numbers bit for bit. Ctrl-C
    finishes the step and saves.

    On several GPUs or machines: accelerate launch -m poster_zoo.train, with the same options.
    """
    from poster_zoo.train import make_accelerator
    from poster_zoo.train.processes import largest, on_main
    from poster_zoo.train.run import RunFolder

    ctx = click.get_current_context()
    run = RunFolder(options["out"])
    if options["resume"]:
        _recall(ctx, options, run.path)
    accelerator = make_accelerator(options["device"])
    with _said_once(ctx, accelerator), run:
        # torchrun starts its processes again by the same command; which ones, not every machine knows.
        options["resume"] = bool(largest(accelerator, options["resume"] or _started_again(run.path)))
        wanted, recipe = on_main(accelerator, lambda: _asked(ctx, options, run.path))
        training = _train(wanted, recipe, options, accelerator, run)
    if accelerator.is_main_process:
        _tell(training, options["as_json"])
    accelerator.end_training()


def _recall(ctx: click.Context, options: dict[str, Any], out: Path) -> None:
    """Put in the options that are not typed as they were when the run was started last."""
    from poster_zoo.train.run import read_json

    stored = read_json(out / "run.json", {}).get("options", {})
    for name in _RECALLED:
        if name in stored and not _is_typed(ctx, name):
            options[name] = stored[name]


def _is_typed(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _started_again(out: Path) -> bool:
    """Return whether torchrun has started this job before.

    Its count is of the deaths that one machine has seen. A machine that comes or goes also has all processes started
    again, and is not counted: the run knows that job by its id.
    """
    from poster_zoo.train.run import launched_by, read_json

    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0:
        return True
    starts = read_json(out / "environment.json", [])
    return launched_by() is not None and launched_by() in [start.get("torchrun") for start in starts]


def _asked(ctx: click.Context, options: Mapping[str, Any], out: Path) -> tuple[dict[str, Any], Recipe]:
    """Return what is to be trained on what, and the recipe; what is not said comes from the run that is resumed."""
    from poster_zoo.train import find_recipe, recipe_for, with_settings
    from poster_zoo.train.prepare import saved_config
    from poster_zoo.train.run import read_json

    stored = read_json(out / "run.json", {}) if options["resume"] else {}
    wanted = {name: options[name] if name not in stored or _is_typed(ctx, name) else stored[name] for name in _KEPT} | {
        "data": list(options["data"] or stored.get("data", ()))
    }
    for name in ("model", "data"):
        if not wanted[name]:
            no_run = f" In {str(out)!r} there is no run to go on with." if options["resume"] else ""
            raise click.UsageError(f"Missing option '--{name}'.{no_run}")
    if wanted["skip_bad"] and not options["check"]:
        raise click.UsageError("--skip-bad leaves out what the check finds; --no-check does not go with it.")

    if options["recipe"]:
        recipe = find_recipe(options["recipe"])
    elif stored and (out / "recipe.json").is_file():
        recipe = find_recipe(str(out / "recipe.json"))
    else:
        config = saved_config(wanted["model"], wanted["checkpoint"])
        recipe = recipe_for(config.get("architecture", str(wanted["model"])))
    settings = {name: options[name] for name in _FIELDS if options[name] is not None}
    for setting in options["settings"]:
        name, equals, value = setting.partition("=")
        if not equals:
            raise click.UsageError(f"--set {setting!r} sets nothing; write FIELD=VALUE.")
        settings[name.strip()] = value
    launched = os.environ.get(_PRECISION, "no")
    if launched != "no":
        settings.setdefault("precision", launched)
    return wanted, with_settings(recipe, settings)


def _train(
    wanted: dict[str, Any], recipe: Recipe, options: Mapping[str, Any], accelerator: Accelerator, run: RunFolder
) -> Training:
    from poster_zoo.train import label_names_of, train
    from poster_zoo.train.prepare import build_model, model_arguments, open_faces, saved_config
    from poster_zoo.train.processes import by_all, on_main
    from poster_zoo.train.run import check_run, reached, selection_words

    facts = wanted | {"options": {name: options[name] for name in _RECALLED}}
    # Refused before the long work; written down before it too, but only once it is clear what it is.
    on_main(accelerator, lambda: check_run(run.path, recipe.to_dict(), facts, options["resume"]))
    last = on_main(accelerator, lambda: reached(run.path) if options["resume"] else None)
    say = note if accelerator.is_main_process else _silent

    def opened() -> tuple[Any, Faces, dict[str, Any]]:
        model = build_model(
            wanted["model"],
            recipe,
            pretrained=wanted["pretrained"],
            pretrained_streams=wanted["pretrained_streams"],
            checkpoint=wanted["checkpoint"],
            last=last,
        )
        labels = () if wanted["new_head"] else label_names_of(model)
        faces = open_faces(wanted["data"], recipe, labels)
        if not labels:
            model.reset_classifier(len(faces.data.label_names))
        config = saved_config(f"local-dir:{last}") if last else saved_config(wanted["model"], wanted["checkpoint"])
        return model, faces, model_arguments(config)

    model, faces, arguments = by_all(accelerator, opened)
    on_main(accelerator, lambda: run.claim(recipe, facts, options["resume"]))
    if not getattr(model, "freeze_landmarks", True):
        say("All begins with random numbers, and the landmark stream learns with the rest.")
    if options["check"]:
        faces = _checked(faces, wanted["skip_bad"], accelerator)
    held, valid = counted(len(faces.data), "image"), counted(len(faces.valid), "image")
    say(f"{held} to train on. {selection_words(recipe.select_on)}: {valid}.")

    def tell_epoch(row: Mapping[str, Any]) -> None:
        say(_epoch_line(row, recipe))

    try:
        return train(
            model,
            recipe,
            faces.data,
            faces.valid,
            run,
            resume=options["resume"],
            label_names=faces.data.label_names,
            model_args=arguments,
            facts=facts,
            accelerator=accelerator,
            workers=options["workers"],
            save_every=options["save_every"],
            on_epoch=tell_epoch,
        )
    except (KeyboardInterrupt, SystemExit):
        say(f"What was reached is in {options['out']}; --resume goes on from there.")
        raise


def _checked(faces: Faces, skip_bad: bool, accelerator: Accelerator) -> Faces:
    """Return the faces that can be used, after all were read in the main process."""
    from poster_zoo.data.check import check_dataset
    from poster_zoo.train.processes import by_all, on_main

    report = on_main(accelerator, lambda: check_dataset(faces.parts))
    if accelerator.is_main_process:
        _tell_counts(report)
    return by_all(accelerator, lambda: faces.usable(report, skip_bad))


def _tell_counts(report: Report) -> None:
    labels = list(report.splits[0].counts)
    rows = [(part.collection, part.split, str(part.images), *map(str, part.counts.values())) for part in report.splits]
    print_table([("collection", "split", "images", *labels), *rows], right=range(2, 3 + len(labels)), err=True)
    for line in report.warnings():
        note(line)


def _epoch_line(row: Mapping[str, Any], recipe: Recipe) -> str:
    split = recipe.select_on
    return (
        f"epoch {row['epoch']} of {recipe.epochs}: "
        f"train loss {row['train_loss']:.4f}, accuracy {row['train_accuracy']:.4f}; "
        f"{split} loss {row[f'{split}_loss']:.4f}, accuracy {row[f'{split}_accuracy']:.4f}, "
        f"mean class accuracy {row[f'{split}_mean_class_accuracy']:.4f}; {row['images_per_second']:.1f} images/s"
    )


def _tell(training: Training, as_json: bool) -> None:
    best, last = training.rows[training.best_epoch - 1], training.rows[-1]
    if as_json:
        print_json(
            {"out": str(training.out), "epochs": len(training.rows), "best_epoch": best["epoch"]}
            | {"best": best, "last": last}
        )
        return
    names = [name for name in best if name.endswith(("loss", "accuracy", "macro_f1"))]
    rows = [(name.replace("_", " "), f"{best[name]:.4f}", f"{last[name]:.4f}") for name in names]
    print_table([("", f"best: epoch {best['epoch']}", f"last: epoch {last['epoch']}"), *rows], right=[1, 2])
    click.echo(f"\nThe best epoch's model: --model local-dir:{training.out / 'best'}")


def _silent(text: str) -> None:
    """Say nothing: another process says it."""


@contextmanager
def _said_once(ctx: click.Context, accelerator: Accelerator) -> Iterator[None]:
    """Leave what goes wrong in several processes to one of them to say."""
    try:
        yield
    except (PosterZooError, KeyboardInterrupt) as error:
        said = not accelerator.is_main_process if isinstance(error, KeyboardInterrupt) else error.said
        if not said:
            raise
        ctx.exit(1)
