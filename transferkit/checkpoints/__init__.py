"""Files as layers: :func:`read_checkpoint` turns any pretrained file into a :class:`Checkpoint`.

Reading runs no code from a file, and reads no more of it than is used. Another package adds a format with
:func:`register_reader`.

To read the code: ``checkpoint`` asks ``registry`` for a file's format, whose module returns :class:`Contents`, and
groups them into layers. The formats are ``_torch_files`` (pickles among them), ``_safetensors`` (and shards),
``_dcp`` (torch's sharded checkpoints), ``_archives`` (numpy's), ``_keras`` (over ``_hdf5``; ``_keras_layers`` and
``_keras_flow`` follow a model's description), ``_flax``, ``_onnx``, ``_caffe``, ``_bundles`` (TensorFlow's) and
``neon``; ``layouts`` says where other frameworks' tensors go in torch's layers. Below those of pickles lie
``_pickles``, which reads one as inert data, ``_inert``, which bounds what that may be, and ``_values``, which makes
arrays and tensors of it. ``_state_dicts`` finds the state dict among what people save, ``_optimizer_state`` gives
states back to their parameters by what ``_optimizers`` knows, and ``_describe`` puts checkpoints, and what differs
between two, into words. ``_converting`` writes any of them as safetensors.
"""

from transferkit.checkpoints._converting import Converted, convert_checkpoint
from transferkit.checkpoints.checkpoint import Checkpoint, read_checkpoint
from transferkit.checkpoints.registry import Contents, ReadOptions, register_reader, unregister_reader

__all__ = [
    "Checkpoint",
    "Contents",
    "Converted",
    "ReadOptions",
    "convert_checkpoint",
    "read_checkpoint",
    "register_reader",
    "unregister_reader",
]
