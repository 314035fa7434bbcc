"""Checkpoints are read as `torch.load` reads them, and nothing in them ever runs."""

from __future__ import annotations

import bz2
import collections
import gzip
import importlib.util
import io
import lzma
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from poster_zoo.errors import WeightsError, WeightsNotFoundError
from poster_zoo.weights.checkpoint import Checkpoint, Placeholder, read_checkpoint, state_dict

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def save(content: object, path: Path, zipped: bool = True, **options: Any) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped, **options)
    return path


def raw(tensor: Tensor) -> bytes:
    """The bytes of a tensor's numbers, in their order."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert (ours.dtype, ours.shape, ours.stride()) == (theirs.dtype, theirs.shape, theirs.stride())
    assert ours.storage_offset() == theirs.storage_offset()
    assert raw(ours) == raw(theirs)


# ---------------------------------------------------------------------------------------------------------------------
# Honest files

DTYPES = sorted(
    (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint64,
        torch.uint32,
        torch.uint16,
        torch.uint8,
        torch.bool,
        torch.complex128,
        torch.complex64,
    ),
    key=str,
)


@FORMATS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_comes_out_bit_for_bit(tmp_path: Path, dtype: torch.dtype, zipped: bool) -> None:
    if dtype == torch.bool:
        numbers = torch.arange(40) % 3 == 0
    else:
        noise = np.frombuffer(np.random.RandomState(0).bytes(40 * dtype.itemsize), dtype=np.uint8)
        numbers = torch.from_numpy(noise.copy()).view(dtype)
    content = {"before": torch.zeros(3, dtype=torch.int8), "it": numbers.reshape(5, 8), "one": numbers[7]}
    path = save(content, tmp_path / "a.pth", zipped)
    ours = read_checkpoint(path).content
    assert isinstance(ours, dict)
    for name, saved in content.items():
        assert_same(ours[name], saved)
    for name, theirs in (torch.load(path, weights_only=True) if zipped else {}).items():
        assert_same(ours[name], theirs)


@FORMATS
def test_views_keep_their_strides_and_share_their_storage(tmp_path: Path, zipped: bool) -> None:
    base = torch.arange(60.0).reshape(5, 12)
    content = {
        "base": base,
        "turned": base.T,
        "part": base[1:4, 2:11:3],
        "scalar": base[2, 3],
        "none": base[5:],
        "empty": torch.empty(0),
        "expanded": torch.tensor([2.0]).expand(7, 3),
        "zero": torch.zeros(()),
        "many": torch.zeros(1, 2, 1, 2, 1, 2),
        "channels_last": torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).to(
            memory_format=torch.channels_last
        ),
        "parameter": nn.Parameter(base[0].clone()),
    }
    path = save(content, tmp_path / "a.pth", zipped)
    ours = read_checkpoint(path).content
    assert isinstance(ours, dict)
    assert list(ours) == list(content)
    for name, theirs in torch.load(path, weights_only=True).items():
        assert_same(ours[name], theirs.detach())
    assert ours["part"].untyped_storage().data_ptr() == ours["base"].untyped_storage().data_ptr()
    ours["turned"][3, 2] = -1
    assert ours["base"][2, 3] == ours["scalar"] == -1


def test_lazily_conjugated_and_negated_numbers_are_as_they_look(tmp_path: Path) -> None:
    numbers = torch.tensor([1 + 2j, 3 - 4j])
    conjugated = read_checkpoint(save(numbers.conj(), tmp_path / "a.pth")).content
    assert isinstance(conjugated, Tensor)
    assert conjugated.resolve_conj().tolist() == [1 - 2j, 3 + 4j]
    negated = read_checkpoint(save(numbers.conj().imag, tmp_path / "b.pth")).content
    assert isinstance(negated, Tensor)
    assert negated.resolve_neg().tolist() == [-2.0, 4.0]


@FORMATS
@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_every_protocol_gives_the_objects_that_went_in(tmp_path: Path, protocol: int, zipped: bool) -> None:
    content = {
        "text": "é\n\u4e2d",
        "bytes": b"\x00\xff",
        "bytearray": bytearray(b"ab"),
        "numbers": [0, 1, 255, 65535, -1, 2**31, 2**70, -(2**70), 1.5, float("inf"), True, False, None, 2 - 1j],
        "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        "nested": {"a": {"b": [{}, [], set()]}},
        "set": {1, 2},
        "frozenset": frozenset({"x"}),
        "ordered": collections.OrderedDict([("b", 1), ("a", 2)]),
        "default": collections.defaultdict(int, {"a": 1}),
        "counter": collections.Counter("aab"),
        "size": torch.Size([2, 3]),
        "dtype": torch.bfloat16,
        "device": torch.device("cuda:1"),
        5: "five",
        "half": np.float16(0.5),
        "best": np.float64(92.05),
        "count": np.int32(-7),
        "flag": np.bool_(True),
    }
    ours = read_checkpoint(save(content, tmp_path / "a.pth", zipped, pickle_protocol=protocol))
    assert ours.content == content
    assert isinstance(ours.content, dict)
    assert list(ours.content["ordered"]) == ["b", "a"]
    assert type(ours.content["best"]) is float
    assert set(ours.placeholders) <= {"builtins.int", "__builtin__.long"}  # what the defaultdict would call


def test_a_modules_own_state_dict_is_read_with_its_order_and_without_its_notes(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    path = save(net.state_dict(), tmp_path / "a.pth")
    checkpoint = read_checkpoint(path)
    assert checkpoint.placeholders == ()
    tensors, wrapper, prefix = state_dict(checkpoint)
    assert (list(tensors), wrapper, prefix) == (list(net.state_dict()), None, "")
    for name, theirs in net.state_dict().items():
        assert_same(tensors[name], theirs)


def test_a_tensor_with_attributes_of_its_own_is_read_as_a_tensor(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.arange(3.0))
    weight.note = "kept by the trainer"  # type: ignore[attr-defined]
    plain = torch.arange(4.0)
    plain.note = "kept by the trainer"  # type: ignore[attr-defined]
    ours = read_checkpoint(save({"weight": weight, "plain": plain}, tmp_path / "a.pth")).content
    assert isinstance(ours, dict)
    assert ours["weight"].tolist() == [0, 1, 2]
    assert ours["plain"].tolist() == [0, 1, 2, 3]


@FORMATS
def test_the_tensors_can_be_written_to_and_the_file_stays_as_it_is(tmp_path: Path, zipped: bool) -> None:
    path = save({"a": torch.arange(1000.0)}, tmp_path / "a.pth", zipped)
    before = path.read_bytes()
    ours = read_checkpoint(path).content
    assert isinstance(ours, dict)
    ours["a"].fill_(-1)
    assert path.read_bytes() == before
    again = read_checkpoint(path).content
    assert isinstance(again, dict)
    assert again["a"][999] == 999


def test_another_default_device_or_dtype_changes_nothing(tmp_path: Path) -> None:
    for zipped in (True, False):
        path = save({"a": torch.arange(5.0), "none": torch.empty(0)}, tmp_path / "a.pth", zipped)
        with torch.device("meta"):
            ours = read_checkpoint(path).content
        assert isinstance(ours, dict)
        assert ours["a"].tolist() == [0, 1, 2, 3, 4]


def test_safetensors_are_known_by_their_bytes_whatever_the_name(tmp_path: Path) -> None:
    tensors = {"module.a": torch.arange(6.0).reshape(2, 3), "module.b": torch.tensor(1, dtype=torch.int64)}
    safetensors.torch.save_file(tensors, tmp_path / "looks_like.pth.tar")
    found = state_dict(read_checkpoint(tmp_path / "looks_like.pth.tar"))
    assert (set(found.tensors), found.wrapper, found.prefix) == ({"a", "b"}, None, "module.")
    assert_same(found.tensors["a"], tensors["module.a"])
    before = (tmp_path / "looks_like.pth.tar").read_bytes()
    found.tensors["a"].fill_(-1)
    assert (tmp_path / "looks_like.pth.tar").read_bytes() == before


def test_a_checkpoint_is_known_by_its_bytes_whatever_the_name(tmp_path: Path) -> None:
    assert read_checkpoint(save({"a": 1}, tmp_path / "model.safetensors")).content == {"a": 1}


def test_the_real_landmark_detector_is_read(shared: Path) -> None:
    path = shared / "weights" / "mobilefacenet_model_best.pth.tar"
    checkpoint = read_checkpoint(path)
    tensors, wrapper, prefix = state_dict(checkpoint)
    assert (len(tensors), wrapper, prefix, checkpoint.placeholders) == (333, "state_dict", "", ())
    theirs = torch.load(path, weights_only=True)["state_dict"]
    assert list(tensors) == list(theirs)
    for name, tensor in theirs.items():
        assert_same(tensors[name], tensor)


@pytest.mark.parametrize(("variant", "zipped"), [("mobilefacenet", True), ("ir50", False)])
def test_the_authors_layouts_are_read(shared: Path, tmp_path: Path, variant: str, zipped: bool) -> None:
    spec = importlib.util.spec_from_file_location("synthetic", shared / "parity" / "synthetic_checkpoint.py")
    assert spec is not None
    assert spec.loader is not None
    synthetic = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(synthetic)
    path = save(synthetic.checkpoint(variant), tmp_path / "a.pth", zipped)
    tensors, wrapper, prefix = state_dict(read_checkpoint(path))
    theirs = synthetic.state_dict(variant)
    assert (wrapper, prefix) == (synthetic.manifest(variant)["wrapper_key"], synthetic.manifest(variant)["prefix"])
    assert list(tensors) == list(theirs)
    assert all(torch.equal(tensors[name], theirs[name]) for name in theirs)


# ---------------------------------------------------------------------------------------------------------------------
# The state dict inside

WEIGHTS = {"module.fc.weight": torch.ones(2, 3), "module.fc.bias": torch.zeros(2)}


def of(content: object, placeholders: tuple[str, ...] = ()) -> Checkpoint:
    return Checkpoint(Path("a.pth"), content, placeholders)


@pytest.mark.parametrize("wrapper", ["model_state_dict", "state_dict", "model", "net", "ema", "my_very_own"])
def test_a_state_dict_is_found_beside_optimizers_and_counters(wrapper: str) -> None:
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    optimizer = torch.optim.Adam([parameter])
    optimizer.step()
    content = {
        "iter": 216,
        "best_acc": torch.tensor(92.05),
        "recorder": Placeholder("__main__.RecorderMeter"),
        "optimizer_state_dict": optimizer.state_dict(),
        "optimizer_averages": {"exp_avg": torch.ones(2)},
        wrapper: WEIGHTS,
    }
    tensors, found, prefix = state_dict(of(content))
    assert (list(tensors), found, prefix) == (["fc.weight", "fc.bias"], wrapper, "module.")
    assert tensors["fc.weight"] is WEIGHTS["module.fc.weight"]


def test_the_weights_are_preferred_to_their_average() -> None:
    assert state_dict(of({"ema": WEIGHTS, "state_dict": WEIGHTS})).wrapper == "state_dict"


def test_a_prefix_that_one_name_lacks_is_no_prefix() -> None:
    tensors, _, prefix = state_dict(of({**WEIGHTS, "scale": torch.ones(1)}))
    assert (list(tensors), prefix) == ([*WEIGHTS, "scale"], "")


def test_an_error_lists_what_a_file_without_a_state_dict_holds() -> None:
    content = {"epoch": 3, "best_acc": torch.tensor(1.0), "model": Placeholder("models.Net"), "logs": [1, 2]}
    with pytest.raises(
        WeightsError,
        match=r"a\.pth was asked for .*'epoch' \(int\), 'best_acc' \(Tensor\), 'model' \(a pickled models\.Net\), "
        r"'logs' \(list of 2\).*no tensors by name.*state_dict\(\)",
    ):
        state_dict(of(content))


def test_an_error_says_that_a_whole_model_was_pickled(tmp_path: Path) -> None:
    path = save(nn.Linear(2, 2), tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"holds a pickled torch\.nn\.modules\.linear\.Linear.*state_dict\(\)"):
        state_dict(read_checkpoint(path))


def test_two_unknown_state_dicts_are_not_guessed_between() -> None:
    other = {"a": torch.ones(1)}
    with pytest.raises(WeightsError, match=r"'generator' \(dict of 2\), 'judge' \(dict of 1\).*which of them"):
        state_dict(of({"generator": WEIGHTS, "judge": other}))


@pytest.mark.parametrize("content", [{}, [], None, 3, "text", {"state_dict": {}}, {"a": [torch.ones(1)]}])
def test_contents_without_names_of_tensors_are_refused(content: object) -> None:
    with pytest.raises(WeightsError, match="no tensors by name"):
        state_dict(of(content))


# ---------------------------------------------------------------------------------------------------------------------
# Files that are something else


def tar_of(*names: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 3
            archive.addfile(info, io.BytesIO(b"abc"))
    return buffer.getvalue()


def zip_of(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def torch_bytes(content: object, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def onnx_start() -> bytes:
    return b"\x08\x07\x12\x07pytorch\x1a\x052.1.0\x3a\x80\x01" + bytes(128)


SAVED = torch_bytes({"a": torch.ones(3)})
SAVED_LEGACY = torch_bytes({"a": torch.ones(3)}, zipped=False)
OTHER_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", r"empty \(0 bytes\).*Fetch"),
    "page": (b"\n<!DOCTYPE html><html><title>Google Drive - Virus scan", r"web page.*browser"),
    "page with a mark": (b"\xef\xbb\xbf<HTML>", r"web page.*browser"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", r"git-lfs pointer.*git lfs pull"),
    "text": (b"Entry not found", r"text of 15 bytes that begins 'Entry not found'"),
    "tar": (tar_of("rafdb_best.pth"), r"tar archive that begins with 'rafdb_best\.pth'.*tar -xf"),
    "tar of old PyTorch": (tar_of("sys_info", "pickle", "tensors", "storages"), r"before 0\.2.*loading runs"),
    "gzip": (gzip.compress(SAVED), r"gzip.*Unpack"),
    "bzip2": (bz2.compress(SAVED), r"bzip2.*Unpack"),
    "xz": (lzma.compress(SAVED), r"xz.*Unpack"),
    "zip of a checkpoint": (zip_of({"rafdb_best.pth": SAVED}), r"zip archive of 1 files, 'rafdb_best\.pth'.*Unpack"),
    "packed zip of one": (zip_of({"a.pth": SAVED}, zipfile.ZIP_DEFLATED), r"zip archive of 1 files, 'a\.pth'.*Unpack"),
    "empty zip": (zip_of({}), r"an empty zip archive"),
    "onnx": (onnx_start(), r"ONNX.*exported from"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(64), r"HDF5"),
    "numpy": (b"\x93NUMPY\x01\x00" + bytes(64), r"NumPy"),
    "plain pickle": (pickle.dumps({"a": 1}), r"plain pickle.*loading runs"),
    "noise": (b"\xde\xad\xbe\xef" * 200, r"de ad be ef .*no format.*torch\.save"),
    "one byte": (b"P", r"text of 1 bytes"),
    "zip cut short": (SAVED[: len(SAVED) // 2], r"zip archive.*cut off.*Fetch"),
    "legacy cut short": (SAVED_LEGACY[:-5], r"cut off|ends in the middle.*Fetch"),
    "legacy cut in its pickle": (SAVED_LEGACY[:120], r"damaged or cut off"),
    "safetensors cut short": (safetensors.torch.save({"a": torch.ones(9)})[:-4], r"safetensors.*not a whole one"),
}


@pytest.mark.parametrize("kind", OTHER_FILES)
def test_a_file_of_another_kind_is_refused_by_saying_what_it_is(tmp_path: Path, kind: str) -> None:
    data, words = OTHER_FILES[kind]
    path = tmp_path / "rafdb_best.pth"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=rf"(?s)rafdb_best\.pth cannot be read as a checkpoint: .*{words}"):
        read_checkpoint(path)


def test_torchscript_and_exported_programs_are_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2))  # type: ignore[no-untyped-call]
        torch.jit.save(script, tmp_path / "script.pt")
    with pytest.raises(WeightsError, match=r"TorchScript archive.*state_dict\(\)"):
        read_checkpoint(tmp_path / "script.pt")
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), tmp_path / "program.pt2")
    with pytest.raises(WeightsError, match=r"torch\.export.*state_dict\(\)"):
        read_checkpoint(tmp_path / "program.pt2")


@pytest.mark.parametrize("name", ["nowhere.pth", "nowhere/at/all.pth", "file/inside", "a\0b", ""])
def test_a_missing_file_is_not_found(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(WeightsNotFoundError, match=r"There is no file.*check its name") as caught:
        read_checkpoint(f"{tmp_path}/{name}" if name else "")
    assert isinstance(caught.value, FileNotFoundError)


def test_folders_pipes_and_locked_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"a folder.*Name the file inside"):
        read_checkpoint(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(WeightsError, match="a device, pipe or socket"):
            read_checkpoint(tmp_path / "pipe")
    if hasattr(os, "geteuid") and os.geteuid():
        save({}, tmp_path / "locked.pth").chmod(0)
        with pytest.raises(WeightsError, match=r"cannot be opened.*permissions"):
            read_checkpoint(tmp_path / "locked.pth")


# ---------------------------------------------------------------------------------------------------------------------
# Files made to do harm


def value(content: object) -> bytes:
    """The operations that push a plain value, by the standard pickler."""
    return pickle.dumps(content, 2)[2:-1]


def storage(numel: object = 4, key: object = "0", kind: bytes = b"torch\nFloatStorage") -> bytes:
    return b"(" + value("storage") + b"c" + kind + b"\n" + value(key) + value("cpu") + value(numel) + b"tQ"


def tensor(
    offset: object = 0, size: object = (4,), stride: object = (1,), source: bytes = storage(), notes: object = None
) -> bytes:
    """The operations by which torch.save writes a tensor."""
    arguments = (
        source + value(offset) + value(size) + value(stride) + b"\x89ccollections\nOrderedDict\n)R" + value(notes)
    )
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def pack(path: Path, *operations: bytes, numbers: bytes = np.arange(4, dtype="<f4").tobytes(), **more: bytes) -> Path:
    """A zip checkpoint of {"x": what the operations push}, laid out by hand."""
    data = b"\x80\x02}" + value("x") + b"".join(operations) + b"s."
    members = {"data.pkl": data, "byteorder": b"little", "data/0": numbers, "version": b"3\n", **more}
    path.write_bytes(zip_of({f"archive/{name}": data for name, data in members.items()}))
    return path


def read_x(path: Path) -> Any:
    content = read_checkpoint(path).content
    assert isinstance(content, dict)
    return content["x"]


def test_the_hand_made_file_is_what_torch_writes(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.pth", tensor(offset=1, size=(3, 1), stride=(1, 1)))
    assert_same(read_x(path), torch.load(path, weights_only=True)["x"])
    assert read_x(path).tolist() == [[1.0], [2.0], [3.0]]


class Canary:
    """Pickles as a call that leaves a file where it ran."""

    def __init__(self, path: Path, how: str) -> None:
        self.path = path
        self.how = how

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        code = f"open({str(self.path)!r}, 'w').close()"
        if self.how == "os.system":
            return os.system, (f'"{sys.executable}" -c "{code}"',)
        if self.how == "torch builtin":  # torch.load of a pickle inside the pickle, without any restriction
            return torch.storage._load_from_bytes, (torch_bytes(Canary(self.path, "eval"), zipped=False),)
        return {"eval": eval, "exec": exec}[self.how], (code,)


@FORMATS
@pytest.mark.parametrize("how", ["os.system", "eval", "exec", "torch builtin"])
def test_a_file_that_tries_to_run_code_runs_nothing(tmp_path: Path, how: str, zipped: bool) -> None:
    canary = tmp_path / "canary"
    path = save({"state_dict": WEIGHTS, "x": Canary(canary, how)}, tmp_path / "evil.pth", zipped)
    torch.load(path, weights_only=False)
    assert canary.exists(), "the file is harmless, so the test would prove nothing"
    canary.unlink()

    checkpoint = read_checkpoint(path)
    assert not canary.exists()
    assert len(checkpoint.placeholders) == 1
    assert checkpoint.placeholders[0].rpartition(".")[2] in ("system", "eval", "exec", "_load_from_bytes")
    assert isinstance(checkpoint.content, dict)
    assert isinstance(checkpoint.content["x"], Placeholder)
    assert_same(state_dict(checkpoint).tensors["fc.weight"], WEIGHTS["module.fc.weight"])


def call(names: bytes, how: str) -> bytes:
    """The operations of one call with the argument 5, in each way that pickle has."""
    module, name = names.split(b" ")
    return {
        "reduce": b"c%s\n%s\n(K\x05tR" % (module, name),
        "new": b"c%s\n%s\n(K\x05t\x81" % (module, name),
        "new with keywords": b"c%s\n%s\n(K\x05t}%sK\x01s\x92" % (module, name, value("k")),
        "object": b"(c%s\n%s\nK\x05o" % (module, name),
        "instance": b"(K\x05i%s\n%s\n" % (module, name),
        "stack global": value(module.decode()) + value(name.decode()) + b"\x93(K\x05tR",
    }[how]


@pytest.mark.parametrize("how", ["reduce", "new", "new with keywords", "object", "instance", "stack global"])
@pytest.mark.parametrize(
    "names",
    [
        b"builtins getattr",
        b"builtins print",
        b"__builtin__ apply",
        b"torch load",
        b"torch.hub load",
        b"torch.jit load",
        b"torch._utils _import_dotted_name",
        b"torch._utils _rebuild_tensor_v2.__globals__.__getitem__",
        b"torch load.__globals__",
        b"torch._C _rebuild",
        b"posix system",
        b"collections OrderedDict.fromkeys",
        b"poster_zoo.weights.checkpoint _construct",
        b"no_such_module nothing",
    ],
)
def test_a_call_of_anything_else_gives_a_placeholder(tmp_path: Path, names: bytes, how: str) -> None:
    path = pack(tmp_path / "a.pth", call(names, how))
    checkpoint = read_checkpoint(path)
    dotted = names.decode().replace(" ", ".")
    assert checkpoint.placeholders == (dotted,)
    assert repr(read_x(path)) == f"<placeholder for {dotted}>"


def test_a_placeholder_takes_whatever_is_done_to_it_and_stays_one(tmp_path: Path) -> None:
    made = call(b"__main__ Meter", "reduce")
    done = (
        b"}%sK\x01sb" % value("name") + b"K\x01a(K\x01K\x02e" + b"K\x01K\x02s(K\x01K\x02u" + b"(K\x01\x90" + b")R)R}b"
    )
    path = pack(tmp_path / "a.pth", made, done)
    assert read_x(path).name == "__main__.Meter"
    assert read_checkpoint(path).placeholders == ("__main__.Meter",)


def test_building_a_class_does_not_change_it(tmp_path: Path) -> None:
    state = b"(N}" + value("from_keys") + b"K\x01st"
    for names in (b"collections\nOrderedDict", b"__main__\nX", b"torch\nFloatStorage"):
        path = pack(tmp_path / "a.pth", b"c" + names + b"\n" + state + b"b" + b"0c" + names + b"\n")
        assert isinstance(read_x(path), Placeholder)
    assert not hasattr(collections.OrderedDict, "from_keys")
    assert not hasattr(Placeholder, "from_keys")


def test_names_that_would_write_on_the_terminal_are_shown_escaped(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.pth", value("\x1b[2J") + value("x\ny") + b"\x93")
    assert read_checkpoint(path).placeholders == (r"'\x1b[2J.x\ny'",)


HUGE = 1 << 62
OUTSIDE = {
    "offset beyond": tensor(offset=4, size=(1,)),
    "offset negative": tensor(offset=-1, size=(1,)),
    "offset huge": tensor(offset=HUGE, size=(1,)),
    "offset none": tensor(offset=None),
    "offset true": tensor(offset=True, size=(1,)),
    "size beyond": tensor(size=(5,)),
    "size negative": tensor(size=(-1,)),
    "sizes that overflow to none": tensor(size=(1 << 32, 1 << 32), stride=(0, 0)),
    "size huge": tensor(size=(HUGE,), stride=(0,)),
    "expanded far": tensor(size=(1 << 30,), stride=(0,)),
    "no size but huge": tensor(size=(0, HUGE, HUGE), stride=(1, 1, 1)),
    "stride beyond": tensor(size=(2, 2), stride=(3, 1)),
    "stride negative": tensor(offset=3, size=(4,), stride=(-1,)),
    "stride huge": tensor(size=(2,), stride=(HUGE,)),
    "strides missing": tensor(size=(2, 2), stride=(1,)),
    "size is text": tensor(size="4"),
    "size is fractional": tensor(size=(4.0,)),
    "too many dimensions": tensor(size=(1,) * 70, stride=(1,) * 70),
    "no storage": tensor(source=value("storage")),
    "too few arguments": b"ctorch._utils\n_rebuild_tensor_v2\n)R",
    "too many arguments": b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage() + b"NNNNNNNNtR",
    "dtype is no dtype": b"ctorch._utils\n_rebuild_tensor_v3\n(" + storage() + value(0) + value((1,)) * 2 + b"\x89NNtR",
    "dtype too wide": b"ctorch._utils\n_rebuild_tensor_v3\n("
    + storage(16, kind=b"torch.storage\nUntypedStorage")
    + value(0)
    + value((3,))
    + value((1,))
    + b"\x89Nctorch\nfloat64\ntR",
    "dtype quantised": b"ctorch._utils\n_rebuild_tensor_v3\n("
    + storage()
    + value(0)
    + value((1,)) * 2
    + b"\x89Nctorch\nqint8\ntR",
    "parameter of text": b"ctorch._utils\n_rebuild_parameter\n(" + value("x") + b"\x89NtR",
}


@pytest.mark.parametrize("kind", OUTSIDE)
def test_a_tensor_that_would_reach_outside_its_storage_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(WeightsError, match="arguments that make no sense"):
        read_checkpoint(pack(tmp_path / "a.pth", OUTSIDE[kind]))


IDENTIFIERS = {
    "text": value("storage") + b"Q",
    "a text of protocol 0": b"Pstorage\n",
    "number": b"K\x05Q",
    "empty": b")Q",
    "short": value(("storage",)) + b"Q",
    "tensor as a word": b"(" + tensor() + b"NNNNtQ",
    "another word": value(("module", 1, 2, 3, 4)) + b"Q",
    "no kind": value(("storage", "torch.FloatStorage", "0", "cpu", 4)) + b"Q",
    "key is a number": storage(key=0),
    "numel is negative": storage(numel=-4),
    "numel is huge": storage(numel=HUGE),
    "numel is none": storage(numel=None),
    "numel too small": storage(numel=3),
    "numel too large": storage(numel=5),
    "no record": storage(key="7"),
    "path as key": storage(key="../../../../etc/passwd"),
    "another record as key": storage(key="../version"),
}


@pytest.mark.parametrize("kind", IDENTIFIERS)
def test_a_storage_that_is_not_there_as_stated_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(WeightsError, match=r"refers to a storage|has 16 bytes, not|has no record"):
        read_checkpoint(pack(tmp_path / "a.pth", IDENTIFIERS[kind]))


def test_storages_of_unknown_kinds_and_what_is_made_of_them_are_placeholders(tmp_path: Path) -> None:
    unknown = storage(kind=b"torch\nQInt8Storage")
    assert read_x(pack(tmp_path / "a.pth", tensor(source=unknown))).name == "torch.QInt8Storage"
    path = pack(tmp_path / "a.pth", b"ctorch._utils\n_rebuild_parameter\n(", tensor(source=unknown), b"\x89NtR")
    assert isinstance(read_x(path), Placeholder)
    assert isinstance(read_x(pack(tmp_path / "a.pth", storage())), Placeholder)


def number(code: str, data: bytes, order: str = "<") -> bytes:
    """The operations by which NumPy pickles a number."""
    dtype = (
        b"cnumpy\ndtype\n" + value((code, False, True)) + b"R" + value((3, order, None, None, None, -1, -1, 0)) + b"b"
    )
    return b"cnumpy.core.multiarray\nscalar\n(" + dtype + b"U" + bytes([len(data)]) + data + b"tR"


def test_numbers_of_numpy_are_numbers_in_either_byte_order(tmp_path: Path) -> None:
    assert read_x(pack(tmp_path / "a.pth", number("f8", struct.pack("<d", 92.05)))) == 92.05
    assert read_x(pack(tmp_path / "a.pth", number("f8", struct.pack(">d", 92.05), ">"))) == 92.05
    assert read_x(pack(tmp_path / "a.pth", number("i2", b"\xfe\xff"))) == -2
    assert isinstance(read_x(pack(tmp_path / "a.pth", number("O8", bytes(8)))), Placeholder)


DAMAGED = {
    "nothing on the stack": b"0000",
    "no mark": b"t",
    "memo never written": b"h\x63",
    "no such operation": b"\xff",
    "claims 2^60 bytes": b"\x8e" + struct.pack("<Q", 1 << 60) + b"abc",
    "claims 2^60 characters": b"\x8d" + struct.pack("<Q", 1 << 60) + b"abc",
    "claims 2^60 bytes to change": b"\x96" + struct.pack("<Q", 1 << 60) + b"abc",
    "claims more than a size can be": b"\x8e" + b"\xff" * 8,
    "claims 2^31 of a number": b"\x8b" + struct.pack("<i", (1 << 31) - 1) + b"abc",
    "claims less than nothing": b"\x8b" + struct.pack("<i", -1),
    "number that is none": b"I12x\n",
    "number of ten thousand digits": b"I" + b"9" * 10_000 + b"\n",
    "fraction that is none": b"Fone\n",
    "text that is none": b"X\x02\x00\x00\x00\xff\xfe",
    "quotes that do not close": b"S'abc\n",
    "line that does not end": b"S'abc",
    "name that is not text": b"K\x01K\x02\x93",
    "name without end": value("a" * 2000) + value("b") + b"\x93",
    "call of a number": b"K\x01)R",
    "call of a tensor": tensor() + b")R",
    "keywords that are none": b"cX\nY\n)" + tensor() + b"\x92",
    "call with no tuple": b"ccollections\nOrderedDict\n]R",
    "call of nothing": b"(o",
    "keywords for a tensor": b"ctorch._utils\n_rebuild_tensor_v2\n)}" + value("storage") + b"Ns\x92",
    "append to a number": b"K\x01K\x02a",
    "append to a tensor": tensor() + b"K\x02a",
    "item of a list": b"]K\x01K\x02s",
    "item of a tensor": tensor() + b"K\x00K\x02s",
    "item without a value": b"}(K\x01u",
    "state of a dict": b"}}b",
    "state of a tensor": tensor() + b"(K\x00tb",
    "state of a number": b"K\x01}b",
    "extension": b"\x82\x01",
    "longer extension": b"\x83\x01\x00",
    "longest extension": b"\x84\x01\x00\x00\x00",
    "buffer from outside": b"\x97",
    "buffer to protect": value("a") + b"\x98",
    "set of no list": call(b"builtins set", "reduce"),
    "set of a tensor": b"cbuiltins\nset\n(" + tensor() + b"tR",
    "complex of text": b"cbuiltins\ncomplex\n" + value(("1j", "2")) + b"R",
    "bytes of a length": b"cbuiltins\nbytearray\n" + value((1 << 40,)) + b"R",
    "bytes by a codec": b"c_codecs\nencode\n" + value(("a", "idna")) + b"R",
    "size of text": b"ctorch\nSize\n" + value(("abc",)) + b"R",
    "device of none": b"ctorch\ndevice\n" + value(("nowhere", 1)) + b"R",
    "ordered by text": b"ccollections\nOrderedDict\n" + value((["ab"],)) + b"R",
    "number of too few bytes": number("f8", b"abc"),
    "number of too many bytes": number("f8", bytes(16)),
    "dtype with another state": b"cnumpy\ndtype\n" + value(("f8",)) + b"R(K\x03K\x04tb",
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_pickle_that_makes_no_sense_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(WeightsError, match="cannot be read as a checkpoint"):
        read_checkpoint(pack(tmp_path / "a.pth", DAMAGED[kind]))


def test_a_pickle_without_its_end_does_not_read_on_into_the_tensors(tmp_path: Path) -> None:
    pickled = b"\x80\x02" + value("cut")
    path = tmp_path / "a.pth"
    path.write_bytes(zip_of({"archive/data.pkl": pickled, "archive/data/0": b"." * 64}))
    with pytest.raises(WeightsError, match="cut off"):
        read_checkpoint(path)


def test_a_frame_and_a_memo_that_claim_much_take_nothing(tmp_path: Path) -> None:
    frame = b"\x95" + struct.pack("<Q", 1 << 60)
    path = pack(tmp_path / "a.pth", frame, value("kept"), b"r\xff\xff\xff\xff0j\xff\xff\xff\xff")
    assert read_x(path) == "kept"


def doubled(times: int) -> bytes:
    """A tuple of two that are the same tuple of two …, which has 2^times leaves."""
    return b")" + b"2\x86" * times


def test_nesting_without_end_is_neither_walked_nor_hashed(tmp_path: Path) -> None:
    laughs = pack(tmp_path / "a.pth", doubled(100))
    assert len(read_x(laughs)) == 2
    with pytest.raises(WeightsError, match="no tensors by name"):
        state_dict(read_checkpoint(laughs))
    assert len(repr(read_checkpoint(laughs))) < 1000
    for key in (doubled(100), b")" + b"\x85" * 100_000, value((1 << 61) - 1), tensor(), b"]"):
        for inside in (b"}" + key + b"K\x01s", b"\x8f(" + key + b"\x90", b"(" + key + b"\x91"):
            held = read_x(pack(tmp_path / "a.pth", inside))
            assert len(held) == 1
            assert isinstance(next(iter(held)), Placeholder)
    deep = pack(tmp_path / "a.pth", b"]" * 100_000 + b"a" * 99_999)
    assert len(read_x(deep)) == 1
    circle = read_x(pack(tmp_path / "a.pth", b"]q\x09h\x09a"))
    assert circle[0] is circle


def test_work_without_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="more than any list of tensors needs"):
        read_checkpoint(pack(tmp_path / "a.pth", b"N0" * 600_000 + b"N"))
    with pytest.raises(WeightsError, match="too many for a list of tensors"):
        read_checkpoint(pack(tmp_path / "a.pth", value("x" * (1 << 26))))


@pytest.mark.parametrize("name", ["set", "frozenset", "bytearray", "unknown"])
def test_copies_are_counted_so_that_a_few_bytes_cannot_fill_the_memory(tmp_path: Path, name: str) -> None:
    long = value(b"x" * 1_000_000) if name == "bytearray" else b"(" + b"N" * 20_000 + b"l"
    calls = b"cbuiltins\n%s\nh\x07R0" % name.encode() * 300
    with pytest.raises(WeightsError, match="more than any list of tensors needs"):
        read_checkpoint(pack(tmp_path / "a.pth", long + b"\x85q\x070", calls, b"N"))


def test_a_long_list_of_arguments_is_counted_too(tmp_path: Path) -> None:
    arguments = b"(" + b"N" * 20_000 + b"tq\x070"
    with pytest.raises(WeightsError, match="more than any list of tensors needs"):
        read_checkpoint(pack(tmp_path / "a.pth", arguments, b"cX\nY\nh\x07R0" * 300, b"N"))


# Archives that are not as they say


def refused_archive(path: Path, data: bytes, words: str) -> None:
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=words):
        read_checkpoint(path)


DIRECTORY, HEADER = b"PK\x01\x02", b"PK\x03\x04"


def patched(data: bytes, where: bytes, offset: int, change: bytes, name: bytes = b"archive/data/0") -> bytes:
    """`data` with a field of one record replaced, in the archive's directory or in the header before the record."""
    start = data.index(where)
    name_at = {DIRECTORY: 46, HEADER: 30}[where]
    while not data.startswith(name, start + name_at):
        start = data.index(where, start + 1)
    return data[: start + offset] + change + data[start + offset + len(change) :]


