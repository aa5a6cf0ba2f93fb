"""Lightning's Trainer with the sampler as it is: killed, and resumed from Lightning's own checkpoint.

python tests/neighbours/test_lightning.py FOLDER DIE_AT EVERY     trains, as the tests have it, and may kill itself
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

lightning = pytest.importorskip("lightning")

from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402

from tests.docs.pages import ROOT, blocks  # noqa: E402
from transferkit.sampler import MultiscaleSampler, RandomFlip  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # Lightning's own
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


class Items(torch.utils.data.Dataset[Any]):
    bad: int | None = None

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> SimpleNamespace:
        if index == self.bad:
            raise OSError("truncated")
        draw = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (3, 64, 80), dtype=torch.uint8, generator=draw)
        boxes = torch.tensor([[4.0, 4, 40, 40]])
        return SimpleNamespace(image=image, boxes=boxes, classes=torch.tensor([1 + index % 2]))


def make(**settings: Any) -> MultiscaleSampler:
    """Six minibatches an epoch."""
    form = {  # six minibatches an epoch
        "patch_size": 16,
        "patches_per_image": 8,
        "batch_size": 8,
        "mix_images": 2,
        "transforms": [RandomFlip()],
    }
    return MultiscaleSampler(settings.pop("dataset", Items()), **{**form, **settings})


class Model(lightning.LightningModule):  # type: ignore[misc,name-defined]
    """Writes down each step, its minibatch and its weights; dies at one."""

    def __init__(self, folder: Path, die_at: int = -1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.folder, self.die_at = torch.nn.Linear(768, 3), folder, die_at

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        digest = hashlib.sha256()
        for tensor in (batch.pixels, batch.labels, batch.boxes, batch.image_index, self.net.weight.detach()):
            digest.update(tensor.numpy().tobytes())
        with (self.folder / "seen.txt").open("a") as seen:
            seen.write(f"{self.global_step} {self.current_epoch} {digest.hexdigest()}\n")
        if self.global_step == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.nn.functional.cross_entropy(self.net(batch.pixels.flatten(1) / 255), batch.labels)

    def validation_step(self, batch: Any, _: int) -> None:
        (self.folder / f"tested in epoch {self.current_epoch}").write_bytes(batch.pixels.numpy().tobytes())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.01)


def train(folder: str, die_at: str = "-1", every: str = "0") -> None:
    saving = ModelCheckpoint(folder, every_n_train_steps=int(every) or None, save_last=True)
    trainer = lightning.Trainer(max_epochs=3, callbacks=[saving], **QUIET)
    trainer.fit(Model(Path(folder), int(die_at)), make(), ckpt_path="last")


def run(folder: Path, die_at: int, every: int) -> int:
    command = [sys.executable, __file__, str(folder), str(die_at), str(every)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, timeout=200).returncode


@pytest.mark.parametrize(
    ("every", "deaths"),
    [(4, [5, 9]), (0, [8])],
    ids=["saved within epochs", "saved at the ends of epochs, which Lightning loads no state for"],
)
def test_killed_and_resumed_is_the_unbroken_run_bit_for_bit(
    tmp_path: Path, every: int, deaths: list[int]
) -> None:
    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    for folder in (broken, unbroken):
        folder.mkdir()
    assert [run(broken, death, every) for death in deaths] == [-signal.SIGKILL] * len(deaths)
    assert run(broken, -1, every) == 0
    train(str(unbroken))
    expected = (unbroken / "seen.txt").read_text().splitlines()
    seen = (broken / "seen.txt").read_text().splitlines()
    assert len(expected) == 18 < len(seen)  # some steps were done again
    assert list(dict.fromkeys(sorted(seen, key=expected.index))) == expected


def test_a_test_sampler_gives_the_same_patches_after_every_epoch(tmp_path: Path) -> None:
    trainer = lightning.Trainer(max_epochs=2, enable_checkpointing=False, num_sanity_val_steps=0, **QUIET)
    trainer.fit(Model(tmp_path), make(), make(mode="test"))
    first, second = (tmp_path / f"tested in epoch {epoch}" for epoch in range(2))
    assert first.read_bytes() == second.read_bytes()


def test_an_image_that_was_skipped_is_told_of(tmp_path: Path) -> None:
    """Though the Trainer counts minibatches and asks for no more than there are."""
    items = Items()
    items.bad = 3
    trainer = lightning.Trainer(max_epochs=1, enable_checkpointing=False, **QUIET)
    sampler = make(dataset=items, on_bad_image="skip", batch_size=16)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trainer.fit(Model(tmp_path), sampler)
    assert any("skipped an image" in str(warning.message) for warning in told)


def test_the_how_to_runs_word_for_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = blocks(ROOT / "docs/how-to/reuse-the-sampler.md")
    (place,) = (i for i, block in enumerate(page) if block.not_run and "lightning" in block.title)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in (page[0], page[place]):  # the photos, and the Trainer
        exec(compile(block.text, "reuse-the-sampler.md", "exec"), names)
    expected = page[place].text.rpartition("# ")[2].strip()
    assert capsys.readouterr().out.splitlines()[-1] == expected == "16 2"


if __name__ == "__main__":
    train(*sys.argv[1:])
