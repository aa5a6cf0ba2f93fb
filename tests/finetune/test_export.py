"""What is taken home: a small file that finds its backbone again, a card, and a network that needs no library."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import transferkit as tk
from transferkit.errors import ArgumentError, CheckpointError, MissingExtraError, StateError
from transferkit.finetune import DEMO, NETWORKS, Card, FeatureSettings, Network, Protocol, small_alexnet
from transferkit.heads import MULTI_LABEL
from transferkit.preprocessing import IMAGENET, NEON_IMAGENET, FoundPreprocessing
from transferkit.sampler import AllPatches, AnnotatedImage, PatchGrid

FROZEN = replace(
    DEMO, patch_size=32, batch_size=32, patches_per_image=32, epochs=1, train_backbone=False, hidden=(8,),
    test_balance=AllPatches(), image_loss=None,
)  # fmt: skip


def photos(count: int = 4) -> list[AnnotatedImage]:
    generator, no = torch.Generator().manual_seed(0), torch.tensor([False])
    box = torch.tensor([[4.0, 4, 44, 44]])
    return [
        AnnotatedImage(
            torch.randint(256, (3, 48, 60), dtype=torch.uint8, generator=generator), box,
            torch.tensor([1 + n % 2]), no, no, str(n),
        )
        for n in range(count)
    ]  # fmt: skip


def fitted(
    network: str | nn.Module = "tiny", recipe: Protocol = FROZEN, **settings: object
) -> tk.SceneClassifier:
    named = {"class_names": ["cat", "dog"], "device": "cpu", **settings}
    return tk.SceneClassifier(network, recipe, **named).fit(photos())


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A network with published weights, ``"tiny"``, and their file."""
    torch.manual_seed(1)
    path = tmp_path / "published.pt"
    torch.save(small_alexnet(10).state_dict(), path)

    def tiny() -> Network:
        def fetch() -> Path:
            if not path.exists():
                raise ArgumentError("no such file on the web")
            return path

        return Network("", small_alexnet(), FoundPreprocessing(IMAGENET, None, ""), fetch)

    monkeypatch.setitem(NETWORKS, "tiny", tiny)
    return path


def test_the_file_of_a_frozen_network_holds_its_head(published: Path, tmp_path: Path) -> None:
    made = fitted()
    head, whole = made.save(tmp_path / "head.tk"), made.save(tmp_path / "whole.tk", whole=True)
    kept = set(torch.load(head, weights_only=True)["model"])
    assert kept == {name for name, value in made.model.named_parameters() if value.requires_grad}
    assert head.stat().st_size < whole.stat().st_size / 2
    wanted = made.predict(photos()).scores
    for path in (head, whole):
        again = tk.SceneClassifier.load(path, device="cpu")
        assert torch.equal(again.predict(photos()).scores, wanted)
        saved = torch.load(again.save(tmp_path / "again.tk"), weights_only=True)["model"]
        assert set(saved) == set(torch.load(path, weights_only=True)["model"])


def test_a_file_of_version_1_is_read(published: Path, tmp_path: Path) -> None:
    made = fitted()
    state = torch.load(made.save(tmp_path / "new.tk", whole=True), weights_only=True)
    old = {key: value for key, value in state.items() if key not in ("left_out", "card")}
    torch.save({**old, "version": 1}, tmp_path / "old.tk")
    again = tk.SceneClassifier.load(tmp_path / "old.tk", device="cpu")
    assert torch.equal(again.predict(photos()).scores, made.predict(photos()).scores)
    assert again.card().data == {}


@pytest.mark.parametrize("what", ["all layers trained", "from scratch", "weights of one's own", "a module"])
def test_all_is_written_where_no_name_tells_the_backbone(published: Path, tmp_path: Path, what: str) -> None:
    mine = small_alexnet(3)
    mine.preprocessing = IMAGENET
    made = {
        "all layers trained": lambda: fitted(recipe=replace(FROZEN, train_backbone=True)),
        "from scratch": lambda: fitted(from_scratch=True),
        "weights of one's own": lambda: fitted(weights=published),
        "a module": lambda: fitted(mine),
    }[what]()
    assert len(torch.load(made.save(tmp_path / "c.tk"), weights_only=True)["model"]) == 18
    if what in ("all layers trained", "from scratch"):
        with pytest.raises(ArgumentError, match="whole=False leaves out frozen layers"):
            made.save(tmp_path / "c.tk", whole=False)
        return
    saved = made.save(tmp_path / "c.tk", whole=False)
    given = {"network": mine} if what == "a module" else {"weights": published}
    again = tk.SceneClassifier.load(saved, device="cpu", **given)
    assert torch.equal(again.predict(photos()).scores, made.predict(photos()).scores)


