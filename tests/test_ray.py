"""Ray Data on a real cluster of two nodes, on this machine alone: the same answers, whatever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import COMMAND, ENVIRONMENT, lines, run
from test_predict import COLOURS, LABELS, ColourModel, png
from test_scale import StoppedModel
from torch import Tensor

import poster_zoo
from poster_zoo.errors import ClusterError
from poster_zoo.predict import Predictor
from poster_zoo.scale import BatchPredictor, Outcome, predict_into

# Read as Ray is imported: no reports of use, and every port on 127.0.0.1.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
# By default Ray's processes wait for all others of a busy machine. The spelling is Ray's.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
ray = pytest.importorskip("ray", reason="ray[data], of poster-zoo[ray], is not installed")
pytest.importorskip("ray.data", reason="ray[data], of poster-zoo[ray], is not installed")
psutil = pytest.importorskip("psutil", reason="psutil, which looks at Ray's processes, is not installed")

# Ray gives a node 30 s to come up, which a busy machine may not meet.
_TOO_BUSY = "timed out during startup"
_STARTS = 3

IMAGES = 96
BATCH = 4


class DyingModel(ColourModel):
    """Is killed at its third batch, in the first process that comes there."""

    def __init__(self, mark: Path) -> None:
        super().__init__()
        self.mark = mark.absolute()

    def forward(self, x: Tensor) -> Tensor:
        if len(self.batches) == 2 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


class MeetingModel(ColourModel):
    """Waits, in each process, until two are at work, and then takes a while for each batch."""

    def __init__(self, place: Path) -> None:
        super().__init__()
        self.place = place.absolute()
        self.place.mkdir()

    def forward(self, x: Tensor) -> Tensor:
        (self.place / str(os.getpid())).touch()
        while len(list(self.place.iterdir())) < 2:
            time.sleep(0.05)
        time.sleep(0.25)
        return super().forward(x)


def _add_node(cluster: Any, **options: Any) -> None:
    for attempt in range(_STARTS):
        try:
            cluster.add_node(num_cpus=2, **options)
            return
        except Exception as error:  # Ray raises a bare one
            if _TOO_BUSY not in str(error) or attempt == _STARTS - 1:
                raise


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes, as if of two CPUs each, which this process has joined."""
    from ray.cluster_utils import Cluster

    # The tests' own modules are not on the path of Ray's processes.
    for name in (__name__, "test_predict"):
        ray.cloudpickle.register_pickle_by_value(sys.modules[name])
    cluster: Any = Cluster()
    try:
        _add_node(cluster, include_dashboard=False)
        _add_node(cluster)
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The current folder, whose folder `photos` holds images, one of them broken; their names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    names = [f"photos/{i:03d}.png" for i in range(IMAGES)]
    for i, name in enumerate(names):
        (tmp_path / name).write_bytes(png(list(COLOURS)[i % 3]) if i != 50 else b"broken")
    return names


def check(rows: list[dict[str, Any]], sources: list[str], name: str = "source") -> None:
    """See that rows are the answers about these images, one each, by the place of each in the colours."""
    assert [row[name] for row in rows] == sources
    assert [row["label"] for row in rows] == [None if i == 50 else LABELS[i % 3] for i in range(IMAGES)]
    for i, row in enumerate(rows):
        if i == 50:
            assert f"{sources[i]!r} is damaged" in row["error"]
            assert row["probabilities"] is None
        else:
            logits = np.array(COLOURS[list(COLOURS)[i % 3]]) / 255 * 4
            right = np.exp(logits) / np.exp(logits).sum()
            assert row["error"] is None
            assert list(row["probabilities"].values()) == pytest.approx(right, abs=1e-6)


def table(folder: str | Path) -> list[dict[str, Any]]:
    from pyarrow import parquet

    rows: list[dict[str, Any]] = parquet.read_table(folder).to_pylist()
    return rows


@pytest.mark.usefixtures("cluster")
def test_a_pipeline_of_ray_data_past_a_killed_actor_loses_and_doubles_nothing(photos: list[str]) -> None:
    here = [str(Path(name).absolute()) for name in photos]
    answered = ray.data.read_binary_files(here, include_paths=True, override_num_blocks=12).map_batches(
        BatchPredictor,
        fn_constructor_kwargs={"model": DyingModel(Path("killed")), "batch_size": BATCH},
        batch_size=8,
        num_cpus=0.5,
        compute=ray.data.ActorPoolStrategy(size=2),
    )
    answered.write_parquet(str(Path("out").absolute()))  # Ray's processes have another current folder
    assert Path("killed").exists()
    rows = table("out")
    assert set(rows[0]) == {"path", "label", "score", "probabilities", "face", "error"}
    check(sorted(rows, key=lambda row: str(row["path"])), here, "path")


@pytest.mark.usefixtures("cluster")
def test_images_that_ray_data_decoded_are_answered(photos: list[str]) -> None:
    here = [str(Path(name).absolute()) for name in photos[:12]]
    answered = ray.data.read_images(here, include_paths=True).map_batches(
        BatchPredictor, fn_constructor_kwargs={"model": ColourModel()}, batch_size=8, num_cpus=0.5
    )
    rows = sorted(answered.take_all(), key=lambda row: str(row["path"]))
    assert [row["label"] for row in rows] == [LABELS[i % 3] for i in range(12)]
    assert set(rows[0]) == {"path", "label", "score", "probabilities", "face", "error"}


