"""Model cards: what the Hub reads of them, and that they claim no more than is known."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from hub_server import StandInHub
from huggingface_hub import ModelCard
from packaging.version import Version

import poster_zoo
from poster_zoo.cli import main
from poster_zoo.evaluate import evaluate
from poster_zoo.models._builder import ENTRIES
from poster_zoo.weights.card import address_card, evaluation_section, model_card, own_card
from poster_zoo.weights.entry import Metric
from poster_zoo.weights.save import model_config

VALIDATE = """
import json, sys
from huggingface_hub import ModelCard
for card in json.load(open(sys.argv[1])):
    ModelCard(card).validate()
print("all valid")
"""
TINY = ENTRIES["poster_tiny"]


def card_of(name: str, **changes: Any) -> str:
    entry = replace(ENTRIES[name], **changes)
    return model_card(name, entry, entry.label_names, repository=f"poster-zoo/{name}")


def config(labels: list[str], **changes: Any) -> dict[str, Any]:
    cfg = {"input_size": [3, 112, 112], "mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3], "interpolation": "bilinear"}
    known = {"architecture": "poster_tiny", "num_classes": len(labels), "label_names": labels, "pretrained_cfg": cfg}
    return known | changes


def test_whoever_installs_the_package_can_run_what_measured_its_numbers() -> None:
    metrics = [metric for entry in ENTRIES.values() for metric in entry.metrics]
    commands = {metric.command for metric in metrics if metric.measured is not None}
    assert commands
    for said in commands:
        words = shlex.split(said or "")
        assert words[0] == "poster-zoo"
        command = main.commands[words[1]]
        command.make_context("poster-zoo", words[2:])  # fails where an option is none


def test_a_card_names_no_paper_but_the_networks_own_as_its_paper() -> None:
    for name in ("poster_tiny", "poster_tiny_baseline", "poster_tiny_image"):
        assert ENTRIES[name].paper_ids == ENTRIES["poster"].paper_ids
        assert "- Paper: POSTER" in card_of(name)
        assert "Barsoum et al., ICMI 2016 (arXiv:1608.01041)" in card_of(name)


@pytest.mark.parametrize("name", poster_zoo.list_models())
def test_the_hubs_own_parser_reads_every_models_card(name: str) -> None:
    entry = ENTRIES[name]
    data = ModelCard(card_of(name)).data.to_dict()
    assert data["license"] == entry.license
    assert data["library_name"] == "timm"
    features = "image-feature-extraction"
    expected = {"centerface": "object-detection", "ir50": features, "mobilefacenet": features}
    assert data["pipeline_tag"] == expected.get(name, "image-classification")
    assert {"timm", "poster-zoo"} <= set(data["tags"])
    assert ("facial-expression-recognition" in data["tags"]) == bool(entry.label_names)
    assert data.get("datasets", []) == list(entry.datasets)


def test_the_hub_takes_every_card(tmp_path: Path) -> None:
    if Version(huggingface_hub.__version__) < Version("2"):
        pytest.skip(f"huggingface_hub {huggingface_hub.__version__} may ask the real Hub, whatever HF_ENDPOINT says")
    cards = [card_of(name) for name in poster_zoo.list_models()]
    cards.append(own_card(config(["a: b", '"', "- c"]), TINY, repository="a-user/faces"))
    (tmp_path / "cards.json").write_text(json.dumps(cards))
    with StandInHub() as hub:
        said = subprocess.run(
            [sys.executable, "-c", VALIDATE, str(tmp_path / "cards.json")],
            env=os.environ | hub.environment(tmp_path),
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert said.stdout == "all valid\n", said.stderr
    assert len(hub.asked("POST", "/api/validate-yaml")) == len(cards)


def test_what_was_measured_stands_in_the_model_index_and_what_was_only_published_does_not() -> None:
    metrics = (
        Metric("FERPlus test", "accuracy", measured=0.875, command="poster-zoo eval poster_tiny ferplus"),
        Metric("FERPlus test", "mean class accuracy", published=0.7),
    )
    text = card_of("poster_tiny", metrics=metrics)
    card = ModelCard(text)
    (result,) = card.data.eval_results
    assert (card.data.model_name, result.task_type) == ("poster_tiny", "image-classification")
    assert (result.dataset_name, result.dataset_type) == ("FERPlus test", "ferplus")
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.875)
    assert "| FERPlus test | mean class accuracy | 0.7000 | not measured | – |" in text


def test_data_that_is_on_the_hub_is_named() -> None:
    assert ModelCard(card_of("poster_tiny", datasets=("a-lab/faces",))).data.datasets == ["a-lab/faces"]


def test_a_licence_that_the_hub_has_no_name_for_is_spelt_out() -> None:
    data = ModelCard(card_of("poster_tiny", license="Faces-Research-1.0")).data.to_dict()
    assert (data["license"], data["license_name"]) == ("other", "faces-research-1.0")


def test_own_weights_are_not_said_to_be_the_entrys() -> None:
    metrics = (Metric("FERPlus test", "accuracy", published=0.9, measured=0.875),)
    entry = replace(TINY, metrics=metrics, datasets=("a-lab/faces",), origin_url="https://authors.example")
    text = own_card(config(["no", "yes"], model_args={"depth": 1}), entry, repository="a-user/masks@v2")
    data = ModelCard(text).data.to_dict()
    assert not {"license", "model-index", "datasets"} & set(data)
    assert data["tags"] == ["timm", "poster-zoo", "face"]
    for claim in ("0.875", "0.9", entry.description, "authors.example", "apache", "FERPlus", "Happiness"):
        assert claim not in text, claim
    for truth in (
        "# masks\n",
        "0. no\n1. yes\n",
        'Predictor("hf-hub:a-user/masks@v2")',
        "`depth=1`",
        "arXiv:2204.04083",
    ):
        assert truth in text, truth
    assert "Licence of the weights: not stated" in text


def test_own_weights_that_name_expressions_say_what_a_label_cannot_tell() -> None:
    text = own_card(config(["Happy", "other"]), TINY, repository="a-user/faces")
    assert "facial-expression-recognition" in ModelCard(text).data.tags
    assert "Article 5(1)(f)" in text


EXPRESSION_MODELS = [name for name in poster_zoo.list_models() if ENTRIES[name].label_names]


@pytest.mark.parametrize("name", EXPRESSION_MODELS)
def test_every_card_of_an_expression_model_says_what_it_cannot_tell(name: str) -> None:
    text = card_of(name)
    for truth in (
        "It does not say what the person\nfeels",
        "Article 5(1)(f)",
        "people at work and in\neducation",
        "Age, sex, skin and origin of the people are **not measured**",
        "`poster-zoo eval` measures",
    ):
        assert truth in text, truth


def test_a_card_without_expressions_says_nothing_of_them() -> None:
    assert "AI Act" not in card_of("mobilefacenet")
    assert "AI Act" not in own_card(config(["no", "yes"]), TINY, repository="a-user/masks")


@pytest.mark.parametrize(
    ("name", "data", "images"),
    [
        ("poster_rafdb", "RAF-DB", 12_271),
        ("poster_affectnet7", "AffectNet", 283_901),
        ("poster_affectnet8", "AffectNet", 287_651),
        ("poster_ferplus", "FERPlus", 25_045),
        ("poster_tiny", "Photographs", 9_570),
    ],
)
def test_the_card_says_which_classes_are_rare_in_the_data(name: str, data: str, images: int) -> None:
    # The release's number of training images is the sum of its classes'.
    (line,) = (line for line in card_of(name).splitlines() if line.startswith(f"- **{data}**"))
    assert f"{images:,} training images" in line
    counts = [int(count.replace(",", "")) for count in re.findall(r"[A-Z][a-z]+ ([\d,]*\d)", line)]
    assert len(counts) >= len(ENTRIES[name].label_names) - 1
    assert sum(counts) == images


def test_own_weights_are_not_said_to_be_trained_on_the_entrys_data() -> None:
    assert "training images" not in own_card(config(["Happy", "other"]), TINY, repository="a-user/faces")


def test_a_measurement_becomes_a_section_with_intervals_and_calibration() -> None:
    true, predicted = ["a", "a", "a", "b"], ["a", "a", "b", "b"]
    evaluation = evaluate(true, predicted, ["a", "b", "c"], scores=[0.9, 0.7, 0.6, 0.8])
    text = evaluation_section("FERPlus test", json.loads(json.dumps(evaluation.to_dict())))
    assert text.startswith("## FERPlus test, 4 images\n")
    low, high = evaluation.intervals.accuracy
    assert f"| accuracy | 0.7500 | {low:.4f} … {high:.4f} |" in text
    assert "| mean class accuracy | 0.8333 |" in text
    # Two answers are a, mean score 0.8, both right; two are b, mean score 0.7, one right.
    (a,), (b,), (c,) = (re.findall(rf"^\| {label} \| (.*…?.*) \|$", text, re.MULTILINE)[:1] for label in "abc")
    assert a.startswith("3 | 0.6667 | ")
    assert a.endswith("| 2 | 0.8000 | 1.0000")
    assert b.endswith("| 2 | 0.7000 | 0.5000")
    assert c == "0 | – | – | 0 | – | –"
    assert "over the 2 of 3 classes that have images" in text
    for row in ("| a | 2 | 1 | 0 |", "| b | 0 | 1 | 0 |", "| c | 0 | 0 | 0 |"):
        assert row in text


def test_the_card_of_a_grey_model_says_what_it_is_fed() -> None:
    cfg = config(["a"])["pretrained_cfg"] | {"input_size": [1, 96, 128]}
    text = own_card(config(["a"], pretrained_cfg=cfg), TINY, repository="a-user/faces")
    assert "Grey, resized to 96 × 128 pixels" in text
    assert "mean (0.5), standard deviation (0.2)" in text  # the mean of each three


def test_own_weights_without_classes_are_loaded_as_a_model() -> None:
    text = own_card(config([], num_classes=0), TINY, repository="a-user/faces")
    assert 'create_model("hf-hub:a-user/faces", pretrained=True)' in text
    assert ModelCard(text).data.pipeline_tag == "image-feature-extraction"
    assert "## Classes" not in text


@pytest.mark.parametrize("name", ["poster_rafdb", "mobilefacenet"])
def test_a_card_that_moves_to_the_hub_loads_from_there(name: str) -> None:
    entry = ENTRIES[name]
    here = model_card(name, entry, entry.label_names, provenance="Converted from `file.pth`.")
    there = model_card(name, entry, entry.label_names, provenance="Converted from `file.pth`.", repository="a-user/x")
    assert here != there
    assert address_card(here, name, "a-user/x") == there
    assert address_card("# My own words", name, "a-user/x") == "# My own words"


@pytest.mark.parametrize("labels", [["cat", "dog"], []])
def test_the_card_of_a_training_run_loads_from_where_it_goes(labels: list[str]) -> None:
    model = poster_zoo.create_model("poster_tiny", num_classes=len(labels))
    config = model_config(model, labels)
    entry = ENTRIES["poster_tiny"]
    run = own_card(config, entry, repository="OWNER/first run") + "\n## Training\n\nSent to hf-hub:OWNER/x by hand.\n"
    sent = address_card(run, "poster_tiny", "a-user/faces")
    assert '("hf-hub:a-user/faces"' in sent
    assert '("hf-hub:OWNER' not in sent
    assert sent.endswith("Sent to hf-hub:OWNER/x by hand.\n")  # words of one's own stay
    elsewhere = own_card(config, entry, repository="somebody/else")
    assert address_card(elsewhere, "poster_tiny", "a-user/faces") == elsewhere
