"""Compare what the sdist and the wheel hold with what the checkout holds.

The sdist must hold every file of the checkout but those of CI and git themselves, the wheel every file of the
package and its metadata, and neither anything else.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = (".ci/", ".gitignore")
MADE_BY_SETUPTOOLS = ("PKG-INFO", "poster_zoo.egg-info/")


def checkout() -> set[str]:
    """Return the files of the checkout: those git knows, and new ones that it does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return {name for name in listed.split("\0") if name and not name.startswith(LEFT_OUT) and (ROOT / name).exists()}


def sdist(path: Path) -> set[str]:
    """Return the files of an sdist, less what setuptools adds to it."""
    with tarfile.open(path) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    return {name for name in names if not name.startswith(MADE_BY_SETUPTOOLS)}


def wheel(path: Path) -> set[str]:
    """Return the files of a wheel, less its metadata."""
    with zipfile.ZipFile(path) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def differences(what: str, found: set[str], wanted: set[str]) -> list[str]:
    """Return one line for each file that is missing from or strange in a distribution."""
    missing = [f"{what} lacks {name}" for name in sorted(wanted - found)]
    return missing + [f"{what} holds {name}, which it should not" for name in sorted(found - wanted)]


def main(folder: Path) -> int:
    """Compare the one sdist and the one wheel in a folder; return the exit status."""
    (source,), (built,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    wanted = checkout()
    package = {name for name in wanted if name.startswith("poster_zoo/")}
    faults = differences(source.name, sdist(source), wanted) + differences(built.name, wheel(built), package)
    same = f"{source.name}: {len(wanted)} files, {built.name}: {len(package)} files, as in the checkout"
    print("\n".join(faults) if faults else same)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