@pytest.fixture
def honest(tmp_path: Path) -> bytes:
    return pack(tmp_path / "honest.pth", tensor()).read_bytes()


def test_records_that_are_compressed_or_encrypted_are_refused(tmp_path: Path, honest: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(honest)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    packed = zip_of({**members, "archive/data/1": bytes(1 << 24)}, zipfile.ZIP_DEFLATED)
    refused_archive(tmp_path / "a.pth", packed, r"packed or encrypted.*zip -0")
    locked = patched(honest, DIRECTORY, 8, b"\x01\x00")
    refused_archive(tmp_path / "a.pth", locked, r"packed or encrypted")


def test_an_archive_that_was_packed_again_without_compression_is_read_into_aligned_memory(tmp_path: Path) -> None:
    tensors = {str(i): torch.full((i,), float(i)) for i in range(1, 9)}
    save(tensors, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        again = zip_of({name: archive.read(name) for name in archive.namelist()})
    (tmp_path / "b.pth").write_bytes(again)
    places = [again.index(raw(tensor)) for tensor in tensors.values()]
    assert any(place % 4 for place in places), "all are aligned in the file, so the test would prove nothing"
    content = read_checkpoint(tmp_path / "b.pth").content
    assert isinstance(content, dict)
    for name, tensor in tensors.items():
        assert_same(content[name], tensor)
        assert content[name].data_ptr() % 4 == 0


def test_records_with_two_sizes_or_two_names_are_refused(tmp_path: Path, honest: bytes) -> None:
    for where, offset in ((DIRECTORY, 20), (DIRECTORY, 24), (HEADER, 18), (HEADER, 22)):
        larger = patched(honest, where, offset, struct.pack("<I", 1 << 20))
        refused_archive(tmp_path / "a.pth", larger, "a record that has two sizes")
    renamed = patched(honest, HEADER, 30, b"archive/data/9")
    refused_archive(tmp_path / "a.pth", renamed, "a record that has two names")


def test_a_record_that_is_larger_than_what_is_there_is_refused(tmp_path: Path, honest: bytes) -> None:
    larger = honest
    for where, offset in ((DIRECTORY, 20), (HEADER, 18)):
        larger = patched(larger, where, offset, struct.pack("<II", 1 << 20, 1 << 20))
    refused_archive(tmp_path / "a.pth", larger, "records overlap")


def test_records_inside_of_records_are_refused(tmp_path: Path) -> None:
    inner = zip_of({"archive/data/1": bytes(64)})
    path = pack(tmp_path / "a.pth", tensor(), **{"data/2": inner})
    data = path.read_bytes()
    with zipfile.ZipFile(path, "a") as archive:
        hidden = zipfile.ZipInfo("archive/data/1")
        hidden.file_size, hidden.compress_size, hidden.CRC = 64, 64, 0
        hidden.header_offset = data.index(inner)
        archive.filelist.append(hidden)
        archive._didModify = True  # type: ignore[attr-defined]
    assert b"archive/data/1" in zipfile.ZipFile(path).namelist()[-1].encode()
    with pytest.raises(WeightsError, match="records overlap"):
        read_checkpoint(path)


def test_a_directory_that_points_elsewhere_is_refused(tmp_path: Path, honest: bytes) -> None:
    for place in (3, len(honest) - 4, (1 << 32) - 2):
        astray = patched(honest, DIRECTORY, 42, struct.pack("<I", place))
        refused_archive(tmp_path / "a.pth", astray, "not where its directory says")


def test_a_directory_that_points_before_the_file_is_refused(tmp_path: Path, honest: bytes) -> None:
    # The archive's comment holds a record, which the directory places that far before the beginning of the file.
    with zipfile.ZipFile(io.BytesIO(honest)) as archive:
        entries, directory = archive.infolist(), archive.start_dir
    record = honest[entries[2].header_offset : entries[3].header_offset]
    for entry in entries:
        place = 1000 + (-len(record) if entry is entries[2] else entry.header_offset)
        honest = patched(honest, DIRECTORY, 42, struct.pack("<I", place), entry.filename.encode())
    end = struct.pack("<IH", directory + 1000, len(record))
    refused_archive(tmp_path / "a.pth", honest[:-6] + end + record, "not where its directory says")


def test_two_records_of_one_name_are_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.pth", tensor())
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("archive/data.pkl", b"\x80\x02N.")
    with pytest.raises(WeightsError, match="two records of one name"):
        read_checkpoint(path)


def test_names_that_lead_out_of_the_archive_lead_nowhere(tmp_path: Path) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    path = pack(inside / "c.pth", tensor(), **{"../../../escaped": b"x", "/escaped": b"x"})
    assert read_x(path).tolist() == [0, 1, 2, 3]
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "a", inside, path]


def test_a_checkpoint_inside_of_a_checkpoint_is_not_followed(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.pth", value("outer"), **{"inner/data.pkl": b"\x80\x02N.", "inner.pth": SAVED})
    assert read_x(path) == "outer"


def test_the_other_byte_order_is_refused(tmp_path: Path) -> None:
    other = {"little": "big", "big": "little"}[sys.byteorder]
    with pytest.raises(WeightsError, match="another byte order"):
        read_checkpoint(pack(tmp_path / "a.pth", tensor(), byteorder=other.encode()))
    (tmp_path / "b.pth").write_bytes(legacy(value(1), value([]), order=other))
    with pytest.raises(WeightsError, match="another byte order"):
        read_checkpoint(tmp_path / "b.pth")


def legacy(*pickles: bytes, numbers: bytes = b"", order: str = sys.byteorder) -> bytes:
    """A file of the older format, laid out by hand: content, keys, and what follows."""
    system = {"protocol_version": 1001, "little_endian": order == "little"}
    head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, system))
    return head + b"".join(b"\x80\x02" + part + b"." for part in pickles) + numbers


