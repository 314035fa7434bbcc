"""Read what `torch.save` wrote without running anything that the file asks for.

A checkpoint is a pickle: a little program that may call any Python function. This reader runs that program on a
machine of its own, which imports nothing and calls nothing but the few constructors at the end of this file. Every
other name becomes a `Placeholder`, which takes whatever the program does to it and does nothing.

Tensors are views of the file, mapped copy-on-write: memory is used when they are read, and writing to one leaves the
file as it is. (The format from before PyTorch 1.6 does not align its numbers; those are copied.) So the file must not
be cut or overwritten in place while its tensors are in use; replacing it by renaming another does no harm.

What a file is, its first bytes say, never its name; one that is no checkpoint is refused by saying what it is.
"""

from __future__ import annotations

import collections
import io
import itertools
import math
import mmap
import os
import pickletools
import re
import stat
import struct
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, NoReturn, cast

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from poster_zoo.errors import WeightsError, WeightsNotFoundError

__all__ = ["Checkpoint", "Placeholder", "StateDict", "read_checkpoint", "state_dict"]


class Placeholder:
    """What stands where a file names a Python object that is not followed: its name, and nothing else.

    Attributes:
        name: Qualified name as the file writes it, such as "__main__.RecorderMeter".
    """

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<placeholder for {self.name}>"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a file holds.

    Attributes:
        path: The file.
        content: Nested dict, OrderedDict, list, tuple, set, str, bytes, numbers, tensors and placeholders. A hostile
            file can nest them without end or in a circle: never walk it recursively.
        placeholders: Names that were not followed, in the file's order.
    """

    path: Path
    content: object = field(repr=False)
    placeholders: tuple[str, ...] = ()


class StateDict(NamedTuple):
    """The tensors of a model, and how they were packed.

    Attributes:
        tensors: By name, in the file's order, without `prefix`.
        wrapper: Key of the dictionary around them, or None.
        prefix: What stood before every name: "module." or nothing.
    """

    tensors: dict[str, Tensor]
    wrapper: str | None
    prefix: str


class _Refusal(Exception):
    """Why a file is not read, and what to do about it; `read_checkpoint` adds the file's name."""

    def __init__(
        self, reason: str, advice: str = "Fetch it again and compare its size and sha256 with its origin's."
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.advice = advice


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Return what a checkpoint holds: of `torch.save` (its zip format, or the older one) or of safetensors.

    Raises:
        WeightsNotFoundError: There is no such file.
        WeightsError: The file is something else, damaged, or made to do harm.
    """
    try:
        with _open(path) as file:
            source = _Source(file)
            content, placeholders = _reader(source)(source)
    except _Refusal as refusal:
        raise WeightsError(f"{path} cannot be read as a checkpoint: {refusal.reason}. {refusal.advice}") from refusal
    return Checkpoint(Path(path), content, tuple(placeholders))


# The first that is there is taken. An average of the weights comes last: a trainer that keeps one says which it meant.
_WRAPPERS = (
    "model_state_dict",
    "state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "weights",
    "params",
    "model_ema",
    "state_dict_ema",
    "ema_state_dict",
    "ema",
)


def state_dict(checkpoint: Checkpoint) -> StateDict:
    """Return the model's tensors, leaving optimizers, counters and placeholders aside.

    Raises:
        WeightsError: There are no tensors by name, or more than one set of them; the message lists what there is.
    """
    content = checkpoint.content
    packed = content if isinstance(content, dict) else {}
    wrapper = next((key for key in _WRAPPERS if _named_tensors(packed.get(key))), None)
    tensors = _named_tensors(content if wrapper is None else packed[wrapper])
    if not tensors:
        dicts = {id(value): key for key, value in packed.items() if "optim" not in str(key).lower()}  # each once
        others = [key for key in dicts.values() if _named_tensors(packed[key])]
        if len(others) != 1:
            raise WeightsError(
                f"{checkpoint.path} was asked for a model's state dict, but holds {_inventory(content)}, "
                f"{'and which of them is meant is not clear' if others else 'and no tensors by name'}. "
                "Save the model's state_dict() alone with torch.save and read that file."
            )
        wrapper = str(others[0])
        tensors = _named_tensors(packed[others[0]])
    prefix = "module." if all(name.startswith("module.") for name in tensors) else ""
    return StateDict({name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, wrapper, prefix)


def _named_tensors(value: object) -> dict[str, Tensor]:
    """Return the tensors of a dictionary if they are most of what it holds, else nothing."""
    if not isinstance(value, dict):
        return {}
    tensors = {key: item for key, item in value.items() if isinstance(key, str) and isinstance(item, Tensor)}
    return tensors if 2 * len(tensors) > len(value) else {}


def _inventory(content: object, most: int = 8) -> str:
    if not isinstance(content, dict):
        return _kind(content)
    shown = [f"{_quoted(key)} ({_kind(value)})" for key, value in list(content.items())[:most]]
    more = f" and {len(content) - most} more" if len(content) > most else ""
    return f"{', '.join(shown)}{more}" if shown else "an empty dict"


def _kind(value: object) -> str:
    if isinstance(value, Placeholder):
        return f"a pickled {value.name}"
    if isinstance(value, dict | list | tuple | set | frozenset):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__


def _quoted(value: object) -> str:
    """Return something from the file in a form that is safe and short to print."""
    text = ascii(value) if isinstance(value, str | float | bool | None) else f"a {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:100]}…"


# ---------------------------------------------------------------------------------------------------------------------
# The file as bytes


def _open(path: str | os.PathLike[str]) -> BinaryIO:
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            return open(path, "rb")
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a NUL in the name
        raise WeightsNotFoundError(
            f"There is no file {str(path)!r} to read a checkpoint from; check its name."
        ) from error
    except OSError as error:
        raise _Refusal(f"it cannot be opened ({error.strerror})", "Check its permissions and the disk.") from error
    if stat.S_ISDIR(mode):
        raise _Refusal("it is a folder", "Name the file inside it.")
    raise _Refusal("it is a device, pipe or socket", "Name a regular file.")


class _Source:
    """A file's bytes, mapped privately: writing to the mapping does not reach the file."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.size = os.fstat(file.fileno()).st_size
        if not self.size:
            raise _Refusal("it is empty (0 bytes)", "Fetch it again.")
        try:
            self.map = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:  # ValueError: it shrank meanwhile
            raise _Refusal(f"it cannot be mapped into memory ({error})", "Copy it to a local disk.") from error

    @property
    def stream(self) -> IO[bytes]:
        """The mapping as a file: a claimed length costs no more than what is there."""
        return cast("IO[bytes]", self.map)

    def storage(self, offset: int, nbytes: int) -> torch.UntypedStorage:
        """Return part of the file: a view where numbers of any type are aligned, else a copy."""
        if nbytes and offset % 16 == 0:
            return torch.frombuffer(self.map, dtype=torch.uint8, offset=offset, count=nbytes).untyped_storage()
        storage = _empty(nbytes)
        self.copy_into(storage, offset)
        return storage

    def copy_into(self, storage: torch.UntypedStorage, offset: int) -> None:
        """Fill `storage` from the file, past the mapping, so that its pages are not held twice."""
        self.file.seek(offset)
        array = torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage).numpy()
        if self.file.readinto(array) != len(array):  # type: ignore[attr-defined]
            raise _Refusal("it ends in the middle of a tensor", "Fetch it again.")