def test_another_backbone_is_refused_and_the_way_out_works(published: Path, tmp_path: Path) -> None:
    made = fitted()
    head, whole = made.save(tmp_path / "head.tk"), made.save(tmp_path / "whole.tk", whole=True)
    kept = published.rename(tmp_path / "kept.pt")
    with pytest.raises(CheckpointError, match=r"cannot be had: no such file.*load\(path, weights=\.\.\.\)"):
        tk.SceneClassifier.load(head)
    torch.manual_seed(2)
    torch.save(small_alexnet(10).state_dict(), published)
    with pytest.raises(
        CheckpointError, match=r"wants a backbone with digest \w{32}, .* give one with \w{32}; give"
    ):
        tk.SceneClassifier.load(head)
    again = tk.SceneClassifier.load(head, weights=kept, device="cpu")
    assert torch.equal(again.predict(photos()).scores, made.predict(photos()).scores)
    with pytest.raises(ArgumentError, match="weights must be None, since .*whole.tk holds all"):
        tk.SceneClassifier.load(whole, weights=kept)


class Thresholds:
    """As a calibration says them."""

    def to_dict(self) -> dict[str, object]:
        return {"thresholds": (0.25, math.inf), "cuts": [[1]]}


def test_a_card_says_what_the_classifier_is_and_stays_with_it(published: Path, tmp_path: Path) -> None:
    made = fitted()
    results = {"shared": made.test(photos(3)), "exact": made.test(photos(), bootstrap=20)}
    card = made.card(results, calibration={"exact": Thresholds()}, license="CC0 | <b>")
    saved = made.save(tmp_path / "pets.tk", card=card)
    page = (tmp_path / "pets.tk.md").read_text()
    for words in (
        "tiny",
        "cat",
        "CC0 \\| &lt;b>",
        "4 photos",
        "3 photos",
        "AP in %, exact features",
        "0.25",
        "protocol demo",
    ):
        assert words in page
    assert card.data["photos of class"] == {"cat": 2, "dog": 2} and card.data["photos"] == 4
    said = json.loads((tmp_path / "pets.tk.json").read_text())
    assert said["results"]["exact"]["mean_ap"] == results["exact"].mean_ap()
    loaded = tk.SceneClassifier.load(saved, device="cpu")
    assert loaded.card() == card and loaded.card(license="MIT").results == card.results
    assert made.card().license == "not stated" and not made.card().results
    plain = made.save(tmp_path / "plain.tk")
    assert not plain.with_name("plain.tk.md").exists() and tk.SceneClassifier.load(plain).card() == made.card()


def test_what_is_no_card(published: Path, tmp_path: Path) -> None:
    other = fitted(class_names=["cat", "mean"])
    assert other.card(other.test(photos())).to_markdown().count("| mean |") == 2
    with pytest.raises(ArgumentError, match="card must be this classifier's own, got .*mean"):
        fitted().save(tmp_path / "c.tk", card=other.card())
    assert not (tmp_path / "c.tk").exists()
    with pytest.raises(ArgumentError, match="results must be what was measured, .* got .*both"):
        fitted().card({"both": Thresholds()})
    with pytest.raises(CheckpointError, match="the card cannot be read"):
        Card.from_dict({"class_names": ["background"], "price": 3})


# Exported networks.

GRID = replace(FROZEN.grid, scales=(1, 1.3, 2), target=None)
RECIPES = {
    "mean": replace(FROZEN, grid=GRID, reduction="mean", exponent=3.0),
    "sum, whole pixels": replace(FROZEN, grid=GRID, reduction="sum", whole_pixels=True),
    "overlap, no antialias": replace(FROZEN, antialias=False, grid=PatchGrid((1, 3), min_overlap=0.5, reach="edge")),
    "maximum of sigmoids": replace(FROZEN, grid=PatchGrid(target=40, min_scales=2), exponent=math.inf, objective=MULTI_LABEL),
}  # fmt: skip


