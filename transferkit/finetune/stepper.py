"""One step of the optimizer, from one or more minibatches on one or more devices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from transferkit.backbones import logits_of
from transferkit.finetune import distributed
from transferkit.finetune.loop_settings import LoopSettings
from transferkit.finetune.optimization import PerStep
from transferkit.finetune.run import Run
from transferkit.sampler import PatchBatch


class Stepper:
    """Takes steps with a run's optimizer, and reads nothing back from the device.

    A step follows the gradient of the mean loss over all patches that count, of all its minibatches on all ranks: the
    same step, up to rounding, as on one minibatch of them all.

    Args:
        run: Whose model is trained; its weights are laid out as the device wants them.
        loop: Precision and layout.
    """

    def __init__(self, run: Run, loop: LoopSettings) -> None:
        loop.lay_out_weights(run.model)
        self.run, self.loop = run, loop
        self._shared = distributed.parallel(run.model, run.device)
        self._network = loop.compiled(self._shared)
        self._scaler = loop.gradient_scaler(run.device)

    def step(self, minibatches: Sequence[PatchBatch]) -> Tensor:
        """Take one step.

        Args:
            minibatches: As many on every rank.

        Returns:
            Of this rank's patches, the summed loss, how many were right, and how many counted; (3,) float64.
        """
        device, optimizer = self.run.device, self.run.optimizer
        mine = torch.stack([self.run.objective.counted(batch.labels).sum() for batch in minibatches]).sum()
        # At least one: where all patches are ignored, 0 / 0 would be NaN.
        counted = distributed.sum_over_ranks(mine.to(device)).clamp(min=1)
        divisor = counted / distributed.world_size()  # the exchange of gradients divides by the number of ranks
        totals = torch.zeros(3, dtype=torch.float64, device=device)
        optimizer.zero_grad(set_to_none=True)
        for batch in minibatches[:-1]:
            with distributed.without_exchange(self._shared):
                totals += self._add_gradient(batch, divisor)
        totals += self._add_gradient(minibatches[-1], divisor)
        with record_function("optimizer"):
            self._scaler.step(optimizer)
            self._scaler.update()
        if isinstance(self.run.schedule, PerStep):
            self.run.schedule.step()
        return totals

    def _add_gradient(self, batch: PatchBatch, divisor: Tensor) -> Tensor:
        """Add the gradient of a minibatch's summed loss over ``divisor``; return its part of what a step returns."""
        run, loop = self.run, self.loop
        pixels, labels = (tensor.to(run.device, non_blocking=True) for tensor in (batch.pixels, batch.labels))
        # A filler, known by its image index on the cpu, keeps step with other ranks and has no say in statistics.
        filler = bool((batch.image_index < 0).all())
        with record_function("forward"), _evaluation(run.model) if filler else nullcontext():
            with loop.mixed_precision(run.device):
                logits = logits_of(self._network(loop.lay_out(run.preprocessing(pixels)))).float()
            losses = run.objective.losses(logits, labels).sum()
        with record_function("backward"):
            torch.autograd.backward(self._scaler.scale(losses / divisor))
        counted, right = run.objective.counted(labels), run.objective.right(logits.detach(), labels)
        return torch.stack([losses.detach().double(), right.sum().double(), counted.sum().double()])


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Put a model in training into evaluation mode for a while."""
    model.eval()
    yield
    model.train()
