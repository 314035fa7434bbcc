"""`poster-zoo list`: which models there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from poster_zoo.cli.options import examples, json_option
from poster_zoo.cli.output import note, print_json, print_table

if TYPE_CHECKING:
    from poster_zoo import ModelInfo

_WILDCARDS = set("*?[")


@click.command("list", epilog=examples("poster-zoo list", "poster-zoo list 'poster_v2*' --json"))
@click.argument("pattern", metavar="[FILTER]", default="")
@click.option("--pretrained", is_flag=True, help="Only models whose weights can be loaded.")
@json_option("Print one JSON list.")
@click.pass_context
def command(ctx: click.Context, pattern: str, pretrained: bool, as_json: bool) -> None:
    """List the models.

    FILTER is part of a name, or a whole name with wildcards, such as 'poster_v2*'. The exit status is 1 where no model
    matches.
    """
    import poster_zoo

    names = poster_zoo.list_models(pattern if _WILDCARDS & set(pattern) else f"*{pattern}*", pretrained=pretrained)
    models = [poster_zoo.model_info(name) for name in names]
    if as_json:
        print_json([_facts(model) for model in models])
    elif models:
        header = ("model", "parameters", "input", "answers", "weights")
        print_table([header, *(_row(model) for model in models)], right=[1])
    if not models:
        wanted = " with weights" * pretrained + f" whose name matches {pattern!r}" * bool(pattern)
        note(f"There is no model{wanted}; `poster-zoo list` shows all.")
        ctx.exit(1)


def _facts(model: ModelInfo) -> dict[str, Any]:
    return {
        "name": model.name,
        "parameters": model.parameters,
        "input": [3, *model.weights.preprocessing.size],
        "classes": len(model.weights.label_names),
        "weights": model.source.source,
    }


def _row(model: ModelInfo) -> tuple[str, ...]:
    entry = model.weights
    return model.name, f"{model.parameters / 1e6:.2f} M", entry.shown_size, entry.answers, _weights(model)


def _weights(model: ModelInfo) -> str:
    """Return where weights come from: a place on this machine, the Hub where it has them, or the file to convert."""
    entry, source = model.weights, model.source.source
    if model.source.path is not None or (source == "hub" and (entry.sha256 or entry.revision)):
        return source
    return f"none: convert {entry.upstream_file or 'a checkpoint'}" if entry.upstream_layout else "none"
