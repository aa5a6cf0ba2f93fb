"""Move layers of a trained network onto another.

Select layers of the target, map source layers to them, convert what does not fit, look at the plan: then all of it
is written, or nothing is.

To read the code, follow ``weight_transfer`` in the order of a transfer: ``_target`` (the model as layers),
``select`` (the rules), ``_mapping`` (and ``structure`` with ``_name_evidence``, where names tell nothing; ``parts``,
where one layer is several),
``_conversion`` (which of the ``handlers`` converts a layer, and how it is run), ``_decide`` (every tensor into its
bucket), ``_write`` (the values, and the only place that changes a model), ``_states`` (optimizer states).
``account`` is what a plan and a report share, ``_entry`` one line of it, ``_table`` and ``_refusal`` its words.
``freezing`` freezes layers.
"""

from transferkit.transfer.account import TransferPlan, TransferReport
from transferkit.transfer.freezing import assert_frozen, freeze, frozen_layers, unfreeze
from transferkit.transfer.handlers import Handler, register_handler
from transferkit.transfer.parts import Part
from transferkit.transfer.select import Predicate, Rule, after, before, by_index, by_kind, by_name, every
from transferkit.transfer.structure import ByStructure
from transferkit.transfer.weight_transfer import WeightTransfer, transfer_layer

__all__ = [
    "ByStructure",
    "Handler",
    "Part",
    "Predicate",
    "Rule",
    "TransferPlan",
    "TransferReport",
    "WeightTransfer",
    "after",
    "assert_frozen",
    "before",
    "by_index",
    "by_kind",
    "by_name",
    "every",
    "freeze",
    "frozen_layers",
    "register_handler",
    "transfer_layer",
    "unfreeze",
]
