"""The place that recipes had before: they are in :mod:`transferkit.finetune` now."""

from transferkit.deprecation import moved_names

__getattr__ = moved_names(
    __name__,
    {
        name: f"transferkit.finetune.{name}"
        for name in ("NEON2016", "OQUAB2014", "PROTOCOLS", "RECOMMENDED", "Optimization", "Protocol")
    },
    until="0.2",
)
