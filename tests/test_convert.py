"""Authors' checkpoints become weights of the zoo, proved and without running a line of theirs."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_cli import runner
from test_parity import EXPECTED

import poster_zoo
from poster_zoo.cli import main
from poster_zoo.errors import UnknownModelError, WeightsError, WeightsNotFoundError
from poster_zoo.weights.find import installed_folder


class RecorderMeter:
    """Named as the class that POSTER++'s trainer pickles into its checkpoints."""

    def __init__(self) -> None:
        self.epoch_losses = [1.0, 2.0]


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with checkpoints as three releases pack theirs."""
    folder = tmp_path_factory.mktemp("releases")
    small = checkpoints.checkpoint("poster_rafdb_small")
    small["optimizer_state_dict"] = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 4e-5}]}
    torch.save(small, folder / "small.pth")
    RecorderMeter.__module__ = "__main__"
    recorder = RecorderMeter()
    sys.modules["__main__"].RecorderMeter = RecorderMeter  # type: ignore[attr-defined]
    state = {**checkpoints.checkpoint("posterv2_rafdb"), "best_acc": 92.21, "recorder": recorder}
    for i, window in enumerate((28, 14, 7), 1):  # the index buffers that a real release carries too
        name = f"module.attn{i}.relative_position_index"
        state["state_dict"][name] = torch.zeros(window**2, window**2, dtype=torch.int64)
    torch.save(state, folder / "v2.pth")
    torch.save(checkpoints.checkpoint("mobilefacenet"), folder / "mobilefacenet.pth.tar")
    return folder


def test_a_release_is_recognised_sorted_and_folded(releases: Path, tmp_path: Path) -> None:
    conversion = poster_zoo.convert(releases / "small.pth", out=tmp_path / "small")
    assert conversion.model == "poster_small"
    assert conversion.to_dict()["tensors"] == {"used": 968, "dropped": 13, "left_over": 0}
    assert conversion.largest_difference <= 1e-5
    written, released = load_file(tmp_path / "small" / "model.safetensors"), checkpoints.tensors("poster_rafdb_small")
    stem = released["ir_back.input_layer.0.weight"]
    assert torch.equal(written["image_stream.stem.conv.weight"], stem[:, [2, 1, 0]])
    assert torch.equal(
        written["fusion.blocks.3.small.landmark.norm2.bias"], released["pyramid_fuse.blocks.3.block_s.norm4.bias"]
    )
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert config["label_names"][0] == "Surprise"
    assert config["pretrained_cfg"]["mean"] == [0.406, 0.456, 0.485]
    assert "poster_small" in (tmp_path / "small" / "README.md").read_text()


def test_the_answer_on_rgb_is_the_releases_on_bgr(releases: Path, tmp_path: Path) -> None:
    model = poster_zoo.load_checkpoint(releases / "small.pth").eval()
    x = torch.from_numpy(np.random.RandomState(0).standard_normal((2, 3, 224, 224)).astype(np.float32))
    with torch.inference_mode():
        answer = model(x[:, [2, 1, 0]])
    torch.testing.assert_close(answer, EXPECTED["poster_rafdb_small/logits"], rtol=0, atol=1e-4)


def test_releases_with_equal_tensors_must_be_told_apart(releases: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="poster_v2_rafdb, poster_v2_affectnet7 and poster_v2_caers"):
        poster_zoo.convert(releases / "v2.pth", out=tmp_path / "v2")
    assert not (tmp_path / "v2").exists()
    conversion = poster_zoo.convert(releases / "v2.pth", "poster_v2_caers", out=tmp_path / "v2")
    assert conversion.to_dict()["tensors"] == {"used": 720, "dropped": 27, "left_over": 0}
    assert conversion.placeholders == ("__main__.RecorderMeter",)
    assert json.loads((tmp_path / "v2" / "config.json").read_text())["label_names"][3] == "Happy"


def test_installed_weights_are_found_by_pretrained(releases: Path) -> None:
    conversion = poster_zoo.convert(releases / "mobilefacenet.pth.tar", install=True)
    assert conversion.out == installed_folder("mobilefacenet")
    assert poster_zoo.model_info("mobilefacenet").source.source == "installed"
    assert "mobilefacenet" in poster_zoo.list_models(pretrained=True)
    model = poster_zoo.mobilefacenet(pretrained=True)
    released = checkpoints.tensors("mobilefacenet")
    assert torch.equal(model.stem[0].conv.weight, released["conv1.conv.weight"].flip(1))


def test_streams_start_from_their_own_releases(tmp_path: Path, releases: Path) -> None:
    torch.save(checkpoints.checkpoint("ir50"), tmp_path / "ir50.pth")
    poster_zoo.convert(tmp_path / "ir50.pth", install=True)
    poster_zoo.convert(releases / "mobilefacenet.pth.tar", install=True)
    model = poster_zoo.create_model("poster_small", pretrained_streams=True)
    backbone, landmarks = (poster_zoo.create_model(name, pretrained=True) for name in ("ir50", "mobilefacenet"))
    ours, theirs = model.image_stream.state_dict(), backbone.trunk.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    ours, theirs = model.landmark_stream.state_dict(), landmarks.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    with pytest.raises(WeightsError, match="do not fit the image stream"):
        poster_zoo.create_model("poster_tiny", pretrained_streams=True)
    with pytest.raises(TypeError, match="pretrained_streams"):
        poster_zoo.create_model("ir50", pretrained_streams=True)


def test_an_unknown_file_is_told_the_nearest_layouts(tmp_path: Path) -> None:
    state = checkpoints.tensors("mobilefacenet")
    state["conv1.conv.weight"] = torch.zeros(32, 3, 3, 3)
    state["extra.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(WeightsError) as error:
        poster_zoo.convert(tmp_path / "odd.pth", out=tmp_path / "odd")
    message = str(error.value)
    assert "mobilefacenet: 2 differences" in message
    assert "extra.weight" in message
    assert "stem.0.conv.weight is (32, 3, 3, 3) instead of (64, 3, 3, 3)" in message
    assert not (tmp_path / "odd").exists()


def test_a_release_of_another_model_than_was_said_is_told_which_it_is(releases: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"is not poster_rafdb, but poster_small: leave out --model"):
        poster_zoo.convert(releases / "small.pth", "poster_rafdb", out=tmp_path / "out")
    with pytest.raises(
        WeightsError, match=r"is not ir50, but poster_v2_rafdb, poster_v2_affectnet7 or poster_v2_caers"
    ):
        poster_zoo.convert(releases / "v2.pth", "ir50", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wrong_names_and_files_are_one_sentence(releases: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match="'poster_small'"):
        poster_zoo.convert(releases / "small.pth", "poster_smal")
    with pytest.raises(WeightsError, match="No authors' file is of the model poster_tiny"):
        poster_zoo.convert(releases / "small.pth", "poster_tiny")
    with pytest.raises(WeightsNotFoundError):
        poster_zoo.convert(tmp_path / "nowhere.pth")


def test_names_in_a_file_cannot_write_on_the_terminal(tmp_path: Path) -> None:
    torch.save({"\x1b]0;hello\x07": torch.zeros(1), "x" * 10_000: torch.zeros(1)}, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=r"\\x1b\]0;hello") as error:
        poster_zoo.convert(tmp_path / "odd.pth")
    assert all(line.isprintable() for line in str(error.value).splitlines())
    assert len(str(error.value)) < 4000


def test_a_full_disk_for_unfinished_files_says_which_folder_it_is(releases: Path, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))  # a file that outgrows it fails as on a full disk
    try:
        with pytest.raises(WeightsError, match=r"too large.*TMPDIR"):
            poster_zoo.convert(releases / "mobilefacenet.pth.tar", out=tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "out").exists()


def test_damaged_numbers_do_not_pass_the_proof(tmp_path: Path) -> None:
    state = checkpoints.checkpoint("mobilefacenet")
    state["state_dict"]["conv2_dw.bn.running_var"][3] = float("nan")
    torch.save(state, tmp_path / "damaged.pth")
    with pytest.raises(WeightsError, match="not finite"):
        poster_zoo.convert(tmp_path / "damaged.pth", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_real_detector_puts_its_points_on_the_face(shared: Path, root: Path) -> None:
    model = poster_zoo.load_checkpoint(shared / "weights" / "mobilefacenet_model_best.pth.tar")
    points = poster_zoo.Predictor(model).landmarks(root / "examples" / "face.png")
    expected = np.array(json.loads((shared / "weights" / "face_points.json").read_text()))
    assert np.abs(points - expected).max() < 0.5


MEASURE = """
import resource, sys
import poster_zoo, poster_zoo.weights.convert
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
poster_zoo.convert(sys.argv[1], out=sys.argv[2])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_converting_takes_little_memory(releases: Path, tmp_path: Path) -> None:
    """The peak beyond the imported libraries is under 2.5 times the file."""
    command = [sys.executable, "-c", MEASURE, str(releases / "small.pth"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout.splitlines()[-1]) < 2.5 * (releases / "small.pth").stat().st_size


# -------------------------------------------------------------------------------------------------------- command line


def run(*arguments: Any) -> Any:
    return runner().invoke(main, ["convert", *map(str, arguments)])


def test_json_counts_add_up(releases: Path, tmp_path: Path, root: Path) -> None:
    done = run(
        releases / "mobilefacenet.pth.tar", "--out", tmp_path / "out", "--json", "--check", root / "examples/face.png"
    )
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert printed["model"] == "mobilefacenet"
    assert printed["tensors"] == {"used": 333, "dropped": 0, "left_over": 0}
    assert len(printed["logits"]) == 136
    assert Path(printed["out"], "model.safetensors").is_file()


def test_words_name_what_was_dropped(releases: Path, tmp_path: Path) -> None:
    done = run(releases / "small.pth", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "981 tensors of poster_small: 968 used, 13 dropped, 0 left over" in done.stdout
    assert "dropped 12: embedding head of the image stream, never run" in done.stdout


def test_wrong_use_is_exit_code_2_and_failure_1(releases: Path, tmp_path: Path) -> None:
    both = run(releases / "small.pth", "--install", "--out", tmp_path)
    assert both.exit_code == 2
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><html>Quota exceeded</html>")
    page = run(tmp_path / "page.pth")
    assert page.exit_code == 1
    assert page.stderr.startswith("Error: ")
    assert "Traceback" not in page.output


def test_predict_takes_an_authors_checkpoint(releases: Path, root: Path) -> None:
    face = str(root / "examples" / "face.png")
    done = runner().invoke(
        main, ["predict", face, "--faces", "none", "--checkpoint", str(releases / "small.pth"), "--json"]
    )
    assert done.exit_code == 0, done.output
    model = poster_zoo.load_checkpoint(releases / "small.pth")
    assert json.loads(done.stdout)["probabilities"] == pytest.approx(
        poster_zoo.Predictor(model)(face).probabilities, abs=1e-5
    )
