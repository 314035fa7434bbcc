"""`python -m poster_zoo.train` is `poster-zoo train`, for launchers: `accelerate launch -m poster_zoo.train …`."""

from __future__ import annotations

import sys

from poster_zoo.cli.errors import CommandGroup
from poster_zoo.cli.train import command

if __name__ == "__main__":
    CommandGroup("poster-zoo", {"train": command})(["train", *sys.argv[1:]], prog_name="poster-zoo")
