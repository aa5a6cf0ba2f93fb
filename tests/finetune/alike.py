"""What the ranks of ``test_any_number_of_ranks.py`` do: under torchrun or in one process, each leaves what it found."""

from __future__ import annotations

import os
import sys
import warnings
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from tests.docs.pages import ROOT, blocks
from tests.features.scenes import GRID, Scenes
from tests.finetune.test_predictions import RECIPE, network, photo
from tests.finetune.tiny import IDENTITY
from transferkit import SceneClassifier
from transferkit.distributed import world_size
from transferkit.errors import TransferKitError
from transferkit.finetune import AveragedWeights, Run, StopEarly, fit, process_group, score_images
from transferkit.heads import ImageLoss
from transferkit.optimization import EarlyStopping, HeldOutChoice, WeightAverage
from transferkit.sampler import MultiscaleSampler
from transferkit.scorer import ImageScorer

CHOICE = HeldOutChoice(fraction=0.3, exponents=(1, 3, 8), stopping=EarlyStopping(patience=1))
DECIDED = {"patches_per_image": 16, "batch_size": 48, "mix_images": 3, "epochs": 3, "drop_rate": 0.0}
PAGE = ROOT / "docs" / "how-to" / "many-devices.md"


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def patches(count: int, mix_images: int = 1, mode: str = "train", **how: Any) -> MultiscaleSampler:
    data = how.pop("data", None) or Scenes(count)
    settings = {"grid": GRID, "patches_per_image": 10, "batch_size": 8, "patch_size": 16, "seed": 2}
    return MultiscaleSampler(data, mode=mode, mix_images=mix_images, **{**settings, **how})


def run_of(model: nn.Module, **known: Any) -> Run:
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    return Run(model, optimizer, schedule, IDENTITY, **known)


def scores_of(model: nn.Module, images: int) -> torch.Tensor:
    return score_images(model, patches(images, mode="test"), ImageScorer(images, 3), IDENTITY)


class Moody(nn.Module):
    """Parameters that never train, in training only, and at every other minibatch only."""

    def __init__(self, middle: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3, 2), middle or nn.Identity(), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        )
        self.head, self.never, self.training_only, self.at_times = (nn.Linear(4, 3) for _ in range(4))
        self.calls = 0

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        seen = self.body(pixels / 255).flatten(1)
        logits = self.head(seen)
        if self.training:
            self.calls += 1
            logits = logits + 0.1 * self.training_only(seen)
        return logits + self.at_times(seen) if self.calls % 2 else logits


