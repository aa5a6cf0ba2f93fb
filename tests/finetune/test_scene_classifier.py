"""The classifier as a user has it: fit, test, predict, save, load, go on, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import ConcatDataset, Subset

import transferkit as tk
from transferkit.errors import (
    ArgumentError,
    CheckpointError,
    DataError,
    MissingFileError,
    StateError,
    TransferError,
)
from transferkit.features import UnsplittableError
from transferkit.finetune import DEMO, FeatureSettings, Protocol, Run, as_photos, read_run, small_alexnet
from transferkit.labeling import OverlapRule
from transferkit.preprocessing import IMAGENET
from transferkit.sampler import AnnotatedImage, RandomSubset

COLORS = {"red": (220, 20, 20), "blue": (20, 20, 220)}
NAMES = ("background", *COLORS)
EXACT = replace(DEMO, patch_size=32, batch_size=32, patches_per_image=32, epochs=2)
SHARED = replace(
    tk.RECOMMENDED, patch_size=32, batch_size=64, mix_images=4, hidden=(16,), epochs=2, pyramid_scales=(1, 2),
    grid=replace(tk.RECOMMENDED.grid, scales=(1, 2)),
)  # fmt: skip


class Squares:
    """Gray photos with a red or a blue square each, ``class_names`` and ``ids``; all else is read from items."""

    def __init__(self, count: int, seed: int = 0) -> None:
        self.class_names, self.ids = NAMES, tuple(f"{seed}/{n}" for n in range(count))
        self.items = list(self._items(count, seed))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> AnnotatedImage:
        return self.items[index]

    def _items(self, count: int, seed: int) -> Iterator[AnnotatedImage]:
        generator = torch.Generator().manual_seed(seed)
        for n in range(count):
            image = torch.randint(90, 160, (3, 64, 72), dtype=torch.uint8, generator=generator)
            x, y = torch.randint(0, 36, (2,), generator=generator).tolist()
            kind = 1 + n % 2
            image[:, y : y + 28, x : x + 28] = torch.tensor(COLORS[NAMES[kind]], dtype=torch.uint8)[
                :, None, None
            ]
            box = torch.tensor([[x, y, x + 28, y + 28]], dtype=torch.float64)
            no = torch.tensor([False])
            yield AnnotatedImage(image, box, torch.tensor([kind]), no, no, self.ids[n])


def classifier(protocol: Protocol = EXACT, **settings: object) -> tk.SceneClassifier:
    return tk.SceneClassifier("alexnet-small", protocol, **{"from_scratch": True, "device": "cpu", **settings})


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "small.pt"
    torch.save(small_alexnet(10).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def shared(weights: Path) -> tk.SceneClassifier:
    """A classifier of shared features of frozen layers, and a choice on held-out photos."""
    return classifier(SHARED, from_scratch=False, weights=weights).fit(Squares(12))


def test_the_door_stands_in_the_face_and_costs_no_import(shared: tk.SceneClassifier) -> None:
    assert isinstance(shared, tk.SceneClassifier)
    code = "import sys, transferkit.sampler; print([m for m in sys.modules if m.startswith('transferkit.finetune')])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_predictions_have_the_scores_of_the_test(shared: tk.SceneClassifier) -> None:
    photos = Squares(6, seed=1)
    tested = shared.score(photos).compute()
    found = shared.predict(photos)
    assert torch.equal(found.scores, tested) and found.ids == photos.ids and found.class_names == NAMES
    assert shared.test(photos).mean_ap() == shared.evaluate(photos, shared.score(photos)).mean_ap()
    assert shared.decided.choice is None and shared.run.settings["chosen"] == [2, shared.decided.exponent]


def test_maps_and_best_patches_tell_where(shared: tk.SceneClassifier) -> None:
    photos = Squares(2, seed=1)
    found = shared.predict(photos, maps=True)
    assert found.map(0, "red").shape == (64, 72)
    assert torch.allclose(found.best_boxes, shared.predict(photos).best_boxes)  # patches are kept in float32
    assert [row[0] for row in found.top(2)] == ["1/0", "1/0", "1/1", "1/1"]
    with pytest.raises(StateError, match="maps=True"):
        shared.predict(photos).map(0, "red")
    with pytest.raises(ArgumentError, match="did you mean 'red'"):
        found.map(0, "rad")


@pytest.mark.parametrize("which", ["shared", "exact"])
def test_a_saved_classifier_predicts_the_same_in_another_process(
    shared: tk.SceneClassifier, which: str, tmp_path: Path
) -> None:
    made = shared if which == "shared" else classifier().fit(Squares(4))
    photos = Squares(3, seed=2)
    for item in photos.items:
        Image.fromarray(item.image.permute(1, 2, 0).numpy()).save(tmp_path / f"{item.id.replace('/', '_')}.png")
    saved = made.save(tmp_path / "squares.tk")
    torch.load(saved, weights_only=True)  # plain values and tensors
    code = (
        "import torch, transferkit as tk\n"
        f"found = tk.SceneClassifier.load({str(saved)!r}, device='cpu').predict({str(tmp_path)!r})\n"
        f"torch.save([found.ids, found.class_names, found.scores], {str(tmp_path / 'scores.pt')!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    ids, names, scores = torch.load(tmp_path / "scores.pt", weights_only=True)
    here = made.predict(tmp_path)
    assert (tuple(ids), tuple(names)) == (here.ids, here.class_names) and here.ids[0] == "2_0.png"
    assert torch.equal(scores, here.scores)


def test_a_recipe_that_tests_on_a_random_part_of_the_patches_scores_the_same_when_loaded(
    tmp_path: Path,
) -> None:
    recipe = replace(EXACT, test_balance=RandomSubset(), epochs=1)
    made = classifier(recipe, seed=7).fit(Squares(4))
    again = tk.SceneClassifier.load(made.save(tmp_path / "seven.tk"), device="cpu")
    photos = Squares(3, seed=2)
    assert torch.equal(again.predict(photos).scores, made.predict(photos).scores)
    again.seed = 8
    assert not torch.equal(again.predict(photos).scores, made.predict(photos).scores)


def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    photos, run_file = Squares(4), tmp_path / "run.pt"
    at_once = classifier().fit(photos)
    classifier(replace(EXACT, epochs=1)).fit(photos, run_file=run_file, resume=True)
    resumed = classifier().fit(photos, run_file=run_file, resume=True)
    ours, theirs = resumed.model.state_dict(), at_once.model.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert len(resumed.run.history) == 2 and read_run(run_file)["epoch"] == 2
    again = classifier().restore(run_file)
    assert torch.equal(again.predict(photos).scores, at_once.predict(photos).scores)


def test_what_was_chosen_on_held_out_photos_is_kept(weights: Path, tmp_path: Path) -> None:
    settings = {"from_scratch": False, "weights": weights}
    made = classifier(SHARED, **settings).fit(Squares(12), run_file=tmp_path / "run.pt")
    again = classifier(SHARED, **settings).restore(tmp_path / "run.pt")
    assert again.decided == made.decided
    said: list[str] = []
    classifier(SHARED, **settings).fit(Squares(12), run_file=tmp_path / "run.pt", resume=True, log=said.append)
    assert not any("chosen on" in line for line in said) and any("2 epochs done" in line for line in said)


def test_photos_along_the_way_change_the_history_alone() -> None:
    plain, tested = (
        classifier().fit(Squares(4)),
        classifier().fit(Squares(4), validation=Squares(2, 1), test_every=2),
    )
    assert [record.mean_ap is None for record in tested.run.history] == [True, False]
    assert torch.equal(plain.predict(Squares(2, 1)).scores, tested.predict(Squares(2, 1)).scores)


def test_features_computed_once_serve_parts_of_the_photos(weights: Path, tmp_path: Path) -> None:
    features = FeatureSettings(folder=tmp_path, precision=torch.float32)
    every, rows = Squares(12), [0, 1, 2, 3, 5, 6, 8, 11]
    made = classifier(SHARED, from_scratch=False, weights=weights, features=features)
    cache = made.cache(every)
    cache.fill()
    made.fit(Subset(cache, rows))
    plain = classifier(SHARED, from_scratch=False, weights=weights).fit(Subset(every, rows))
    rest = [4, 7, 9, 10]
    of_cache, of_photos = made.score(Subset(cache, rest)).compute(), plain.score(Subset(every, rest)).compute()
    assert torch.allclose(of_cache, of_photos, rtol=1e-2)  # plain keeps its features in half precision
    assert made.test(Subset(cache, rest)).mean_ap() == plain.test(Subset(every, rest)).mean_ap()
    other = classifier(replace(SHARED, pyramid_scales=(1,)), from_scratch=False, weights=weights)
    with pytest.raises(ArgumentError, match="pyramid_scales differ"):
        other.fit(Subset(cache, rows))


def test_views_and_plain_lists_are_photos() -> None:
    items = Squares(4).items
    made = classifier(class_names=COLORS).fit(items)
    assert made.class_names == NAMES and made.run.settings["class_names"] == list(NAMES)
    joined = ConcatDataset([Squares(2), Subset(Squares(4, 1), [3, 0])])
    assert made.predict(joined).ids == ("0/0", "0/1", "1/3", "1/0")
    assert made.test(joined).num_images == 4


def test_a_network_of_ones_own_is_left_as_it_was_and_only_named_in_the_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    mine = small_alexnet(7)
    mine.preprocessing = IMAGENET
    before = {key: tensor.clone() for key, tensor in mine.state_dict().items()}
    made = tk.SceneClassifier(mine, EXACT, device="cpu").fit(Squares(4))
    assert all(torch.equal(tensor, mine.state_dict()[key]) for key, tensor in before.items())
    assert made.run.transfer is not None and made.run.transfer.coverage
    saved = made.save(tmp_path / "mine.tk")
    with pytest.raises(ArgumentError, match=r"only names its network, 'AlexNet'.*network="):
        tk.SceneClassifier.load(saved)
    loaded = tk.SceneClassifier.load(saved, network=mine, device="cpu")
    assert torch.equal(loaded.predict(Squares(2)).scores, made.predict(Squares(2)).scores)
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    other.preprocessing = IMAGENET
    with pytest.raises(TransferError):
        tk.SceneClassifier.load(saved, network=other)


def test_a_file_that_names_a_factory_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_networks.py").write_text(
        "from transferkit.finetune import small_alexnet\nprint('imported')\n"
        "from transferkit.preprocessing import IMAGENET\n"
        "def build():\n    net = small_alexnet(3)\n    net.preprocessing = IMAGENET\n    return net\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    made = tk.SceneClassifier("evil_networks:build", EXACT, device="cpu").fit(Squares(4))
    saved = made.save(tmp_path / "factory.tk")
    monkeypatch.delitem(sys.modules, "evil_networks")
    with pytest.raises(ArgumentError, match="evil_networks:build"):
        tk.SceneClassifier.load(saved)
    assert "evil_networks" not in sys.modules


class Empty(Squares):
    def __getitem__(self, index: int) -> AnnotatedImage:
        none = torch.zeros(0)
        item = super().__getitem__(index)
        return replace(
            item, boxes=torch.zeros(0, 4), classes=none.long(), difficult=none.bool(), truncated=none.bool()
        )


@pytest.mark.parametrize(
    ("photos", "settings", "words"),
    [
        (Empty(3), {}, "none of the 3 photos shows an object of red, blue"),
        (Squares(2).items, {}, r"the photos have no class names; give SceneClassifier\(class_names="),
        (
            Squares(2),
            {"class_names": ["red", "green"]},
            "the classifier has background, red, green; the data set has",
        ),
        (Squares(2), {"features": FeatureSettings(cache=True)}, "trained from 'features.0' on"),
    ],
)
def test_what_cannot_be_fitted(photos: object, settings: dict[str, object], words: str) -> None:
    with pytest.raises((ArgumentError, UnsplittableError), match=words):
        classifier(**settings).fit(photos)


def test_resuming_needs_the_file_of_the_run(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="resume=True needs the run's file"):
        classifier().fit(Squares(4), resume=True)
    with pytest.raises(MissingFileError):
        classifier().fit(Squares(4), resume=tmp_path / "nowhere.pt")


def test_a_class_that_has_no_name() -> None:
    with pytest.raises(
        DataError, match="photo 1 has an object of class 2, but there are class names for 1 to 1; give"
    ):
        classifier(class_names=["red"]).fit(Squares(2).items)


def test_nothing_fitted_nothing_predicted(tmp_path: Path) -> None:
    for call in (
        lambda c: c.predict(Squares(1)),
        lambda c: c.test(Squares(1)),
        lambda c: c.save(tmp_path / "c.tk"),
    ):
        with pytest.raises(StateError, match=r"nothing was fitted yet; call fit\(photos\) first"):
            call(classifier())
    assert "not fitted" in repr(classifier())


def test_files_of_other_versions_and_other_kinds(shared: tk.SceneClassifier, tmp_path: Path) -> None:
    saved = shared.save(tmp_path / "c.tk")
    state = torch.load(saved, weights_only=True)
    torch.save({**state, "version": 99}, tmp_path / "newer.tk")
    with pytest.raises(CheckpointError, match="of version 99, this transferkit reads 1 to 2"):
        tk.SceneClassifier.load(tmp_path / "newer.tk")
    torch.save(state["model"], tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"not a saved classifier.*SceneClassifier\(weights="):
        tk.SceneClassifier.load(tmp_path / "weights.pt")
    torch.save({**state, "protocol": {**state["protocol"], "rule": {"kind": "os.abort"}}}, tmp_path / "odd.tk")
    with pytest.raises(CheckpointError, match=r"the recipe holds a 'os\.abort'"):
        tk.SceneClassifier.load(tmp_path / "odd.tk")
    torch.save({key: state[key] for key in state if key != "seed"}, tmp_path / "part.tk")
    with pytest.raises(CheckpointError, match="it lacks seed"):
        tk.SceneClassifier.load(tmp_path / "part.tk")
    with pytest.raises(MissingFileError, match="no saved classifier at"):
        tk.SceneClassifier.load(tmp_path / "nowhere.tk")
    with pytest.raises(
        StateError, match=r"a loaded classifier has no pretrained weights to start from; fit one"
    ):
        tk.SceneClassifier.load(saved, device="cpu").fit(Squares(4))
    with pytest.raises(StateError, match="has no run"):
        _ = tk.SceneClassifier.load(saved).run


def test_a_rule_of_ones_own_cannot_be_saved(tmp_path: Path) -> None:
    class Mine(OverlapRule):
        pass

    made = classifier(replace(EXACT, rule=Mine(0.2, 0.6))).fit(Squares(4))
    with pytest.raises(ArgumentError, match="Mine is not a class of this library"):
        made.save(tmp_path / "mine.tk")
    assert not (tmp_path / "mine.tk").exists()


def test_a_fallback_is_told_and_a_run_is_told_what_it_was(tmp_path: Path) -> None:
    said: list[str] = []
    made = classifier(features=FeatureSettings(method="shared")).fit(
        Squares(4), log=said.append, run_file=tmp_path / "run.pt", settings={"mine": 1}
    )
    assert any(line.startswith("every patch goes through the whole network in every epoch:") for line in said)
    assert isinstance(made.run, Run) and made.run.settings["mine"] == 1
    assert read_run(tmp_path / "run.pt")["settings"]["network"] == "alexnet-small"


def test_photos_are_found_in_folders_files_and_images(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    picture = Image.new("RGB", (40, 30))
    for name in ("b.JPG", "deep/a.png"):
        picture.save(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    assert as_photos(tmp_path).ids == ("b.JPG", "deep/a.png")
    assert as_photos(str(tmp_path / "b.JPG")).ids == ("b.JPG",)
    assert as_photos(picture)[0].image.shape == (3, 30, 40)
    assert as_photos([tmp_path / "b.JPG", picture]).ids == (str(tmp_path / "b.JPG"), "1")
    with pytest.raises(DataError, match="no photo in"):
        as_photos(tmp_path / "deep" / "..").ids and as_photos(_empty(tmp_path))
    with pytest.raises(DataError, match="no file or folder"):
        as_photos(tmp_path / "nowhere")
    for wrong, words in ((iter([]), "got list_iterator"), ([], "at least one")):
        with pytest.raises(ArgumentError, match=words):
            as_photos(wrong)


def _empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


class Trembling(Squares):
    def __getitem__(self, index: int) -> AnnotatedImage:
        item = super().__getitem__(index)
        return replace(item, image=item.image + torch.randint(0, 3, item.image.shape, dtype=torch.uint8))


def test_photos_that_change_each_time_they_are_read_are_fitted_without_a_cache(weights: Path) -> None:
    said: list[str] = []
    start = {"from_scratch": False, "weights": weights, "freeze": "features"}
    classifier(**start).fit(Trembling(4), log=said.append)
    assert any(
        "whole network in every epoch: image 0 of the data set has other pixels" in line for line in said
    )