def _empty(nbytes: int) -> torch.UntypedStorage:
    return torch.empty(nbytes, dtype=torch.uint8, device="cpu").untyped_storage()


_Content = tuple[object, Iterable[str]]

# The number that the older format begins with, as a pickle of protocol 2 or later has it, and one of 0 or 1.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_BYTES, _LEGACY_TEXT = _LEGACY_MAGIC.to_bytes(10, "little"), b"L%dL\n." % _LEGACY_MAGIC


def _reader(source: _Source) -> Callable[[_Source], _Content]:
    head = source.map[:512]
    if head.startswith(b"PK\x03\x04"):
        return _read_zip
    if (head.startswith(b"\x80") and _LEGACY_BYTES in head[:32]) or head.startswith(_LEGACY_TEXT):
        return _read_legacy
    if head[8:9] == b"{":
        return _read_safetensors
    raise _Refusal(*_what_it_is(head, source.size))


_UNPACK = "Unpack it and name the file inside."
_REPACKED = "Fetch the original, or unpack it and pack it again without compression (`zip -0`)."
_CONVERT_ONCE = (
    "If you trust who made it, load it once where it was made and save the model's state_dict() with torch.save; "
    "loading runs what the file asks for."
)
_OTHER_FORMATS: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "it is a git-lfs pointer that stands for the file", "Run `git lfs pull` beside it."),
    (b"PK\x05\x06", "it is an empty zip archive", "Fetch it again."),
    (b"\x1f\x8b", "it is packed with gzip", "Unpack it (`gzip -d`, or `tar -xzf`) and name the file inside."),
    (b"BZh", "it is packed with bzip2", _UNPACK),
    (b"\xfd7zXZ", "it is packed with xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "it is packed with zstandard", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "it is a 7z archive", _UNPACK),
    (b"Rar!", "it is a RAR archive", _UNPACK),
    (b"\x89HDF", "it is an HDF5 file, as Keras writes it", "Name a checkpoint that PyTorch wrote."),
    (b"\x93NUMPY", "it is a NumPy array", "Name a checkpoint that PyTorch wrote."),
    (b"\x80", "it is a plain pickle, not what torch.save writes", _CONVERT_ONCE),
)