class Talks(nn.Module):
    """Subtracts the mean over the minibatches of all ranks, in training and else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        mean = maps.mean((0, 2, 3))
        if distributed.is_initialized():
            mean = distributed.nn.functional.all_reduce(mean) / world_size()
        return (maps - mean[:, None, None]) * self.weight[:, None, None]


def words_of(call: Any) -> str:
    try:
        call()
    except TransferKitError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


# Each returns what must be the same on all ranks; what must be that of one process too is under "alone".


def classifier() -> dict[str, Any]:
    """A recipe that stops, averages, chooses and calibrates on held-out photos, some of them with labels alone."""
    photos = [photo(index, labeled=index in (3, 8)) for index in range(13)]
    recipe = replace(RECIPE, **DECIDED, choice=CHOICE)
    one = SceneClassifier(network(), recipe, class_names=["white", "black"], device="cpu").fit(photos)
    predictions = one.predict([photo(index) for index in range(20, 25)])
    return {"alone": {
        "weights": dict(one.model.state_dict()), "decided": [one.decided.epochs, one.decided.exponent],
        "thresholds": one.calibration.to_dict(), "ap": one.test(photos[:3]).mean_ap(),
        "scores": predictions.scores, "labels": predictions.labels,
        "image loss": one.run.history[-1].image_loss, "steps": one.run.average.steps,
    }}  # fmt: skip


def steps() -> dict[str, Any]:
    """However patches are divided, and whatever takes part in the loss."""
    found: dict[str, Any] = {}
    for mix in (1, 2, 3):
        run = run_of(Moody())
        fit(run, patches(7, mix), epochs=2)
        found[f"mix {mix}"] = dict(run.model.state_dict())
    found["scores"] = scores_of(run.model, 5)
    return {"alone": found}


def talks() -> dict[str, Any]:
    """A layer that waits for all ranks, where some have fillers, in training and at test."""
    run = run_of(Moody(Talks()))
    stream = patches(4, mix_images=3)
    fit(run, stream, epochs=2)
    fillers = sum(batch.is_filler for batch in patches(4, mix_images=3))
    told = [None] * world_size()
    if world_size() > 1:
        distributed.all_gather_object(told, fillers)
    return {"weights": dict(run.model.state_dict()), "scores": scores_of(run.model, 4), "fillers": told}


def statistics() -> dict[str, Any]:
    """One photo for all ranks, and an average of weights: what is tested has the statistics of whoever saw it."""
    model = Moody(nn.BatchNorm2d(4))
    run = run_of(model)
    run.average = AveragedWeights(model, run.optimizer, WeightAverage(decay=0.5), steps_per_epoch=2)
    fit(run, patches(1, mix_images=3), epochs=2)
    return {"alone": {"weights": dict(run.model.state_dict()), "tested": dict(run.tested_model.state_dict())}}


def given() -> dict[str, Any]:
    """A model that the user has wrapped is trained and saved as one that is not."""
    model = Moody(nn.BatchNorm2d(4))
    if world_size() > 1:
        model = DistributedDataParallel(model, find_unused_parameters=True)
    run = run_of(model)
    fit(run, patches(3, mix_images=3), epochs=1)
    return {"names": list(run.state_dict()["model"]), "scores": scores_of(run.model, 5)}


def decisions() -> dict[str, Any]:
    """Whatever one rank finds alone."""
    run = run_of(Moody())
    fit(run, patches(3), epochs=5, stop=lambda run: rank() == world_size() - 1 and run.epoch == 2)
    measured = StopEarly(EarlyStopping(), measure=lambda run: 0.5 + rank())
    images = run_of(Moody())
    images.image_loss = ImageLoss()
    sick = Moody()
    if rank() == world_size() - 1:
        sick.register_forward_hook(lambda module, given, logits: logits * torch.nan)

    def skipped(bad: set[int], mix_images: int = 3) -> MultiscaleSampler:
        class Broken(Scenes):
            def __getitem__(self, index: int) -> Any:
                if index in bad:
                    raise OSError("truncated file")
                return super().__getitem__(index)

        return patches(4, mix_images, data=Broken(4), on_bad_image="skip")

    some, none, lacking = skipped({1}), skipped({0, 1, 2, 3}), run_of(Moody())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(run_of(Moody()), some, epochs=1)
        fit(lacking, skipped({1}, mix_images=1), epochs=2)
        no_photo = words_of(lambda: fit(run_of(Moody()), none, epochs=1))
    return {
        "epochs": run.epoch,
        "measure": words_of(lambda: fit(run_of(Moody()), patches(3), epochs=2, stop=measured)),
        "image loss": words_of(lambda: fit(images, patches(3), epochs=1)),
        "sick": words_of(lambda: scores_of(sick, 5)),
        "alone": {
            "no photo": no_photo,
            "bad": dict(some.bad_images),
            "without one": dict(lacking.model.state_dict()),
        },
    }


def sharded() -> dict[str, Any]:
    """Refused by fit; the loop of the how-to serves it, at test too, where ranks have unequal shares."""
    if world_size() == 1:
        return {}
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, mesh = Moody(), init_device_mesh("cpu", (world_size(),))
    fully_shard(model.body[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    plain = scores_of(Moody(), 4)
    return {
        "fit": words_of(lambda: fit(run_of(model), patches(4), epochs=1)),
        "classifier": words_of(lambda: SceneClassifier(model)),
        "scores": [scores_of(model, 4), plain],
    }


def own_loop(folder: Path) -> dict[str, Any]:
    """The programs of the how-to, the second with ``fully_shard`` and a loop of one's own."""
    os.chdir(folder)
    names: dict[str, Any] = {"__name__": "how_to", "joined": nullcontext}
    for block in blocks(PAGE):
        if block.language == "python" and not block.not_run:
            exec(block.text.replace("finetune.process_group(device)", "joined()"), names)  # one group for all
    return {"alone": {"scores": names["scores"]}}


CHECKS = (classifier, steps, talks, statistics, given, decisions, sharded)


def main(folder: Path) -> None:
    with process_group(torch.device("cpu")):
        found = {"own_loop": own_loop(folder)}
        found |= {check.__name__: check() for check in CHECKS}
        torch.save(found, folder / f"{rank()}_of_{world_size()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
