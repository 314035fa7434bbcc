"""The command line, `poster-zoo COMMAND`; each command is a file beside this one that defines `command`.

A command parses, calls the library and prints: results to stdout, words to stderr. Command files import nothing heavy
at their top, so that `--help` answers at once; what a command needs it imports when it runs.
"""

from __future__ import annotations

import click

from poster_zoo._version import __version__
from poster_zoo.cli import (
    bench,
    convert,
    data,
    demo,
    eval,
    explain,
    export,
    info,
    landmarks,
    list_models,
    predict,
    prepare,
    publish,
    train,
    video,
)
from poster_zoo.cli.errors import CommandGroup

__all__ = ["main"]


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="poster-zoo")
def main() -> None:
    """Name the expressions on faces, with the models of a zoo.

    Results go to stdout, words to stderr. The exit status is 0 when all went well, 1 after a failure, 2 for wrong use.
    """


for module in (
    list_models,
    info,
    predict,
    video,
    landmarks,
    explain,
    prepare,
    data,
    eval,
    train,
    convert,
    export,
    publish,
    bench,
    demo,
):
    main.add_command(module.command)
