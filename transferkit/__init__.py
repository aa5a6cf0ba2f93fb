"""Move what a trained network knows into a new one, and turn a network of single objects into one of scenes.

Names are loaded when they are first used, so whoever wants the sampler alone imports the sampler alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from transferkit.deprecation import moved_names

if TYPE_CHECKING:
    from transferkit.checkpoints import Checkpoint, read_checkpoint, register_reader
    from transferkit.errors import TransferKitError
    from transferkit.finetune import NEON2016, OQUAB2014, RECOMMENDED, SceneClassifier
    from transferkit.heads import adaptation_head, replace_head
    from transferkit.labeling import OverlapRule, label_patches
    from transferkit.layers import layers_of
    from transferkit.sampler import MultiscaleSampler, PatchGrid, crop_and_resize
    from transferkit.scorer import ImageScorer, average_precision, evaluate
    from transferkit.transfer import (
        WeightTransfer,
        after,
        before,
        by_index,
        by_kind,
        by_name,
        every,
        freeze,
        register_handler,
        transfer_layer,
        unfreeze,
    )
    from transferkit.transfer import (
        assert_frozen as assert_frozen,  # beside freeze, though the front page lists thirty names and no more
    )

__version__ = "0.1.0"

__all__ = [
    "NEON2016",
    "OQUAB2014",
    "RECOMMENDED",
    "Checkpoint",
    "ImageScorer",
    "MultiscaleSampler",
    "OverlapRule",
    "PatchGrid",
    "SceneClassifier",
    "TransferKitError",
    "WeightTransfer",
    "adaptation_head",
    "after",
    "average_precision",
    "before",
    "by_index",
    "by_kind",
    "by_name",
    "crop_and_resize",
    "evaluate",
    "every",
    "freeze",
    "label_patches",
    "layers_of",
    "read_checkpoint",
    "register_handler",
    "register_reader",
    "replace_head",
    "transfer_layer",
    "unfreeze",
]

_NAMES_OF = {
    "checkpoints": "Checkpoint read_checkpoint register_reader",
    "errors": "TransferKitError",
    "finetune": "NEON2016 OQUAB2014 RECOMMENDED SceneClassifier",
    "heads": "adaptation_head replace_head",
    "labeling": "OverlapRule label_patches",
    "layers": "layers_of",
    "sampler": "MultiscaleSampler PatchGrid crop_and_resize",
    "scorer": "ImageScorer average_precision evaluate",
    "transfer": "WeightTransfer after assert_frozen before by_index by_kind by_name every freeze register_handler "
    "transfer_layer unfreeze",
}
_HOMES = {name: module for module, names in _NAMES_OF.items() for name in names.split()}
_PARTS = {*_NAMES_OF, "backbones", "datasets", "estimators", "features"}
_moved = moved_names(__name__, {"linear_head": "transferkit.heads.linear_head"}, until="0.2")


def __getattr__(name: str) -> Any:
    """Load a name, or a part of the package, when it is first asked for."""
    if name in _HOMES:
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    elif name in _PARTS:
        value = import_module(f"{__name__}.{name}")
    else:
        return _moved(name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return what can be asked for, loaded or not."""
    return sorted({*globals(), *__all__, *_PARTS})
