"""The loop: steps over several minibatches, fillers, precision, layout, a profile, and a device never waited for."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.finetune import ranked
from tests.finetune.tiny import IDENTITY, Batch, Stream, tiny_model, tiny_run
from transferkit.errors import ArgumentError, DivergedError
from transferkit.finetune import LoopSettings, Run, fill_scorer, fit, score_images, train_epoch
from transferkit.finetune.scoring import joined
from transferkit.finetune.training import Stepper, train_on
from transferkit.scorer import ImageScorer


class Minibatches(Stream):
    """The patches of ``ranked``, a fifth and more of them ignored, in minibatches of one's own."""

    def __init__(self, size: int, *, fillers: bool = False) -> None:
        super().__init__()
        self.size, self.fillers = size, fillers

    def __iter__(self) -> Iterator[Batch]:
        pixels, labels = ranked.patches()
        for rows in torch.arange(ranked.PATCHES).split(self.size):
            yield Batch(pixels[rows], labels[rows], torch.zeros(len(rows), dtype=torch.int64))
            if self.fillers:
                yield ranked.filler()


def assert_close(one: nn.Module, other: nn.Module, **tolerance: float) -> None:
    for (name, tensor), wanted in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(tensor, wanted, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("accumulate", [2, 3, 4])
def test_several_minibatches_step_as_one_large_one(accumulate: int) -> None:
    """Also where some of the patches are ignored, in unequal parts, and the last step has fewer minibatches."""
    at_once, in_parts = ranked.plain_run(), ranked.plain_run()
    one = fit(at_once, Minibatches(8 * accumulate), epochs=2)
    other = fit(in_parts, Minibatches(8), epochs=2, loop=LoopSettings(accumulate=accumulate))
    assert_close(in_parts.model, at_once.model, rtol=0, atol=1e-6)
    for ours, theirs in zip(other, one, strict=True):
        assert (ours.patches, ours.accuracy) == (theirs.patches, theirs.accuracy)
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)


def test_fillers_leave_no_trace_in_weights_statistics_or_dropout() -> None:
    without = tiny_run()
    fit(without, Minibatches(8), epochs=2)
    with_fillers = tiny_run()
    fit(with_fillers, Minibatches(8, fillers=True), epochs=2, loop=LoopSettings(accumulate=2))
    assert_close(with_fillers.model, without.model, rtol=0, atol=0)


def test_an_epoch_may_end_on_one_patch_under_batch_norm() -> None:
    """All patches are trained on; a convolution's norm, which sees many values of one patch, goes on learning."""

    class Some(Minibatches):
        def __iter__(self) -> Iterator[Batch]:
            whole = list(super().__iter__())
            yield from whole[:-1]
            last = whole[-1]
            yield Batch(last.pixels[:1], last.labels[1:2], last.image_index[:1])

    run = tiny_run()
    run.model[5] = nn.Sequential(nn.Linear(32, 16), nn.BatchNorm1d(16))
    with pytest.warns(UserWarning, match=r"holds one row only: 5\.1 took"):
        (record,) = fit(run, Some(48), epochs=1)
    _, labels = ranked.patches()
    assert int(run.model[1].num_batches_tracked) == 2 and int(run.model[5][1].num_batches_tracked) == 1
    assert record.patches == int((labels[:48] >= 0).sum()) + 1
    assert all(bool(tensor.isfinite().all()) for tensor in run.model.state_dict().values())


def on_meta(run: Run) -> Run:
    """A device without data: reading anything back from it, on purpose or not, raises."""
    run.model.to("meta")
    return run


def meta_batches() -> Iterator[Batch]:
    for batch in Stream():
        batch.pixels, batch.labels = batch.pixels.to("meta"), batch.labels.to("meta")
        batch.boxes = torch.zeros(16, 4)
        yield batch


def test_training_reads_nothing_back_from_the_device() -> None:
    loop = LoopSettings(accumulate=2)
    totals = train_on(Stepper(on_meta(tiny_run()), loop), meta_batches(), loop)
    assert totals.device.type == "meta"
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        totals.tolist()  # so the loop would have raised