def _what_it_is(head: bytes, size: int) -> tuple[str, str]:
    """Return what a file that is no checkpoint is, and what to do, from its first bytes."""
    for start, what, advice in _OTHER_FORMATS:
        if head.startswith(start):
            return what, advice
    if head[257:262] == b"ustar":
        member = head[:100].rstrip(b"\0").decode("ascii", "replace")
        if member in ("sys_info", "pickle", "storages", "tensors"):
            return "it has the tar format of PyTorch before 0.2, which is not read safely", _CONVERT_ONCE
        return (
            f"it is a tar archive that begins with {_quoted(member)}",
            "Unpack it (`tar -xf`) and name the file inside.",
        )
    if re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml|!--)", head, re.IGNORECASE):
        return (
            "it is a web page, which file-sharing drives send in place of a file",
            "Open its link in a browser, press download, and name the file that arrives.",
        )
    if re.match(rb"\x08[\x01-\x20][\x12\x1a\x22\x2a\x32\x3a\x42]", head):  # ir_version, then another field
        return "it looks like an ONNX model", "Name the PyTorch checkpoint that it was exported from."
    if not re.search(rb"[^\t\n\f\r\x20-\x7e]", head):
        return f"it is a text of {size} bytes that begins {_quoted(head[:60].decode())}", "Fetch the file again."
    return (
        f"its first bytes ({head[:8].hex(' ')}) belong to no format that is known here",
        "Name a file that torch.save wrote.",
    )


# ---------------------------------------------------------------------------------------------------------------------
# The three formats


def _read_safetensors(source: _Source) -> _Content:
    try:
        return safetensors.torch.load_file(cast(str, source.file.name)), ()
    except safetensors.SafetensorError as error:
        raise _Refusal(f"it begins like a safetensors file, but is not a whole one ({_quoted(str(error))})") from error


# A pickle of ten thousand tensors has one megabyte; more than this is no list of tensors.
_LARGEST_PICKLE = 1 << 26


def _read_zip(source: _Source) -> _Content:
    try:
        with zipfile.ZipFile(source.stream) as archive:
            entries, end = archive.infolist(), archive.start_dir
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, OverflowError, struct.error) as error:
        raise _Refusal("it begins like a zip archive, but is damaged or cut off", "Fetch it again.") from error
    root = _zip_root([entry.filename for entry in entries])
    records = _zip_records(source.map, entries, end)

    def record(name: str) -> bytes:
        offset, nbytes = records[root + name]
        if nbytes > _LARGEST_PICKLE:
            raise _Refusal(f"its record {name} has {nbytes} bytes, too many for a list of tensors")
        return source.map[offset : offset + nbytes]

    if root + "byteorder" in records:
        _check_byteorder(record("byteorder") == b"little")
    machine = _Machine(_ZipStorages(source, records, root))
    return machine.read(io.BytesIO(record("data.pkl"))), machine.unfollowed


def _check_byteorder(little: bool) -> None:
    if little != (sys.byteorder == "little"):
        raise _Refusal(
            "its numbers have another byte order than this machine's", "Save it again on a machine like this."
        )


