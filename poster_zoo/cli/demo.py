"""`poster-zoo demo`: a local page to try the models on."""

from __future__ import annotations

import contextlib
import threading

import click

from poster_zoo.cli.options import Seconds, device_option, examples
from poster_zoo.cli.output import note


@click.command(
    "demo", epilog=examples("poster-zoo demo", "poster-zoo demo --port 8000 --model poster_tiny --max-upload 20")
)
@click.option(
    "-m",
    "--model",
    "models",
    multiple=True,
    metavar="MODEL",
    help="A model to choose from; may be given several times.  [default: those that are in the package]",
)
@device_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen; 0.0.0.0 lets others in.")
@click.option(
    "--port", type=click.IntRange(1, 65535), metavar="N", help="The port.  [default: the first free one from 7860 on]"
)
@click.option(
    "--max-upload",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    metavar="MB",
    help="The largest file that is taken.",
)
@click.option(
    "--seconds",
    type=Seconds(min=0, min_open=True),
    default=60,
    show_default=True,
    metavar="S",
    help="How much of a video is answered.",
)
def command(
    models: tuple[str, ...], device: str | None, host: str, port: int | None, max_upload: int, seconds: float
) -> None:
    """Serve a page on which one drops a photograph or a video, or uses the camera.

    Prints the page's address and serves until Ctrl-C. Only this machine gets in unless --host says otherwise; nothing
    is sent out. Needs poster-zoo[demo], and poster-zoo[video] for videos.
    """
    from poster_zoo.demo import build_page, serve

    page = build_page(models or None, seconds=seconds, device=device)
    with serve(page, host=host, port=port, max_upload=max_upload) as address:
        click.echo(address)
        note("Serving; Ctrl-C ends it.")
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
