"""Training: recipes, losses, batches, and what a run leaves behind."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import re
import resource
import stat
import sys
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from tqdm import tqdm
from training_faces import CLASSES, QUICK, SMALL, faces, numbers, small_model, valid_faces

import poster_zoo
from poster_zoo.errors import FaultyDataError, ImageError, LabelError, OptionError, TrainingError
from poster_zoo.models._builder import ENTRIES
from poster_zoo.train import RECIPES, ExpressionLoss, Recipe, find_recipe, recipe_for, train, with_settings
from poster_zoo.train.batches import EpochBatches, epoch_order
from poster_zoo.train.loop import _schedule
from poster_zoo.train.losses import balanced_weights
from poster_zoo.train.recipe import differences
from poster_zoo.train.step import make_optimizer


def changed(**fields: Any) -> Recipe:
    return Recipe(**QUICK.to_dict() | fields)


def trained(out: Path, recipe: Recipe = QUICK, model: Any = None, **options: Any) -> Any:
    """Train the small model on the made-up faces."""
    given = {"model_args": SMALL, "workers": 0} | options
    data, valid = given.pop("data", faces()), given.pop("valid", valid_faces())
    return train(model or small_model(drop_rate=recipe.drop_rate), recipe, data, valid, out, **given)


# --- recipes


def test_the_authors_settings_by_name() -> None:
    rafdb, affectnet = RECIPES["rafdb"], RECIPES["affectnet7"]
    assert (rafdb.optimizer, rafdb.rho, rafdb.adaptive, rafdb.lr) == ("adam", 0.05, False, 4e-5)
    assert (rafdb.schedule, rafdb.gamma, rafdb.warmup_epochs, rafdb.weight_decay) == ("exponential", 0.98, 0, 0)
    assert (rafdb.epochs, rafdb.batch_size, rafdb.drop_path_rate, rafdb.transform) == (300, 200, 0.1, "authors")
    assert (rafdb.smoothed, rafdb.smoothing, rafdb.plain) == (2, 0.2, 1)
    assert (affectnet.lr, affectnet.balance) == (2e-6, 1)
    assert RECIPES["affectnet8"] == affectnet
    study = RECIPES["study"]
    assert (study.smoothed, study.plain, study.batch_size, study.lr, study.drop_path_rate) == (1, 0, 100, 4e-5, 0.01)
    for name, lr in (("rafdb", 3.5e-5), ("affectnet7", 1e-6), ("affectnet8", 1e-6), ("caers", 4e-5)):
        v2 = RECIPES[f"poster_v2_{name}"]
        assert (v2.lr, v2.epochs, v2.batch_size, v2.smoothed, v2.plain, v2.rho) == (lr, 200, 144, 0, 1, 0.05)


@pytest.mark.parametrize("model", [name for name, entry in ENTRIES.items() if entry.label_names])
def test_every_model_with_classes_has_a_recipe(model: str) -> None:
    assert ENTRIES[model].recipe in RECIPES
    recipe = recipe_for(model)
    if model in RECIPES:
        assert recipe == RECIPES[model]
    elif "affectnet" in model or "ferplus" in model:
        assert recipe == RECIPES[model.removeprefix("poster_")]


def test_every_field_can_be_set_from_text() -> None:
    recipe = with_settings(Recipe(), {name: str(value) for name, value in RECIPES["tiny"].to_dict().items()})
    assert recipe == RECIPES["tiny"]
    assert with_settings(recipe, {"compile": "yes", "ema": " 0.5 "}) == Recipe(
        **recipe.to_dict() | {"compile": True, "ema": 0.5}
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"learning_rate": 1}, "no field 'learning_rate'"),
        ({"weigth_decay": 1}, "Did you mean 'weight_decay'"),
        ({"epochs": "many"}, "epochs cannot be 'many'; it is a whole number"),
        ({"epochs": 0}, "epochs cannot be 0; it is at least 1"),
        ({"ema": 2}, "ema cannot be 2.0; it is from 0 to 1"),
        ({"lr": "nan"}, "lr cannot be nan"),
        ({"compile": "perhaps"}, "compile cannot be 'perhaps'; it is yes or no"),
        ({"schedule": "linear"}, "choose one of exponential, cosine"),
        ({"transform": "none"}, "choose one of plain, strong"),
        ({"smoothed": 0, "plain": 0}, "loss is nothing"),
    ],
)
def test_what_a_recipe_cannot_be_is_told(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        with_settings(Recipe(), settings)


def test_a_recipe_is_found_by_name_or_in_a_runs_file(tmp_path: Path) -> None:
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(RECIPES["study"].to_dict()))
    assert find_recipe("study") == find_recipe(str(file))
    with pytest.raises(OptionError, match=r"no recipe 'studdy'. Did you mean 'study'"):
        find_recipe("studdy")
    file.write_text("[1]")
    with pytest.raises(OptionError, match="holds no settings"):
        find_recipe(str(file))


def test_differences_name_the_fields_and_both_values() -> None:
    assert differences({"lr": 1.0, "seed": 0}, {"lr": 2.0, "seed": 0, "data": ["a"]}) == [
        "lr: 1.0 in the run, 2.0 now",
        'data: nothing in the run, ["a"] now',
    ]


# --- losses


LOGITS = torch.tensor([[2.0, -1.0, 0.5, 0.0], [0.3, 0.2, -0.7, 1.5]])


def by_hand(target: np.ndarray, weights: np.ndarray | float = 1.0) -> np.ndarray:
    """Cross-entropy with probabilities as targets, written out."""
    logits = LOGITS.double().numpy()
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return -(weights * target * log_p).sum(1)


def test_the_authors_loss_is_twice_the_smoothed_and_once_the_plain_one() -> None:
    one_hot = np.eye(4)[[2, 3]]
    smoothed = 0.8 * one_hot + 0.2 / 4  # over all classes, the true one too
    loss = ExpressionLoss.of(RECIPES["rafdb"])(LOGITS, torch.tensor([2, 3]))
    np.testing.assert_allclose(loss, 2 * by_hand(smoothed) + by_hand(one_hot), rtol=1e-5)
    study = ExpressionLoss.of(RECIPES["study"])(LOGITS, torch.tensor([2, 3]))
    np.testing.assert_allclose(study, by_hand(smoothed), rtol=1e-5)


def test_votes_are_targets_as_they_are() -> None:
    votes = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.0, 0.0, 0.4, 0.6]])
    loss = ExpressionLoss()(LOGITS, votes)
    np.testing.assert_allclose(loss, by_hand(votes.numpy()), rtol=1e-5)


def test_class_weights_are_scikit_learns() -> None:
    labels = [0, 0, 0, 1, 2, 2, 2, 2]
    weights = balanced_weights(labels, 3)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    assert float(weights[torch.tensor(labels)].mean()) == pytest.approx(1)
    assert balanced_weights(labels, 4)[3] == 1  # no image, so nothing to balance
    loss = ExpressionLoss(class_weights=torch.tensor([1.0, 2.0, 3.0, 4.0]))(LOGITS, torch.tensor([2, 3]))
    np.testing.assert_allclose(loss, by_hand(np.eye(4)[[2, 3]], np.arange(1, 5)), rtol=1e-5)


# --- learning rates


def rates(recipe: Recipe, steps: int) -> list[float]:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.lr)
    schedule = _schedule(optimizer, recipe, steps)
    found = []
    for update in range(recipe.epochs * steps):
        schedule.step_update(update)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_the_exponential_schedule_is_torchs() -> None:
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=4e-5)
    theirs = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)
    expected = []
    for _ in range(5):
        expected += [theirs.get_last_lr()[0]] * 3
        optimizer.step()
        theirs.step()
    np.testing.assert_allclose(rates(Recipe(epochs=5), 3), expected, rtol=1e-12)


def test_the_cosine_falls_to_nothing_and_the_rise_comes_first() -> None:
    found = rates(Recipe(epochs=10, lr=1.0, schedule="cosine", warmup_epochs=1.5), 4)
    np.testing.assert_allclose(np.diff(found[:6]), (1 - 1 / 6) / 6)  # a straight line
    assert found[0] == pytest.approx(1 / 6)
    cosine = 0.5 * (1 + np.cos(np.pi * np.arange(6, 40) / 40))
    np.testing.assert_allclose(found[6:], cosine, rtol=1e-12)


def test_layers_learn_at_rates_of_their_own() -> None:
    model = small_model()
    recipe = changed(layer_decay=0.5, weight_decay=0.01, optimizer="adamw")
    optimizer = make_optimizer(model, recipe)
    _schedule(optimizer, recipe, 10).step_update(0)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    scale = {
        id(p): group["lr_scale"] for group in param_groups_layer_decay(model, layer_decay=0.5) for p in group["params"]
    }
    assert {key: value / recipe.lr for key, value in rate.items()} == pytest.approx(scale)
    assert rate[id(model.head.weight)] == recipe.lr
    assert min(rate.values()) < 0.2 * recipe.lr


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("name", "theirs"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_adam_steps_as_torchs_plain_loop_does(name: str, theirs: Any, layout: torch.memory_format) -> None:
    # The fused step pairs weights and gradients by their place in memory, whatever their shapes' order is there.
    ours, plain = small_model().double().to(memory_format=layout), small_model().double()
    plain.load_state_dict(ours.state_dict())
    optimizers = (
        make_optimizer(ours, changed(optimizer=name, lr=0.01, weight_decay=0.0)),
        theirs(plain.parameters(), lr=0.01, weight_decay=0.0, foreach=False, fused=False),
    )
    images = torch.randn(4, ours.in_chans, *ours.img_size, dtype=torch.float64)
    for _ in range(3):
        for model, optimizer in zip((ours, plain), optimizers, strict=True):
            model.eval()(images).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    for mine, other in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)


def test_an_unknown_optimizer_is_told_with_the_nearest() -> None:
    with pytest.raises(OptionError, match=r"'adamm'.*Did you mean 'adam"):
        make_optimizer(small_model(), changed(optimizer="adamm"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("adahessian", "'adahessian' asks for gradients of gradients"),
        ("fusedadam", "'fusedadam' cannot be had: .*APEX"),
        ("bnbadam8bit", "'bnbadam8bit' cannot be had: .*bitsandbytes"),
    ],
)
def test_an_optimizer_that_cannot_be_used_here_is_told(name: str, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        make_optimizer(small_model(), changed(optimizer=name))


# --- batches


def places(batches: EpochBatches) -> list[list[int]]:
    return [[index for _, _, index in batch] for batch in batches]


def test_an_epoch_takes_each_image_once_and_in_another_order_than_the_next() -> None:
    orders = [epoch_order(range(10), epoch, seed=0) for epoch in (0, 1)]
    assert [sorted(order) for order in orders] == [list(range(10))] * 2
    assert orders[0] != orders[1] != epoch_order(range(10), 1, seed=1)


def test_balanced_an_epoch_draws_classes_evenly() -> None:
    labels = [0] * 900 + [1] * 90 + [2] * 10
    drawn = np.bincount(np.array(labels)[epoch_order(labels, 0, 0, balance=1.0)])
    assert drawn.sum() == 1000
    np.testing.assert_allclose(drawn, 1000 / 3, atol=5 * math.sqrt(1000 * 2 / 9))  # five standard deviations


@pytest.mark.parametrize("balance", [0.0, 1.0])
@pytest.mark.parametrize(("images", "processes", "accumulate"), [(50, 2, 1), (50, 2, 2), (53, 3, 2), (47, 1, 4)])
def test_processes_and_pieces_cut_the_same_batches(
    images: int, processes: int, accumulate: int, balance: float
) -> None:
    labels = [int(i % 10 == 0) for i in range(images)]
    whole = places(EpochBatches(labels, 16, 3, balance, accumulate=processes * accumulate))
    shares = [
        places(EpochBatches(labels, 16, 3, balance, accumulate, process, processes)) for process in range(processes)
    ]
    assert [list(chain(*parts)) for parts in zip(*shares, strict=True)] == whole
    # One process cuts its share into pieces as several would: the first ones are larger.
    for batch, parts in zip(whole, zip(*shares, strict=True), strict=True):
        cut = [len(piece) for part in parts for piece in torch.tensor(part).tensor_split(accumulate)]
        assert cut == [len(piece) for piece in torch.tensor(batch).tensor_split(processes * accumulate)]


def test_a_resumed_epoch_goes_on_where_it_was() -> None:
    batches = EpochBatches(range(40), 8, seed=0)
    batches.epoch = 2
    whole = places(batches)
    batches.first = 3
    assert places(batches) == whole[3:]


def test_a_last_batch_with_too_few_images_for_its_pieces_is_left_out() -> None:
    assert [len(batch) for batch in EpochBatches(range(19), 8, seed=0)] == [8, 8, 3]
    assert [len(batch) for batch in EpochBatches(range(19), 8, seed=0, accumulate=2)] == [8, 8]
    with pytest.raises(OptionError, match="3 images in batches of 8 cannot be cut into 2 pieces"):
        EpochBatches(range(3), 8, seed=0, accumulate=2)


# --- a run


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the run that all look at draws its pictures, which takes longer than such a training."""
    monkeypatch.setattr("poster_zoo.train.run.RunFolder.draw", lambda *_: None)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, with all that can be random in it."""
    out = tmp_path_factory.mktemp("runs") / "run"
    recipe = changed(ema=0.9, balance=0.5, drop_rate=0.1, epochs=3)
    model = small_model(drop_rate=0.1)
    trained(out, recipe, model, facts={"data": ["rafdb:/home/somebody/RAF-DB"]})
    return out


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_the_folder_of_a_run_holds_what_it_is_and_how_it_went(run: Path) -> None:
    recipe = json.loads((run / "recipe.json").read_text())
    assert recipe == changed(ema=0.9, balance=0.5, drop_rate=0.1, epochs=3).to_dict()
    facts = json.loads((run / "run.json").read_text())
    assert (facts["model"], facts["labels"]) == ("poster_tiny_image", list(CLASSES))
    assert (facts["train_images"], facts["valid_images"]) == (24, 9)
    (start,) = json.loads((run / "environment.json").read_text())
    assert start["torch"] == torch.__version__
    rows = rows_of(run)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    for row in rows:
        for name in ("train_loss", "train_accuracy", "valid_loss", "valid_accuracy", "valid_mean_class_accuracy"):
            assert math.isfinite(row[name])
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]


def test_both_checkpoints_are_models_at_once_and_best_answers_as_its_row_says(run: Path) -> None:
    rows = rows_of(run)
    best_row = max(rows, key=lambda row: row["valid_accuracy"])
    for name, row in (("last", rows[-1]), ("best", best_row)):
        model: Any = poster_zoo.create_model(f"local-dir:{run / name}").eval()
        assert model.pretrained_cfg["label_names"] == list(CLASSES)
        transform = poster_zoo.create_transform(model)
        valid = valid_faces()
        with torch.no_grad():
            logits = model(torch.stack([transform(valid.image(i)) for i in range(len(valid))]))
        labels = torch.tensor(valid.labels)
        assert (logits.argmax(1) == labels).float().mean().item() == pytest.approx(row["valid_accuracy"])
        assert F.cross_entropy(logits, labels).item() == pytest.approx(row["valid_loss"], rel=1e-5)


def test_the_pictures_are_drawn_with_their_tables(run: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("curves", "confusion_matrix"):
        assert (run / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    with (run / "curves.csv").open() as lines:
        drawn = [float(row["valid_accuracy"]) for row in csv.DictReader(lines)]
    assert drawn == pytest.approx([row["valid_accuracy"] for row in rows_of(run)])
    evaluation = json.loads((run / "best" / "evaluation.json").read_text())
    with (run / "confusion_matrix.csv").open() as lines:
        counts = [int(row["images"]) for row in csv.DictReader(lines)]
    assert counts == [count for row in evaluation["confusion_matrix"] for count in row]
    assert sum(counts) == 9


def test_pictures_are_drawn_after_each_epoch_and_no_run_ends_for_want_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.undo()  # which is `no_pictures`
    picture = tmp_path / "run" / "curves.png"

    def put_a_folder_in_its_place(row: dict[str, Any]) -> None:
        if row["epoch"] == 1:
            assert (tmp_path / "run" / "confusion_matrix.png").is_file()
            picture.unlink()
            picture.mkdir()

    assert len(trained(tmp_path / "run", on_epoch=put_a_folder_in_its_place).rows) == 2
    assert "pictures of the run cannot be drawn" in caplog.text


def test_the_bar_shows_loss_accuracy_speed_and_the_time_that_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("poster_zoo.progress.tqdm", partial(tqdm, mininterval=0))  # shown after each step
    trained(tmp_path / "run", changed(epochs=1), progress=True)
    shown = r"epoch 1/1: +67%.*\| 16/24 \[\d\d:\d\d<\d\d:\d\d, .*(image/s|s/image), loss \d+\.\d{3}, accuracy \d\.\d{3}"
    assert re.search(shown, capsys.readouterr().err)


def test_the_card_says_who_is_in_the_data_and_how_sure_the_answers_are(run: Path, tmp_path: Path) -> None:
    card = (run / "best" / "README.md").read_text()
    assert "- By class: Anger 8, Happiness 8, Neutral 8\n" in card
    assert "- Persons: not known\n" in card
    assert "## Validation, 9 images" in card
    model: Any = poster_zoo.create_model(f"local-dir:{run / 'best'}").eval()
    transform, valid = poster_zoo.create_transform(model), valid_faces()
    with torch.no_grad():
        sure = model(torch.stack([transform(valid.image(i)) for i in range(len(valid))])).softmax(1).amax(1)
    classes = json.loads((run / "best" / "evaluation.json").read_text())["calibration"]["by_class"].values()
    told = sum(one["answers"] * one["mean_score"] for one in classes if one["answers"]) / 9
    assert told == pytest.approx(float(sure.mean()), rel=1e-4)

    persons = ["ann"] * 12 + ["bea"] * 8 + ["cem"] * 4
    trained(tmp_path / "run", changed(epochs=1), data=faces(persons=persons))
    card = (tmp_path / "run" / "last" / "README.md").read_text()
    assert "- Persons: 3, of whom one has 12 images and the middle one 8\n" in card


def test_the_card_says_how_the_epoch_was_chosen_and_not_where_the_data_lies(run: Path, tmp_path: Path) -> None:
    card = (run / "best" / "README.md").read_text()
    assert "chosen on validation images" in card
    assert "of rafdb" in card
    assert "somebody" not in card
    assert "Article 5(1)(f)" in card
    trained(tmp_path / "run", changed(select_on="test", epochs=1))
    for name in ("best", "last"):
        assert "chosen on the test images, as the authors did" in (tmp_path / "run" / name / "README.md").read_text()
    assert "test_accuracy" in rows_of(tmp_path / "run")[0]


def test_a_card_can_be_published(run: Path) -> None:
    published = poster_zoo.push_to_hub(run / "best", "someone/faces", dry_run=True)
    assert {file.path for file in published.files} == {"config.json", "model.safetensors", "README.md"}


def test_the_same_seed_gives_the_same_run_with_any_number_of_workers(run: Path, tmp_path: Path) -> None:
    recipe = changed(ema=0.9, balance=0.5, drop_rate=0.1, epochs=3)
    again = trained(tmp_path / "run", recipe, small_model(drop_rate=0.1), workers=2)
    assert numbers(again.rows) == numbers(rows_of(run))
    other = trained(
        tmp_path / "other", Recipe(**recipe.to_dict() | {"seed": 1, "epochs": 1}), small_model(drop_rate=0.1)
    )
    assert other.rows[0]["train_loss"] != again.rows[0]["train_loss"]


def test_tensorboard_gets_every_row_once(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    pytest.importorskip("torch.utils.tensorboard")
    rows = trained(tmp_path / "run").rows
    trained(tmp_path / "run", resume=True)
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    logged = [(event.step, event.value) for event in events.Scalars("train_loss")]
    assert logged == [(row["epoch"], pytest.approx(row["train_loss"])) for row in rows]


@pytest.mark.parametrize("file", ["notes.txt", "__init__.py"])
def test_no_run_ends_for_want_of_a_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, file: str
) -> None:
    """A folder of that name beside us, as people keep their logs in, and a package that is broken."""
    for name in [name for name in sys.modules if "tensorboard" in name]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / file).touch()
    path = [str(tmp_path), *sys.path]
    if file == "notes.txt":  # an installed one further down the path would be found
        path = [folder for folder in path if not (Path(folder) / "tensorboard" / "__init__.py").is_file()]
    monkeypatch.setattr(sys, "path", path)
    assert len(trained(tmp_path / "run").rows) == QUICK.epochs
    assert len(trained(tmp_path / "run", resume=True).rows) == QUICK.epochs
    told = [record.message for record in caplog.records if "without TensorBoard" in record.message]
    assert len(told) == (0 if file == "notes.txt" else 2)  # once a start


def test_training_stops_early_where_nothing_gets_better(tmp_path: Path) -> None:
    done = trained(tmp_path / "run", changed(epochs=9, patience=2, lr=0.0))
    assert (len(done.rows), done.best_epoch) == (3, 1)


def test_without_validation_images_the_last_epoch_is_what_there_is(tmp_path: Path) -> None:
    done = trained(tmp_path / "run", changed(epochs=1, patience=1), valid=None)
    assert done.best_epoch == 0
    assert not (tmp_path / "run" / "best").exists()
    assert (tmp_path / "run" / "last" / "model.safetensors").exists()


def test_validation_images_of_which_there_are_none_are_told_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(FaultyDataError, match=r"memory holds no images to choose the best epoch by; .* valid=None"):
        trained(tmp_path / "run", valid=valid_faces().subset([]))
    assert not (tmp_path / "run").exists()


def test_votes_of_the_data_are_learned_from_where_they_are_there(tmp_path: Path) -> None:
    votes = torch.full((24, 3), 1 / 3)
    losses = []
    for soft in (True, False):
        recipe = changed(soft_targets=soft, epochs=1, smoothed=0.0, lr=0.0, rho=0.0, transform="plain")
        losses.append(trained(tmp_path / str(soft), recipe, data=faces(distributions=votes)).rows[0]["train_loss"])
    logits = []
    model = small_model().train()
    transform = poster_zoo.create_transform(model)
    data = faces()
    order = epoch_order(data.labels, 0, 0)
    with torch.no_grad():
        for start in range(0, 24, 8):
            logits.append(model(torch.stack([transform(data.image(i)) for i in order[start : start + 8]])))
    every, labels = torch.cat(logits), torch.tensor([data.labels[i] for i in order])
    assert losses[0] == pytest.approx(float(-every.log_softmax(1).mean()), rel=1e-5)
    assert losses[1] == pytest.approx(float(F.cross_entropy(every, labels)), rel=1e-5)


def test_labels_are_matched_by_name(tmp_path: Path) -> None:
    model = small_model(classes=4)
    names = ("Neutral", "Sadness", "happy", "anger")
    recipe = changed(epochs=1)
    with pytest.raises(LabelError, match=r"Happiness.*Classes of the data: Anger, Happiness, Neutral.*a, b, c, d"):
        trained(tmp_path / "run", recipe, model, label_names=("a", "b", "c", "d"))
    trained(tmp_path / "run", recipe, model, label_names=names)
    config = json.loads((tmp_path / "run" / "best" / "config.json").read_text())
    assert config["label_names"] == list(names)
    evaluation = json.loads((tmp_path / "run" / "best" / "evaluation.json").read_text())
    assert [evaluation["per_class"][name]["count"] for name in names] == [3, 0, 3, 3]


def test_a_model_with_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=r"has 5 classes and 3 label names .*num_classes=3"):
        trained(tmp_path / "run", model=small_model(classes=5))


def test_an_image_that_cannot_be_read_is_named_in_one_sentence(tmp_path: Path) -> None:
    data = faces()
    data._images.files[5] = b""  # type: ignore[attr-defined]
    for workers in (0, 1):
        with pytest.raises(ImageError, match=r"^'memory/5.png' is empty\.$"):
            trained(tmp_path / str(workers), data=data, workers=workers)


def test_a_loss_that_is_no_number_stops_and_leaves_the_last_good_state(tmp_path: Path) -> None:
    data = faces()
    good = numbers(trained(tmp_path / "good", changed(epochs=1), data=data).rows)

    class Breaks(nn.Module):
        """Gives no numbers from the second batch of the second epoch on."""

        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += self.training
            return x * (math.nan if self.calls > 2 * 4 else 1)  # three batches and one, in two passes each

    model = small_model()
    model.trunk.stem = nn.Sequential(model.trunk.stem, Breaks())
    before = {}
    with pytest.raises(
        TrainingError, match=r"loss is nan in epoch 2, batch 2 \(step 5 of the run\).*'memory/\d+.png'"
    ) as told:
        trained(tmp_path / "run", changed(epochs=2), model, data=data, on_epoch=before.update)
    assert f"{str(tmp_path / 'run' / 'last')!r} holds the run after step 3." in str(told.value)
    assert numbers(rows_of(tmp_path / "run")) == good
    state = json.loads((tmp_path / "run" / "last" / "trainer.json").read_text())
    assert dict(state["items"])["progress"]["items"][0] == ["epoch", 1]


class NoNumbers(nn.Module):
    """Gives none in eval mode, after so many batches."""

    def __init__(self, batches: float) -> None:
        super().__init__()
        self.batches = batches

    def forward(self, x: Tensor) -> Tensor:
        self.batches -= not self.training
        return x * (math.nan if self.batches < 0 else 1)


def test_a_validation_loss_that_is_no_number_stops_before_anything_is_replaced(tmp_path: Path) -> None:
    def model(batches: float) -> Any:
        built = small_model()
        built.trunk.stem = nn.Sequential(built.trunk.stem, NoNumbers(batches))
        return built

    out = tmp_path / "run"
    with pytest.raises(TrainingError, match=r"loss on the valid images is nan.*run/last' holds the run after step 3\."):
        trained(out, model=model(2))  # of nine images, eight at once
    assert [row["epoch"] for row in rows_of(out)] == [1]
    assert math.isfinite(json.loads((out / "best" / "evaluation.json").read_text())["accuracy"])
    resumed = trained(out, model=model(math.inf), resume=True)
    assert numbers(resumed.rows) == numbers(trained(tmp_path / "straight", model=model(math.inf)).rows)


def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path) -> None:
    recipe = changed(optimizer="sgd", lr=math.inf, rho=0.0)
    with pytest.raises(TrainingError, match=r"^Numbers in .* are infinite or none at all.*nothing was saved before"):
        trained(tmp_path / "run", recipe, save_every=1)
    assert not (tmp_path / "run" / "last").exists()


def test_a_full_disk_stops_with_a_sentence_and_the_checkpoint_before_it(tmp_path: Path) -> None:
    recipe = changed(epochs=3)

    def fill_disk(row: dict[str, Any]) -> None:
        # No file may grow beyond this from now on, as on a disk without room.
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(TrainingError, match=r"run/last' cannot be written: .*make room.*--resume"):
            trained(tmp_path / "run", recipe, on_epoch=fill_disk, save_every=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]
    poster_zoo.create_model(f"local-dir:{tmp_path / 'run' / 'last'}")
    resumed = trained(tmp_path / "run", recipe, resume=True)
    assert numbers(resumed.rows) == numbers(trained(tmp_path / "straight", recipe).rows)


def test_what_is_brought_to_the_disk_is_open_for_writing_as_windows_wants_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl", reason="Windows itself wants it so")
    synced, real = [], os.fsync

    def strict(handle: int) -> None:
        if not stat.S_ISDIR(os.fstat(handle).st_mode):
            if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
                raise OSError(errno.EBADF, "Bad file descriptor")
            synced.append(os.fstat(handle).st_ino)
        real(handle)

    monkeypatch.setattr(os, "fsync", strict)
    trained(tmp_path / "run", changed(epochs=1))
    for name in ("recipe.json", "metrics.jsonl", "last/model.safetensors", "last/trainer.json", "best/config.json"):
        assert (tmp_path / "run" / name).stat().st_ino in synced, name


def test_the_landmark_stream_of_a_trained_poster_is_the_one_it_began_with(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = poster_zoo.create_model("poster_tiny", num_classes=3, depth=1)
    before = {name: tensor.clone() for name, tensor in model.landmark_stream.state_dict().items()}
    trained(
        tmp_path / "run", changed(epochs=1, batch_size=4), model, data=faces(4), valid=faces(3), model_args={"depth": 1}
    )
    kept: Any = poster_zoo.create_model(f"local-dir:{tmp_path / 'run' / 'best'}")
    after = kept.landmark_stream.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not torch.equal(kept.fusion.pos_embed, torch.zeros_like(kept.fusion.pos_embed))