def _zip_root(names: list[str]) -> str:
    """Return the folder, with its slash, that torch.save has put the records in."""
    if any(name.endswith("/constants.pkl") for name in names):
        raise _Refusal("it is a TorchScript archive, which holds a program", _CONVERT_ONCE)
    if any(name.endswith(("archive_format", "serialized_exported_program.json")) for name in names):
        raise _Refusal("it is an archive of torch.export, which holds a program", _CONVERT_ONCE)
    roots = [name.removesuffix("data.pkl") for name in names if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if len(set(names)) != len(names):
        raise _Refusal("it is a zip archive with two records of one name")
    if len(roots) != 1:
        among = f", {_quoted(names[0])} among them" if names else ""
        raise _Refusal(f"it is a zip archive of {len(names)} files{among}, but not torch.save's", _UNPACK)
    return roots[0]


def _zip_records(data: mmap.mmap, entries: list[zipfile.ZipInfo], end: int) -> dict[str, tuple[int, int]]:
    """Return the offset and size of each record's bytes, having refused what torch.save does not write.

    Records are stored as they are, say the same in both of their headers, and do not overlap: so what is read is part
    of the file, and taken together no larger than it.
    """
    records = {entry.filename: _record(data, entry) for entry in entries}
    spans = sorted((entry.header_offset, sum(records[entry.filename])) for entry in entries)
    if any(stop > start for (_, stop), (start, _) in itertools.pairwise([*spans, (end, end)])):
        raise _Refusal("it is a zip archive whose records overlap")
    return records


def _record(data: mmap.mmap, entry: zipfile.ZipInfo) -> tuple[int, int]:
    local = data[entry.header_offset : entry.header_offset + 30]
    if entry.header_offset < 0 or len(local) < 30 or not local.startswith(b"PK\x03\x04"):
        raise _Refusal("it is a zip archive with a record that is not where its directory says", "Fetch it again.")
    packed, size, name_length, extra_length = struct.unpack("<IIHH", local[18:30])
    name_end = entry.header_offset + 30 + name_length
    if data[name_end - name_length : name_end] != entry.orig_filename.encode(
        "utf-8" if entry.flag_bits & 0x800 else "cp437"
    ):
        raise _Refusal("it is a zip archive with a record that has two names")
    if entry.flag_bits & 1 or entry.compress_type != zipfile.ZIP_STORED:
        raise _Refusal(
            "it is a zip archive whose records are packed or encrypted, which torch.save does not do", _REPACKED
        )
    stated = {packed, size} - {0xFFFFFFFF}  # that is zip64's "see elsewhere"
    if entry.flag_bits & 8:  # both sizes follow the bytes, and need not stand here
        stated.discard(0)
    if stated - {entry.file_size} or entry.compress_size != entry.file_size:
        raise _Refusal("it is a zip archive with a record that has two sizes")
    return name_end + extra_length, entry.file_size


def _read_legacy(source: _Source) -> _Content:
    """Read five pickles (magic number, version, system, content, storage keys), then each storage: length and bytes."""
    _, version, system = (_Machine(_no_storage).read(source.stream) for _ in range(3))
    if not _is_count(version) or version != 1001 or not isinstance(system, dict):
        raise _Refusal("it has an older PyTorch format of an unknown version", _CONVERT_ONCE)
    _check_byteorder(system.get("little_endian") is True)
    storages = _LegacyStorages(source)
    machine = _Machine(storages)
    content = machine.read(source.stream)
    storages.fill(machine.read(source.stream))
    return content, machine.unfollowed


class _Storage(Placeholder):
    """A run of numbers from the file while tensors are made of it; in content it is a placeholder."""

    __slots__ = ("bytes", "dtype")

    def __init__(self, name: str, dtype: torch.dtype, data: torch.UntypedStorage) -> None:
        super().__init__(name)
        self.dtype = dtype
        self.bytes = data


def _storage_types() -> dict[str, torch.dtype]:
    dtypes = {
        "Double": torch.float64,
        "Float": torch.float32,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
        "ComplexDouble": torch.complex128,
        "ComplexFloat": torch.complex64,
        "Untyped": torch.uint8,
    }
    modules = ("torch", "torch.cuda", "torch.storage")
    return {f"{module}.{name}Storage": dtype for module in modules for name, dtype in dtypes.items()}


_STORAGE_TYPES = _storage_types()
# More numbers than any disk holds: sizes beyond it would overflow in products.
_LARGEST = 1 << 48


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < _LARGEST


class _StorageId(NamedTuple):
    kind: str
    dtype: torch.dtype | None
    key: str
    nbytes: int
    view: object


def _storage_id(value: object) -> _StorageId:
    """Return what a persistent id says: ("storage", kind, key, device, numel), in the older format with a view too."""
    match value[:6] if isinstance(value, tuple) else None:
        case ("storage", Placeholder(name=kind), str(key), _, int(numel), *view) if _is_count(numel):
            dtype = _STORAGE_TYPES.get(kind)
            return _StorageId(kind, dtype, key, numel * (dtype.itemsize if dtype else 1), view[0] if view else None)
    raise _Refusal("it refers to a storage in an unknown way")


def _no_storage(_: object) -> NoReturn:
    raise _Refusal("it refers to a storage where none can be")


class _ZipStorages:
    """Finds storages in the records of a zip archive."""

    def __init__(self, source: _Source, records: dict[str, tuple[int, int]], root: str) -> None:
        self.source = source
        self.records = records
        self.root = root
        self.found: dict[str, torch.UntypedStorage] = {}

    def __call__(self, persistent_id: object) -> Placeholder:
        wanted = _storage_id(persistent_id)
        if wanted.dtype is None:  # quantised numbers, say
            return Placeholder(wanted.kind)
        if wanted.key not in self.found:
            try:
                self.found[wanted.key] = self.source.storage(*self.records[f"{self.root}data/{wanted.key}"])
            except KeyError as error:
                raise _Refusal(f"it has no record for the storage {_quoted(wanted.key)}") from error
        storage = self.found[wanted.key]
        if not 0 <= storage.nbytes() - wanted.nbytes < wanted.dtype.itemsize:
            raise _Refusal(
                f"its storage {_quoted(wanted.key)} has {storage.nbytes()} bytes, not {wanted.nbytes} as it says"
            )
        return _Storage(wanted.kind, wanted.dtype, storage)


class _LegacyStorages:
    """Makes room for storages whose bytes come at the end of the file, and fills them then."""

    def __init__(self, source: _Source) -> None:
        self.source = source
        self.room = source.size
        self.made: dict[str, _Storage] = {}

    def __call__(self, persistent_id: object) -> Placeholder:
        match persistent_id[:2] if isinstance(persistent_id, tuple) else None:
            case ("module", Placeholder() as module):  # the class of a pickled model; its source text follows
                return module
        wanted = _storage_id(persistent_id)
        if wanted.dtype is None or wanted.view is not None:
            raise _Refusal(f"it holds a {wanted.kind} in a form that only old PyTorch reads", _CONVERT_ONCE)
        if wanted.key not in self.made:
            self.room -= wanted.nbytes
            if self.room < 0:
                raise _Refusal("its tensors claim more bytes than it has", "Fetch it again.")
            self.made[wanted.key] = _Storage(wanted.kind, wanted.dtype, _empty(wanted.nbytes))
        storage = self.made[wanted.key].bytes
        if storage.nbytes() != wanted.nbytes:
            raise _Refusal(f"it gives two sizes for the storage {_quoted(wanted.key)}")
        return _Storage(wanted.kind, wanted.dtype, storage)

    def fill(self, keys: object) -> None:
        """Read the storages that the rest of the file holds, in the order of `keys`."""
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or {*keys} != {*self.made}:
            raise _Refusal("its list of storages does not fit its tensors")
        offset = self.source.map.tell()
        for key in keys:
            storage = self.made[key]
            length = self.source.map[offset : offset + 8]
            if (
                len(length) < 8
                or int.from_bytes(length, sys.byteorder) * storage.dtype.itemsize != storage.bytes.nbytes()
            ):
                raise _Refusal(f"its storage {_quoted(key)} is cut off or has another size than its tensors")
            self.source.copy_into(storage.bytes, offset + 8)
            offset += 8 + storage.bytes.nbytes()


# ---------------------------------------------------------------------------------------------------------------------
# The machine

_DAMAGED = "its pickle is damaged or cut off"
# Forty operations make a tensor: enough for 25,000 of them, and at an end within seconds.
_MOST_OPERATIONS = 1_000_000


class _Machine:
    """Runs a pickle on containers, numbers and tensors; everything else on its stack is a placeholder.

    `pickletools` takes the stream apart; what each operation does is here. (`pickle.Unpickler` with its `find_class`
    replaced is not enough: it sets attributes of what that returns, hashes nested tuples until the C stack ends, and
    makes room for as much as the stream claims.)

    Attributes:
        unfollowed: Names that became placeholders; a dict for its order.
    """

    def __init__(self, find_storage: Callable[[object], Placeholder]) -> None:
        self.find_storage = find_storage
        self.unfollowed: dict[str, None] = {}
        self.operations = 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # one stack for each open mark
        self.memo: dict[int, Any] = {}

    def read(self, stream: IO[bytes]) -> object:
        """Run the stream to its STOP and return what it made."""
        self.stack, self.below, self.memo = [], [], {}
        for name, argument in _operations(stream):
            self.spend(1)
            if name == "STOP":
                return self.pop()
            operation = _OPERATIONS.get(name)
            if operation is None:
                raise _Refusal(f"its pickle uses {name}, which torch.save does not write")
            operation(self, argument)
        raise _Refusal(_DAMAGED)

    def spend(self, operations: int) -> None:
        self.operations += operations
        if self.operations > _MOST_OPERATIONS:
            raise _Refusal("its pickle does more than any list of tensors needs")

    def push(self, value: object) -> None:
        self.stack.append(value)

    def top(self) -> Any:
        if not self.stack:
            raise _Refusal(_DAMAGED)
        return self.stack[-1]

    def pop(self) -> Any:
        self.top()
        return self.stack.pop()

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        if not self.below:
            raise _Refusal(_DAMAGED)
        items, self.stack = self.stack, self.below.pop()
        return items

    def drop(self) -> None:
        # An open mark on top of the stack counts as a value.
        if self.stack or not self.below:
            self.pop()
        else:
            self.pop_mark()

    def drop_mark(self) -> None:
        self.pop_mark()

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise _Refusal(_DAMAGED)
        self.push(self.memo[index])

    def put(self, index: int) -> None:
        self.memo[index] = self.top()

    def push_tuple(self, length: int) -> None:
        items = [self.pop() for _ in range(length)]
        self.push(tuple(reversed(items)))

    def add(self, items: list[Any]) -> None:
        target = self.top()
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, set):
            target.update(map(_hashable, items))
        elif not isinstance(target, Placeholder):
            raise _Refusal(f"its pickle appends to {_kind(target)}")

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        if isinstance(target, Placeholder):
            return
        if not isinstance(target, dict) or len(items) % 2:
            raise _Refusal(f"its pickle sets items of {_kind(target)}")
        target.update(zip(map(_hashable, items[::2]), items[1::2], strict=True))

    def push_dict(self) -> None:
        items = self.pop_mark()
        self.push({})
        self.set_items(items)

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if isinstance(target, _Dtype):
            target.set_state(state)
        # An OrderedDict's state is what torch keeps beside the tensors of a state dict: versions of modules.
        elif not isinstance(target, Placeholder | collections.OrderedDict):
            raise _Refusal(f"its pickle sets the state of {_kind(target)}")

    def named(self, module: object, name: object) -> object:
        """Return what a global name stands for here: a dtype is itself, all else a placeholder."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise _Refusal("its pickle gives a name that is not text")
        if len(module) + len(name) > 1000:
            raise _Refusal("its pickle gives a name that is longer than any")
        full = f"{module}.{name}"
        if full in _DTYPES:
            return _DTYPES[full]
        if not re.fullmatch(r"[\w.<>]{1,200}", full, re.ASCII):
            full = ascii(full)[:200]  # it will be printed
        if full not in _CONSTRUCTORS and full not in _STORAGE_TYPES:
            self.unfollowed[full] = None
        return Placeholder(full)

    def push_named(self) -> None:
        name, module = self.pop(), self.pop()
        self.push(self.named(module, name))

    def call(self, callee: object, arguments: object) -> None:
        if not isinstance(arguments, tuple):
            raise _Refusal(_DAMAGED)
        # What a call copies costs as much as if the pickle had written it, so that a few calls cannot fill the memory.
        self.spend(len(arguments))
        for argument in arguments:
            if isinstance(argument, list | tuple):
                self.spend(len(argument))
            elif isinstance(argument, str | bytes):
                self.spend(len(argument) // 64)
        made = _construct(callee, arguments)
        if type(made) is Placeholder:
            self.unfollowed[made.name] = None
        self.push(made)

    def reduce(self) -> None:
        arguments, callee = self.pop(), self.pop()
        self.call(callee, arguments)

    def new_with_keywords(self) -> None:
        keywords, arguments, callee = self.pop(), self.pop(), self.pop()
        if not isinstance(keywords, dict) or (
            keywords and isinstance(callee, Placeholder) and callee.name in _CONSTRUCTORS
        ):
            raise _Refusal("its pickle calls something by keywords that it does not have")
        self.call(callee, arguments)

    def new_object(self) -> None:
        callee, *arguments = self.pop_mark() or [None]
        self.call(callee, tuple(arguments))

    def new_instance(self, names: str) -> None:
        arguments = self.pop_mark()
        self.call(self.named(*names.split(" ", 1)), tuple(arguments))


def _operations(stream: IO[bytes]) -> Iterator[tuple[str, Any]]:
    try:
        for operation, argument, _ in pickletools.genops(stream):
            yield operation.name, argument
    except (
        ValueError,
        DeprecationWarning,
    ) as error:  # the warning: of a backslash in a text, where warnings are errors
        raise _Refusal(_DAMAGED) from error


_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    **dict.fromkeys(
        ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"), _Machine.push
    ),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _Machine.push),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _Machine.push),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), _Machine.push),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_SET": lambda machine, _: machine.push(set()),
    "TUPLE1": lambda machine, _: machine.push_tuple(1),
    "TUPLE2": lambda machine, _: machine.push_tuple(2),
    "TUPLE3": lambda machine, _: machine.push_tuple(3),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_mark())),
    "LIST": lambda machine, _: machine.push(machine.pop_mark()),
    "DICT": lambda machine, _: machine.push_dict(),
    "FROZENSET": lambda machine, _: machine.push(_frozenset(machine.pop_mark())),
    "APPEND": lambda machine, _: machine.add([machine.pop()]),
    "APPENDS": lambda machine, _: machine.add(machine.pop_mark()),
    "ADDITEMS": lambda machine, _: machine.add(machine.pop_mark()),
    "SETITEM": lambda machine, _: machine.set_items([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_mark()),
    "MARK": lambda machine, _: machine.mark(),
    "POP_MARK": lambda machine, _: machine.drop_mark(),
    "POP": lambda machine, _: machine.drop(),
    "DUP": lambda machine, _: machine.push(machine.top()),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    "GLOBAL": lambda machine, names: machine.push(machine.named(*names.split(" ", 1))),
    "STACK_GLOBAL": lambda machine, _: machine.push_named(),
    "REDUCE": lambda machine, _: machine.reduce(),
    "NEWOBJ": lambda machine, _: machine.reduce(),
    "NEWOBJ_EX": lambda machine, _: machine.new_with_keywords(),
    "OBJ": lambda machine, _: machine.new_object(),
    "INST": _Machine.new_instance,
    "BUILD": lambda machine, _: machine.build(),
    "BINPERSID": lambda machine, _: machine.push(machine.find_storage(machine.pop())),
    "PERSID": lambda machine, identifier: machine.push(machine.find_storage(identifier)),
}


def _hashable(key: object) -> object:
    """Return a dictionary's key, or a placeholder for one that could be made to hash slowly, deeply or alike."""
    if isinstance(key, str | bytes | float | bool | Placeholder | None):
        return key
    if isinstance(key, int) and -_LARGEST < key < _LARGEST:
        return key
    return Placeholder(f"{type(key).__name__} as a key")


