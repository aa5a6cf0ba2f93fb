"""Published recipes as frozen values: every number of a protocol in one place.

A protocol says *what* a recipe does; the sampler, the head, the loop and the scorer do it. A recipe of one's own is
one ``dataclasses.replace`` away::

    lighter = dataclasses.replace(NEON2016, patches_per_image=64)
"""

from transferkit.protocols.optimization import Optimization
from transferkit.protocols.protocol import Protocol
from transferkit.protocols.published import NEON2016, OQUAB2014
from transferkit.protocols.recommended import RECOMMENDED

__all__ = ["NEON2016", "OQUAB2014", "PROTOCOLS", "RECOMMENDED", "Optimization", "Protocol"]

PROTOCOLS = {protocol.name: protocol for protocol in (NEON2016, OQUAB2014, RECOMMENDED)}
"""The recipes by name."""