def test_scoring_reads_back_once_for_many_minibatches() -> None:
    """A scorer may read; what it is given is joined from many minibatches, without a look at their values."""

    class Nosy:
        calls = 0

        def add_batch(self, probs, image_index, boxes=None) -> None:
            assert probs.device.type == "meta"
            assert len(probs) == len(image_index) == len(boxes) == 5 * 16
            self.calls += 1

    scorer = Nosy()
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):  # the one look, after all of them
        fill_scorer(tiny_model().to("meta"), meta_batches(), scorer, IDENTITY)
    assert scorer.calls == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_the_loop_never_waits_for_a_gpu() -> None:
    run = tiny_run()
    run.model.cuda()
    batches = [
        Batch(batch.pixels.cuda(), batch.labels.cuda(), batch.image_index)
        for batch in [*Stream(), ranked.filler()]
    ]
    loop = LoopSettings()
    stepper = Stepper(run, loop)
    train_on(stepper, batches, loop)  # constants are made, and kernels loaded
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_on(stepper, batches, loop)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_minibatches_are_joined_whole_and_in_order() -> None:
    minibatches = [(torch.full((i, 2), i), torch.full((i,), i), torch.full((i, 4), i)) for i in range(1, 8)]
    found = list(joined(minibatches, count=3))
    assert [len(probs) for probs, _, _ in found] == [6, 15, 7]
    assert torch.cat([index for _, index, _ in found]).tolist() == [i for i in range(1, 8) for _ in range(i)]


@pytest.mark.parametrize("loop", [LoopSettings(channels_last=True), LoopSettings(amp=True)], ids=str)
def test_layout_and_precision_change_no_more_than_rounding(loop: LoopSettings) -> None:
    plain, run = ranked.plain_run(), ranked.plain_run()
    fit(plain, Minibatches(16), epochs=2)
    fit(run, Minibatches(16), epochs=2, loop=loop)
    assert all(parameter.dtype == torch.float32 for parameter in run.model.parameters())
    assert_close(run.model, plain.model, rtol=0, atol=0.02 if loop.amp else 1e-5)
    assert run.model[0].weight.is_contiguous(memory_format=loop.memory_format(run.device))


def test_scoring_first_leaves_weights_that_can_be_trained() -> None:
    """Laid out anew within inference mode they could not."""
    run, loop = ranked.plain_run(), LoopSettings(channels_last=True)
    score_images(run.model, ranked.Photos(0, 1), ImageScorer(ranked.IMAGES, 3), IDENTITY, loop=loop)
    train_epoch(run, Minibatches(16), loop=loop)
    assert run.model.training


@pytest.mark.filterwarnings("ignore")  # of torch's compiler, not ours
@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",  # captures and differentiates as the default does, without the seconds of a C++ compiler
        pytest.param(
            "inductor",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(
                    "TRANSFERKIT_COMPILE" not in os.environ, reason="TRANSFERKIT_COMPILE is not set"
                ),
            ],
        ),
    ],
)
def test_a_compiled_network_trains_and_scores_alike(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    plain, run = ranked.plain_run(), ranked.plain_run()
    scores = []
    for each, loop in ((plain, LoopSettings()), (run, LoopSettings(compile=True))):
        fit(each, Minibatches(16), epochs=2, loop=loop)
        scorer = ImageScorer(ranked.IMAGES, 3)
        scores.append(score_images(each.model, ranked.Photos(0, 1), scorer, IDENTITY, loop=loop))
    assert_close(run.model, plain.model, rtol=0, atol=1e-5)
    torch.testing.assert_close(scores[1], scores[0], rtol=1e-3, atol=1e-6)


def test_a_network_that_gives_nan_is_an_error_at_test() -> None:
    model = tiny_model()
    nn.init.constant_(model[7].bias, torch.nan)
    with pytest.raises(DivergedError, match="NaN logits"):
        score_images(model, ranked.Photos(0, 1), ImageScorer(ranked.IMAGES, 3, validate=False), IDENTITY)


def test_a_profile_shows_phases_and_operators_and_leaves_a_trace(tmp_path: Path) -> None:
    run = tiny_run()
    fit(run, Stream(), epochs=2, loop=LoopSettings(profile=tmp_path / "profile"))
    table = (tmp_path / "profile" / "profile.txt").read_text()
    assert table.startswith("3 steps of ")  # five, without the two that warm up
    for words in ("wait for patches", "forward", "backward", "optimizer", "aten::"):
        assert words in table, table
    trace = gzip.decompress((tmp_path / "profile" / "trace.json.gz").read_bytes())
    assert json.loads(trace)["traceEvents"]


def test_an_epoch_too_short_to_profile_says_so(tmp_path: Path) -> None:
    fit(tiny_run(), Stream(), epochs=1, loop=LoopSettings(profile=tmp_path, accumulate=5))
    assert "too short to profile" in (tmp_path / "profile.txt").read_text()


def test_a_step_has_minibatches() -> None:
    with pytest.raises(ArgumentError, match="accumulate must be at least 1, got 0"):
        LoopSettings(accumulate=0)