# ---------------------------------------------------------------------------------------------------------------------
# The constructors: all that a file can call, each checking what it is given


def _construct(callee: object, arguments: object) -> object:
    if not isinstance(callee, Placeholder) or not isinstance(arguments, tuple):
        raise _Refusal(f"its pickle calls {_kind(callee)}")
    constructor = _CONSTRUCTORS.get(callee.name)
    if constructor is None:
        return Placeholder(callee.name)
    try:
        return constructor(*arguments)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise _Refusal(f"it calls {callee.name} with arguments that make no sense") from error


def _counts(values: object, most: int = 64) -> tuple[int, ...]:
    """Return the numbers of a tensor's size or strides."""
    if not isinstance(values, tuple | list) or len(values) > most or not all(map(_is_count, values)):
        raise ValueError("not a list of sizes")
    return tuple(values)


# A tensor may show its numbers more than once (expand does that), but not so often that a copy of it fills the memory.
_LARGEST_EXPANDED = 1 << 26


def _view(
    storage: object, dtype: torch.dtype | None, offset: int, size: object, stride: object, bits: object
) -> object:
    """Return a tensor over part of a storage, having checked that it stays inside."""
    if not isinstance(storage, _Storage):
        if isinstance(storage, Placeholder):
            return storage
        raise TypeError("not a storage")
    dtype = dtype or storage.dtype
    size, stride, room = _counts(size), _counts(stride), storage.bytes.nbytes()
    numel = math.prod(size)
    steps = sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1 if numel else 0
    if not _is_count(offset) or (offset + steps) * dtype.itemsize > room:
        raise ValueError("outside its storage")
    if numel * dtype.itemsize > max(room, _LARGEST_EXPANDED):
        raise ValueError("expanded too far")
    tensor = torch.empty(0, dtype=dtype, device="cpu").set_(storage.bytes, offset, size, stride)
    if isinstance(bits, dict):  # complex numbers are saved unconjugated, with a note
        tensor = tensor.conj() if bits.get("conj") else tensor
        tensor = torch._neg_view(tensor) if bits.get("neg") else tensor
    return tensor


