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
    same step, up to rounding, as on one minibatch of them all. A loss of images is the mean over all their images; of
    one whose patches are spread over several minibatches, each of these makes an image of its own.

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
        patches = torch.stack([self.run.objective.counted(batch.labels).sum() for batch in minibatches]).sum()
        # Filled on the device: to copy a number there would wait for all that it has to do.
        images = torch.full_like(patches, sum(map(_count_images, minibatches)), device=device)
        here = torch.stack([patches.to(device, non_blocking=True), images])
        # At least one: where all patches are ignored, 0 / 0 would be NaN.
        counted = distributed.sum_over_ranks(here).clamp(min=1)
        divisors = (
            counted / distributed.world_size()
        )  # the exchange of gradients divides by the number of ranks
        totals = torch.zeros(3, dtype=torch.float64, device=device)
        optimizer.zero_grad(set_to_none=True)
        for batch in minibatches[:-1]:
            with distributed.without_exchange(self._shared):
                totals += self._add_gradient(batch, divisors)
        totals += self._add_gradient(minibatches[-1], divisors)
        with record_function("optimizer"):
            self._scaler.step(optimizer)
            self._scaler.update()
        if isinstance(self.run.schedule, PerStep):
            self.run.schedule.step()
        return totals

    def _add_gradient(self, batch: PatchBatch, divisors: Tensor) -> Tensor:
        """Add the gradient of a minibatch's losses; return its part of what a step returns.

        Args:
            batch: The minibatch.
            divisors: (2,), of the summed losses of patches and of images.
        """
        run, loop = self.run, self.loop
        pixels, labels = (tensor.to(run.device, non_blocking=True) for tensor in (batch.pixels, batch.labels))
        # A filler, known by its image index on the cpu, keeps step with other ranks and has no say in statistics.
        filler = bool((batch.image_index < 0).all())
        with record_function("forward"), _evaluation(run.model) if filler else nullcontext():
            with loop.mixed_precision(run.device):
                logits = logits_of(self._network(loop.lay_out(run.preprocessing(pixels)))).float()
            losses = run.objective.losses(logits, labels).sum()
            loss = losses / divisors[0]
            if run.image_loss is not None:
                which, images = torch.unique(batch.image_index, return_inverse=True)
                images = images.to(run.device, non_blocking=True)
                of_images = run.image_loss.losses(run.objective.log_probs(logits), labels, images, len(which))
                loss = loss + run.image_loss.weight * of_images.sum() / divisors[1]
        with record_function("backward"):
            torch.autograd.backward(self._scaler.scale(loss))
        counted, right = run.objective.counted(labels), run.objective.right(logits.detach(), labels)
        return torch.stack([losses.detach().double(), right.sum().double(), counted.sum().double()])


def _count_images(batch: PatchBatch) -> int:
    """Return how many images a minibatch has patches of; a filler has none."""
    return len({*batch.image_index.tolist()} - {-1})


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Put a model in training into evaluation mode for a while."""
    model.eval()
    yield
    model.train()
