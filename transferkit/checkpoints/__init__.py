"""Files as layers: ``read_checkpoint`` turns any pretrained file into a :class:`Checkpoint`.

Reading runs no code from a file, and reads no more of it than is used. One module per format; another package
adds its own with ``register_reader``.

To read the code: ``reading`` asks ``registry`` for a file's format, whose module returns ``contents``, which
``checkpoint`` groups into layers. The formats are ``torch_zip``, ``torch_legacy``, ``pickle_file``,
``safetensors_file``, ``sharded``, ``npz_file`` and ``neon``; below those of pickles lies ``pickles``, which
reads one as inert data, and ``torch_objects`` and ``pickle_numpy``, which make tensors of it. ``nested`` finds
the state dict among what people save, and ``describe`` and ``compare`` put checkpoints into words.
"""

from transferkit.checkpoints.checkpoint import Checkpoint
from transferkit.checkpoints.reading import read_checkpoint
from transferkit.checkpoints.registry import Contents, ReadOptions, register_reader, unregister_reader

__all__ = ["Checkpoint", "Contents", "ReadOptions", "read_checkpoint", "register_reader", "unregister_reader"]