def _tensor(
    storage: object, offset: int, size: object, stride: object, grad: object = 0, hooks: object = 0, bits: object = None
) -> object:
    return _view(storage, None, offset, size, stride, bits)


def _typed_tensor(
    storage: object,
    offset: int,
    size: object,
    stride: object,
    grad: object,
    hooks: object,
    dtype: object,
    bits: object = None,
) -> object:
    if not isinstance(dtype, torch.dtype):
        raise TypeError("not a dtype")
    return _view(storage, dtype, offset, size, stride, bits)


def _parameter(data: object, *_: object) -> object:
    if not isinstance(data, Tensor | Placeholder):
        raise TypeError("not a tensor")
    return data


def _tensor_with_attributes(function: object, kind: object, arguments: object, state: object) -> object:
    """Return the tensor alone of one that had Python attributes, or was of a class of its own."""
    if not isinstance(function, Placeholder) or function.name not in _TENSORS:
        return Placeholder("torch.Tensor")
    return _construct(function, arguments)


def _items(values: object) -> Sequence[Any]:
    if not isinstance(values, list | tuple):
        raise TypeError("not a list")
    return values


def _ordered_dict(items: object = ()) -> object:
    return collections.OrderedDict((_hashable(key), value) for key, value in map(_items, _items(items)))


