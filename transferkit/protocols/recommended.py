"""The recipe to start with."""

from __future__ import annotations

from dataclasses import replace

from transferkit.heads import ImageLoss
from transferkit.labeling import OverlapRule
from transferkit.optimization import HeldOutChoice, WarmupCosine, WeightAverage
from transferkit.protocols.optimization import Optimization
from transferkit.protocols.protocol import Protocol
from transferkit.sampler import AllPatches, ClassBalanced, PatchGrid
from transferkit.scorer import VOC2010

_SCALES = (1, 1.4, 2, 2.8, 4)
_ADAMW = Optimization(
    1e-3, momentum=0.9, weight_decay=1e-2, schedule=WarmupCosine(epochs=8, warmup=0.8), method="adamw"
)
RECOMMENDED = Protocol(
    name="recommended",
    grid=PatchGrid(scales=_SCALES, target=None),
    subtract_one="starts",
    rule=OverlapRule(patch_fraction=0.2, object_fraction=0.6, several="largest"),
    train_balance=ClassBalanced(0.5),
    test_balance=AllPatches(),
    patches_per_image=64,
    batch_size=512,
    mix_images=8,
    patch_size=224,
    whole_pixels=False,
    antialias=True,
    hidden=(1024,),
    hidden_std=0.01,
    hidden_bias=0.0,
    drop_rate=0.5,
    head_std=0.01,
    train_trunk=False,
    pretrained=replace(_ADAMW, transferred=0.1),
    scratch=_ADAMW,
    epochs=8,
    exponent=3,
    reduction="mean",
    ap_rule=VOC2010,
    image_loss=ImageLoss(weight=1.0, exponent=2.0),
    average=WeightAverage(decay=0.99),
    features="shared",
    levels=_SCALES,
    choice=HeldOutChoice(),
)
"""What worked best in docs/experiments.md, on photos held out of the training ones: start here.

Over a frozen backbone, whose features are read from maps of the whole photo at five sizes, a head is trained with two
losses: that each patch be right, and that each photo be (:class:`~transferkit.heads.ImageLoss`). The exponent of
the score is chosen on a fifth of the training photos. Transferred layers that are not frozen are trained at a tenth
of the head's rate.
"""
