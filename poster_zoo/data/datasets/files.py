"""Where the images of a dataset lie: loose files, or members of a zip archive."""

from __future__ import annotations

import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath

from poster_zoo.errors import DatasetError, ImageError, MissingImageError

__all__ = ["Files", "Images", "ZipMembers", "archive_names"]


class Images(ABC):
    """Images in a fixed order. It is copied to other processes, so it holds names, never open files."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def source(self, index: int) -> str:
        """Return a name by which a person finds the image."""

    @abstractmethod
    def read(self, index: int) -> bytes:
        """Return the bytes of the image's file.

        Raises:
            MissingImageError: There is no such file.
            ImageError: It cannot be read.
        """


class Files(Images):
    """Files below a folder, or anywhere.

    Args:
        root: The folder.
        names: Paths, as seen from `root`, or absolute.
    """

    def __init__(self, root: str | os.PathLike[str], names: Sequence[str]) -> None:
        self.root = os.fspath(root)
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def source(self, index: int) -> str:
        """Return the file's path."""
        return os.path.join(self.root, self.names[index])

    def read(self, index: int) -> bytes:
        """Return the file's bytes."""
        path = self.source(index)
        try:
            return Path(path).read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise MissingImageError(f"{path!r} does not exist; check the path.") from error
        except (OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise ImageError(f"{path!r} cannot be opened: {reason}; check the path and its permissions.") from error


class ZipMembers(Images):
    """Members of one zip archive.

    Args:
        archive: The archive's path.
        members: Their names in it.
    """

    def __init__(self, archive: str | os.PathLike[str], members: Sequence[str]) -> None:
        self.archive = os.fspath(archive)
        self.members = members

    @classmethod
    def by_name(cls, archive: str | os.PathLike[str], names: Sequence[str]) -> ZipMembers:
        """Return the members that end with these names, whatever folder the archive keeps them in.

        Raises:
            DatasetError: The archive cannot be read.
        """
        there = {PurePosixPath(member).name: member for member in archive_names(archive)}
        return cls(archive, [there.get(PurePosixPath(name).name, name) for name in names])

    def __len__(self) -> int:
        return len(self.members)

    def source(self, index: int) -> str:
        """Return the archive's path and the member's name, as if the archive were a folder."""
        return f"{self.archive}/{self.members[index]}"

    def read(self, index: int) -> bytes:
        """Return the member's bytes."""
        try:
            return _opened(self.archive, os.getpid()).read(self.members[index])
        except KeyError as error:
            raise MissingImageError(f"{self.source(index)!r} does not exist; the archive has no such file.") from error
        except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise ImageError(f"{self.source(index)!r} cannot be unpacked: {error}; fetch the archive again.") from error


def archive_names(archive: str | os.PathLike[str]) -> list[str]:
    """Return the names of an archive's members.

    Raises:
        DatasetError: The archive cannot be read.
    """
    try:
        return _opened(os.fspath(archive), os.getpid()).namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise DatasetError(
            f"{os.fspath(archive)!r} cannot be read as a zip archive: {error}; fetch it again."
        ) from error


@lru_cache(maxsize=16)
def _opened(archive: str, process: int) -> zipfile.ZipFile:
    """Return an archive, open for `process` alone: a forked one would share, and move, the place in the file."""
    return zipfile.ZipFile(archive)