def _plain_dict(content: object = None) -> object:
    """For a defaultdict, which is called with its factory, and a Counter, called with its counts."""
    return content if isinstance(content, dict) else {}


def _set(items: object = ()) -> object:
    return set(map(_hashable, _items(items)))


def _frozenset(items: object = ()) -> object:
    return frozenset(map(_hashable, _items(items)))


def _bytes(text: object = "", encoding: object = "latin1") -> bytes:
    """As `_codecs.encode`, by which bytes are written where the protocol has none."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise TypeError("not bytes")
    return text.encode("latin-1")


def _bytearray(data: object = b"", encoding: object = "latin1") -> object:
    return bytearray(data if isinstance(data, bytes) else _bytes(data, encoding))


def _complex(real: object, imaginary: object) -> object:
    if not isinstance(real, float) or not isinstance(imaginary, float):
        raise TypeError("not numbers")
    return complex(real, imaginary)


def _size(values: object) -> object:
    return torch.Size(_counts(values))


def _device(kind: object, index: object = None) -> object:
    if not isinstance(kind, str) or not (index is None or _is_count(index)):
        raise TypeError("not a device")
    return torch.device(kind if index is None else f"{kind}:{index}")


class _Dtype(Placeholder):
    """A NumPy dtype while a NumPy number is made of it."""

    __slots__ = ("code",)

    def __init__(self, code: str) -> None:
        super().__init__("numpy.dtype")
        self.code = code

    def set_state(self, state: object) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if not isinstance(order, str) or order not in ("<", ">", "|", "="):
            raise _Refusal("it holds a NumPy dtype that makes no sense")
        self.code = order + self.code[-2:]


def _dtype(code: object, *_: object) -> object:
    known = isinstance(code, str) and re.fullmatch("b1|[iu][1248]|f[248]", code)
    return _Dtype(str(code)) if known else Placeholder("numpy.dtype")


def _number(dtype: object, data: object) -> object:
    """Return the Python number of a NumPy one: a best accuracy, say."""
    if not isinstance(dtype, _Dtype):
        return Placeholder("numpy.generic")
    raw = data.encode("latin-1") if isinstance(data, str) else data  # Python 2 wrote its bytes as text
    if not isinstance(raw, bytes) or len(raw) != np.dtype(dtype.code).itemsize:
        raise TypeError("not one number")
    return cast(object, np.frombuffer(raw, dtype.code)[0].item())


_TENSORS: dict[str, Callable[..., object]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
_CONSTRUCTORS: dict[str, Callable[..., object]] = {
    **_TENSORS,
    "torch._tensor._rebuild_from_type_v2": _tensor_with_attributes,
    "torch.Size": _size,
    "torch.device": _device,
    "collections.OrderedDict": _ordered_dict,
    "collections.defaultdict": _plain_dict,
    "collections.Counter": _plain_dict,
    "_codecs.encode": _bytes,
    "numpy.dtype": _dtype,
    "numpy.core.multiarray.scalar": _number,
    "numpy._core.multiarray.scalar": _number,
}
for _module in ("builtins", "__builtin__"):  # Python 3's name, and Python 2's, which protocol 2 writes
    _CONSTRUCTORS |= {
        f"{_module}.set": _set,
        f"{_module}.frozenset": _frozenset,
        f"{_module}.bytearray": _bytearray,
        f"{_module}.complex": _complex,
    }

# Those that begin with "q" are quantised: a tensor of them needs more than its numbers.
_DTYPES = {
    f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype) and name[0] != "q"
}
