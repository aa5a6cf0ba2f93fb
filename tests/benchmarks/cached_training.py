"""A head trained by transferkit's own loop on cached features, the cache filled from empty, and timed."""

from __future__ import annotations

import argparse
import time
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn
from torch.optim.lr_scheduler import ConstantLR

from tests.benchmarks import ways
from tests.benchmarks.rounds import say
from tests.benchmarks.setting import GRID, RULE, SEED, Photos, new_head, new_optimizer
from transferkit.features import FeatureCache
from transferkit.finetune import Run, fit
from transferkit.finetune.on_features import AS_THEY_ARE
from transferkit.sampler import MultiscaleSampler


def cached_run(
    options: argparse.Namespace, photos: Photos, backbone: nn.Module, pyramid_scales: int | None
) -> dict[str, Any]:
    """Fill a cache and train a head from it.

    Args:
        options: With those of :func:`add_training_arguments`.
        photos: To train on.
        backbone: Frozen.
        pyramid_scales: Of the shared features; ``None`` for exact ones.

    Returns:
        The seconds to ``fill`` the cache, of each of the ``epochs`` and in ``total``, its ``bytes`` and the ``head``'s state.
    """
    features = ways.exact(backbone) if pyramid_scales is None else ways.shared(backbone, pyramid_scales)
    with TemporaryDirectory(dir=options.out) as folder:
        started = time.perf_counter()
        cache = FeatureCache(folder, features, photos.data, grid=GRID)
        cache.fill(num_workers=options.workers)
        fill = time.perf_counter() - started
        say(f"the cache: {cache.size()}, filled in {fill:.1f} s")
        sampler = MultiscaleSampler(
            cache, grid=GRID, rule=RULE, patches_per_image=options.train_patches, seed=SEED
        )
        run = head_run(len(photos.data.class_names))
        history = fit(run, sampler, options.epochs, after_epoch=lambda run: say(str(run.history[-1])))
        total = time.perf_counter() - started
        epochs = [record.seconds for record in history]
        return {
            "fill": fill,
            "epochs": epochs,
            "total": total,
            "bytes": cache.size().written,
            "head": run.model.state_dict(),
        }


def head_run(num_classes: int) -> Run:
    """Return a head in training on features as they are."""
    head = new_head(num_classes)
    optimizer = new_optimizer(head)
    return Run(head, optimizer, ConstantLR(optimizer, factor=1.0), AS_THEY_ARE)
