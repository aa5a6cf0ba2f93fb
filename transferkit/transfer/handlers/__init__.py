"""Handlers convert one source layer into tensors that fit one target layer; other packages may add theirs."""

from transferkit.transfer.handlers.registry import (
    Handler,
    find_handler,
    handler_names,
    register_handler,
    unregister_handler,
)

__all__ = ["Handler", "find_handler", "handler_names", "register_handler", "unregister_handler"]