def old_storage(numel: int = 4, view: object = None, kind: bytes = b"torch\nFloatStorage") -> bytes:
    return storage(numel, "7", kind).removesuffix(b"tQ") + value(view) + b"tQ"


NUMBERS = struct.pack("<q", 4) + np.arange(4, dtype="<f4").tobytes()


def test_the_hand_made_file_of_the_older_format_is_what_torch_writes(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(legacy(tensor(source=old_storage()), value(["7"]), numbers=NUMBERS))
    ours = read_checkpoint(path).content
    assert isinstance(ours, Tensor)
    assert_same(ours, torch.load(path, weights_only=True))
    assert ours.tolist() == [0, 1, 2, 3]


def old_file(content: bytes, keys: object = ("7",), numbers: bytes = NUMBERS) -> bytes:
    return legacy(content, value(list(keys) if isinstance(keys, tuple) else keys), numbers=numbers)


OLD = tensor(source=old_storage())
VERSION = pickle.dumps(1001, 2)
OLD_DAMAGE = {
    "storage never filled": (old_file(OLD, keys=()), "does not fit"),
    "storage never used": (old_file(value(1)), "does not fit"),
    "keys of numbers": (old_file(OLD, keys=(7,)), "does not fit"),
    "keys that are no list": (old_file(OLD, keys="7"), "does not fit"),
    "no bytes": (old_file(OLD, numbers=b""), "cut off"),
    "too few bytes": (old_file(OLD, numbers=NUMBERS[:-1]), "ends in the middle"),
    "another length": (old_file(OLD, numbers=struct.pack("<q", 5) + NUMBERS[8:] + bytes(4)), "another size"),
    "negative length": (old_file(OLD, numbers=struct.pack("<q", -4) + NUMBERS[8:]), "another size"),
    "more than the file": (old_file(tensor(source=old_storage(numel=1 << 40))), "claim more bytes"),
    "two sizes": (old_file(b"(" + old_storage(4) + old_storage(3) + b"t"), "two sizes"),
    "views": (old_file(tensor(source=old_storage(view=("8", 0, 4)))), "only old PyTorch reads"),
    "quantised": (old_file(old_storage(kind=b"torch\nQInt8Storage")), "only old PyTorch reads"),
    "tensor outside": (old_file(tensor(source=old_storage(), offset=1)), "make no sense"),
    "storage as its version": (legacy().replace(VERSION, b"\x80\x02" + storage() + b"."), "where none can be"),
    "another version": (old_file(value(1)).replace(VERSION, pickle.dumps(1002, 2)), "unknown version"),
}


@pytest.mark.parametrize("kind", OLD_DAMAGE)
def test_a_file_of_the_older_format_that_makes_no_sense_is_refused(tmp_path: Path, kind: str) -> None:
    data, words = OLD_DAMAGE[kind]
    refused_archive(tmp_path / "a.pth", data, words)


# ---------------------------------------------------------------------------------------------------------------------
# Damage by chance


def walk(content: object) -> None:
    """Touch every number of every tensor, as far as an honest file goes."""
    for part in content.values() if isinstance(content, dict) else ():
        if isinstance(part, Tensor):
            raw(part)
        walk(part)


@FORMATS
def test_a_damaged_file_gives_a_result_or_a_weights_error(tmp_path: Path, zipped: bool) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    content = {
        "state_dict": net.state_dict(),
        "best": np.float64(1.5),
        "array": np.arange(3),
        "meter": collections.Counter("abc"),
        "half": torch.ones(3, dtype=torch.float16)[1:],
        "odd": torch.ones(3, dtype=torch.uint16),
        "set": {1, 2},
    }
    whole = torch_bytes(content, zipped)
    chance = np.random.RandomState(20220408)
    path = tmp_path / "a.pth"
    outcomes = collections.Counter[str]()
    for _ in range(600):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 1, 2, 8))):
            data[chance.randint(len(data))] = chance.randint(256)
        if chance.uniform() < 0.2:
            start = chance.randint(len(data))
            del data[start : start + chance.choice((1, 7, 100, len(data)))]
        path.write_bytes(data)
        try:
            walk(read_checkpoint(path).content)
            outcomes["read"] += 1
        except WeightsError:
            outcomes["refused"] += 1
    assert min(outcomes["read"], outcomes["refused"]) > 20


# ---------------------------------------------------------------------------------------------------------------------
# Memory

MEASURE = """
import sys
from pathlib import Path
from poster_zoo.weights.checkpoint import read_checkpoint

def kilobytes(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))

Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
before = kilobytes("VmHWM"), kilobytes("RssAnon")
content = read_checkpoint(sys.argv[1]).content
for tensor in content.values():
    tensor.sum()
print(kilobytes("VmHWM") - before[0], kilobytes("RssAnon") - before[1])
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are measured by Linux's /proc")
@FORMATS
def test_reading_takes_little_more_memory_than_the_file_is_large(tmp_path: Path, root: Path, zipped: bool) -> None:
    path = save({str(i): torch.full((5_000_000,), 1.0) for i in range(15)}, tmp_path / "large.pth", zipped)
    size = path.stat().st_size
    assert size > 300_000_000
    run = [sys.executable, "-c", MEASURE, str(path)]
    out = subprocess.run(run, capture_output=True, text=True, check=True, cwd=root).stdout
    peak, private = (1024 * int(number) for number in out.split())
    path.unlink()
    assert peak < 1.3 * size
    if zipped:  # the file's pages are shared with the disk's cache: the system takes them back when it wants
        assert private < 0.1 * size
