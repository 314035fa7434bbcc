"""`poster-zoo publish`: weights on the Hub, for `hf-hub:ORG/NAME`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from poster_zoo.cli.options import examples, json_option
from poster_zoo.cli.output import note, print_json, print_table
from poster_zoo.errors import printable

if TYPE_CHECKING:
    from poster_zoo import Published


@click.command(
    "publish",
    epilog=examples(
        "poster-zoo publish poster_tiny my-name/poster_tiny --dry-run",
        "poster-zoo publish poster_tiny my-name/poster_tiny --private --revision v1 --dry-run --json",
    ),
)
@click.argument("source", metavar="DIR_OR_MODEL", type=click.Path())
@click.argument("repository", metavar="ORG/NAME")
@click.option("--private", is_flag=True, help="Make the repository private.")
@click.option("--revision", metavar="BRANCH", help="Branch to commit to; made where it is missing.  [default: main]")
@click.option("--message", metavar="TEXT", help="Title of the commit.")
@click.option("--dry-run", is_flag=True, help="Show every file and the model card; send nothing.")
@json_option("Print one JSON object: repo_id, revision, private, files (path, size, sha256), card, commit, url.")
def command(
    source: str, repository: str, private: bool, revision: str | None, message: str | None, dry_run: bool, as_json: bool
) -> None:
    """Publish weights on the Hub as ORG/NAME, in one commit.

    DIR_OR_MODEL is a folder that save_pretrained or `poster-zoo convert` wrote, or the name of a model whose weights
    are on this machine. config.json, model.safetensors and the model card are sent, whatever else lies there. A card
    is written where neither the folder nor the branch on the Hub has a README.md; for weights of your own it states
    no licence, so add yours.

    Needs a token that may write: set HF_TOKEN or run `hf auth login`.

    Tried with huggingface_hub's client against a stand-in for the Hub; not yet on the real one.
    """
    import poster_zoo

    published = poster_zoo.push_to_hub(
        source, repository, private=private, revision=revision, commit_message=message, dry_run=dry_run
    )
    if as_json:
        print_json(published.to_dict())
    else:
        _tell(published)
    if dry_run:
        note(f"Nothing was sent. Without --dry-run this goes to {published.address.removeprefix('hf-hub:')}.")


def _tell(published: Published) -> None:
    files = [(file.path, f"{file.size:,}", file.sha256) for file in published.files]
    print_table([("file", "bytes", "sha256"), *files], right=[1])
    if published.commit is None:
        card = "\n".join(printable(line) for line in published.card.splitlines())
        click.echo(f"\n{card}")
        return
    click.echo(f"Published: {published.url}")
    click.echo(f'Load it with poster_zoo.create_model("{published.address}") or --model {published.address}')