def into(model: ColourModel, engine: Any = "ray") -> Outcome:
    predictor = Predictor(model, batch_size=BATCH, num_workers=1, progress=False)
    return predict_into(predictor, ["photos"], "out", engine=engine)


@pytest.mark.usefixtures("cluster")
def test_ray_goes_on_with_what_one_process_began_past_a_killed_actor(photos: list[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        into(StoppedModel(stop=5), "processes")
    outcome = into(DyingModel(Path("killed")))
    assert Path("killed").exists()
    attempts = [file.stat().st_size for file in Path("out/.poster_zoo/attempts").iterdir()]
    assert sorted(attempts) == [1] * (IMAGES // BATCH - 6) + [2]  # five parts were done, and one was begun twice
    assert (outcome.images, outcome.before, outcome.failures) == (IMAGES, 5 * BATCH, 1)
    check(table("out"), photos)


class Progress:
    """Stands where a progress bar is told of each part, and does something once when so many are there."""

    def __init__(self, parts: int, act: Callable[[], object]) -> None:
        self.parts, self.act = parts, act

    def __call__(self, *arguments: Any) -> Progress:
        return self

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None: ...

    def update(self, images: int) -> None:
        self.parts -= 1
        if self.parts == 0:
            self.act()


@pytest.mark.usefixtures("cluster")
def test_what_goes_wrong_in_an_actor_is_told_in_one_sentence_and_one_process_can_end_it(
    photos: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Path("out/.poster_zoo/images")
    with monkeypatch.context() as patch:
        patch.setattr("poster_zoo.scale.work._bar", Progress(2, lambda: names.rename("away")))
        with pytest.raises(ClusterError, match=r"^No such file or directory: '.*images'\.$"):
            into(MeetingModel(Path("met")))
    Path("away").rename(names)
    assert 2 * BATCH <= into(ColourModel(), "processes").before < IMAGES
    check(table("out"), photos)


def test_a_machine_that_is_lost_loses_and_doubles_nothing(
    photos: list[str], cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (worker,) = (node for node in cluster.list_all_nodes() if node is not cluster.head_node)
    raylet = psutil.Process(worker.all_processes["raylet"][0].process.pid)

    def kill() -> None:
        at_work = {int(file.name) for file in Path("met").iterdir()}
        assert at_work & {process.pid for process in raylet.children(recursive=True)}
        cluster.remove_node(worker, allow_graceful=False)

    monkeypatch.setattr("poster_zoo.scale.work._bar", Progress(6, kill))
    outcome = into(MeetingModel(Path("met")))
    assert len(cluster.list_all_nodes()) == 1
    assert (outcome.images, outcome.failures) == (IMAGES, 1)
    check(table("out"), photos)


# --- the command line, in a process of its own


@pytest.fixture
def faces(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The arguments for a poster_tiny with random weights and 40 images, in the current folder.

    They are noise, but for a broken one and one with two faces.
    """
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    poster_zoo.save_pretrained(poster_zoo.create_model("poster_tiny"), "model")
    random = np.random.default_rng(0)
    Path("faces").mkdir()
    for i in range(40):
        Image.fromarray(random.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(f"faces/{i:02d}.png")
    Path("faces/07.png").write_bytes(b"broken")
    face = Image.open(root / "examples" / "face.png").convert("RGB")
    pair = Image.new("RGB", (230, 120), "grey")
    for left in (10, 120):
        pair.paste(face, (left, 10))
    pair.save("faces/20.png")
    return ["predict", "faces", "-m", "local-dir:model", "--device", "cpu"]


def listening(process: Any) -> set[str]:
    """Return the addresses at which a process and those that it started listen."""
    addresses = set()
    for one in [process, *process.children(recursive=True)]:
        try:
            addresses |= {c.laddr.ip for c in one.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
        except psutil.Error:
            continue
    return addresses


def watched(*arguments: str) -> tuple[set[str], int, str, str]:
    """Run a command; return where it and what it started listened, its exit status, stdout and stderr."""
    environment = {name: value for name, value in ENVIRONMENT.items() if not name.startswith("RAY_")}
    addresses: set[str] = set()
    for _ in range(_STARTS):
        with subprocess.Popen(
            [*COMMAND, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            while process.poll() is None:
                addresses |= listening(psutil.Process(process.pid))
                time.sleep(0.5)
            stdout, stderr = process.communicate()
        if _TOO_BUSY not in stderr:
            break
    return addresses, process.returncode, stdout, stderr


def test_the_command_starts_ray_on_this_machine_and_answers_as_one_process_does(faces: list[str]) -> None:
    addresses, status, stdout, stderr = watched(*faces, "--engine", "ray", "--out", "out", "--actors", "1")
    assert status == 1, stderr
    assert stdout == ""
    assert "out holds the answers about 40 images.\n" in stderr
    assert "1 of 40 images failed; the first: 'faces/07.png' is damaged" in stderr
    assert {address.removeprefix("::ffff:") for address in addresses} == {"127.0.0.1"}
    alone = lines(run(*faces, "--json"))
    assert sum(other.get("face") is not None for other in alone) == 2
    for row, other in zip(table("out"), alone, strict=True):
        assert row["source"] == other["source"]
        assert row["label"] == other.get("label")
        assert row["error"] == other.get("error")
        assert (row["face"] is None) == (other.get("face") is None)
        if row["face"]:
            assert row["face"]["box"] == pytest.approx(other["face"]["box"], abs=0.05)
        if row["probabilities"]:
            right = list(other["probabilities"].values())
            assert list(row["probabilities"].values()) == pytest.approx(right, abs=1e-5)
