"""Link what poster-zoo needs, and nothing else, from this environment into another one.

A second installation of PyTorch would cost some 5 GB. With links, the other environment still holds only what
the package declares (no linter, no test runner, no extra), so that a dependency missing in setup.cfg shows.
"""

from __future__ import annotations

import sys
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement


def needed(name: str) -> dict[str, Distribution]:
    """Return the distributions that `name` needs, directly or not, by name."""
    found: dict[str, Distribution] = {}
    waiting = [Requirement(name)]
    while waiting:
        wanted = waiting.pop()
        here = distribution(wanted.name)
        extras = wanted.extras or {""}
        for line in here.requires or []:
            requirement = Requirement(line)
            applies = requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in extras)
            if applies and requirement.name not in found:
                found[requirement.name] = distribution(requirement.name)
                waiting.append(requirement)
    return found


def link(package: Distribution, site: Path) -> None:
    """Link each top-level file and folder of a distribution into `site`; scripts outside it are left out."""
    for top in {file.parts[0] for file in package.files or []} - {"..", "__pycache__"}:
        here = Path(str(package.locate_file(top)))
        if not (site / top).exists():
            (site / top).symlink_to(here.resolve())


if __name__ == "__main__":
    for one in needed("poster-zoo").values():
        link(one, Path(sys.argv[1]))