@pytest.fixture(scope="module")
def script(root: Path) -> ModuleType:
    pytest.importorskip("onnxruntime")
    spec = importlib.util.spec_from_file_location("score_with_onnx", root / "examples" / "score_with_onnx.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def picture(folder: Path, name: str, size: tuple[int, int], mode: str = "RGB", **saving: object) -> Path:
    channels = {"RGB": 3, "RGBA": 4}[mode]
    pixels = np.random.default_rng(len(name)).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / name, **saving)
    return folder / name


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_program_without_the_library_scores_as_it_does(
    published: Path, tmp_path: Path, script: ModuleType, recipe: Protocol
) -> None:
    import onnxruntime

    made = fitted(recipe=recipe, features=FeatureSettings(method="exact"))
    path = made.export(tmp_path / "model.onnx", card=made.card(calibration=Thresholds()))
    session = onnxruntime.InferenceSession(str(path))
    facts = json.loads(session.get_modelmeta().custom_metadata_map["transferkit"])
    assert facts["thresholds"] == {"cat": 0.25, "dog": math.inf}
    turned = Image.Exif()
    turned[0x0112] = 6
    files = [
        picture(tmp_path, "a.png", (75, 61)),
        picture(tmp_path, "turned.jpg", (40, 90), exif=turned),
        picture(tmp_path, "clear.png", (33, 33), "RGBA"),
        picture(tmp_path, "dot.png", (1, 1)),
    ]
    found = np.stack([script.score(session, facts, file) for file in files])
    wanted = made.predict(files).scores.numpy()
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_the_script_is_short_and_knows_numpy_pillow_and_onnxruntime_alone(root: Path) -> None:
    code = (root / "examples" / "score_with_onnx.py").read_text().split('"""')[2].splitlines()
    assert len([line for line in code if line.strip()]) <= 60
    imported = {line.split()[1].split(".")[0] for line in code if line.startswith(("import ", "from "))}
    assert imported - set(sys.stdlib_module_names) == {"numpy", "PIL", "onnxruntime"}


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_an_exported_network_takes_pixels_and_any_number_of_patches(
    published: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_bgr = NETWORKS["tiny"]()
    in_bgr = Network("", in_bgr.model, FoundPreprocessing(NEON_IMAGENET, None, ""), in_bgr.fetch_weights)
    monkeypatch.setitem(NETWORKS, "tiny", lambda: in_bgr)
    made = fitted()
    run: Callable[[Tensor], Tensor]
    if suffix == ".onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession(str(made.export(tmp_path / "m.onnx")))
        run = lambda pixels: torch.from_numpy(session.run(None, {"pixels": pixels.numpy()})[0])  # noqa: E731
    else:
        run = torch.export.load(made.export(tmp_path / "m.pt2")).module()
    for count in (1, 5):
        pixels = torch.randint(256, (count, 3, 32, 32)).float()
        wanted = made.decided.objective.probs(made.model(made.preprocessing(pixels)))
        assert torch.allclose(run(pixels), wanted, atol=1e-5)


class Drifting(nn.Module):
    """A network that computes something else when it is traced than when it runs, or cannot be traced."""

    preprocessing = IMAGENET

    def __init__(self, traceable: bool) -> None:
        super().__init__()
        self.conv, self.fc, self.traceable = nn.Conv2d(3, 4, 3), nn.Linear(4, 3), traceable

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).mean(dim=(2, 3))
        if torch.compiler.is_compiling():
            x = x + 1 if self.traceable else x[: int(x.sum())]
        return self.fc(x)


@pytest.mark.parametrize(
    ("traceable", "words"), [(True, "differ by .*keep it with classifier.save"), (False, "torch cannot export this Drifting")]
)  # fmt: skip
def test_what_is_not_the_same_network_is_not_written(tmp_path: Path, traceable: bool, words: str) -> None:
    made = fitted(Drifting(traceable))
    with pytest.raises(ArgumentError, match=words):
        made.export(tmp_path / "m.pt2")
    assert not list(tmp_path.iterdir())


def test_what_an_export_needs(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StateError, match="nothing was fitted yet"):
        tk.SceneClassifier("tiny").export(tmp_path / "m.onnx")
    made = fitted()
    with pytest.raises(ArgumentError, match=r"path must be a file that ends in \.onnx or \.pt2, got"):
        made.export(tmp_path / "m.pb")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtraError, match=r"pip install transferkit\[onnx\]"):
        made.export(tmp_path / "m.onnx")
