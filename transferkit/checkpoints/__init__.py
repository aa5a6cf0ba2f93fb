"""Files as layers: ``read_checkpoint`` turns any pretrained file into a :class:`Checkpoint`.

Reading runs no code from a file, and reads no more of it than is used. One module per format; another package
adds its own with ``register_reader``.
"""

from transferkit.checkpoints.checkpoint import Checkpoint
from transferkit.checkpoints.contents import Contents, ReadOptions
from transferkit.checkpoints.reading import read_checkpoint
from transferkit.checkpoints.registry import register_reader, unregister_reader

__all__ = ["Checkpoint", "Contents", "ReadOptions", "read_checkpoint", "register_reader", "unregister_reader"]
