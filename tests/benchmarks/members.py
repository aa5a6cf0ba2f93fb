"""The suite's members: each a script of this folder that measures one thing and runs alone as well."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Member:
    """One comparison.

    Attributes:
        name: The script, without ``.py``.
        title: What it asks.
        minutes: About how long it takes on two cores.
        arguments: Of the script; ``DIR``, ``FILE`` and ``OUT`` stand for photos, weights and a folder for its files.
        quick: The same for trying it out, on next to nothing.
    """

    name: str
    title: str
    minutes: float
    arguments: str
    quick: str

    def command(self, places: dict[str, str], quick: bool = False) -> list[str]:
        """Return the script's arguments with ``DIR``, ``FILE`` and ``OUT`` replaced."""
        return [places.get(word, word) for word in (self.quick if quick else self.arguments).split()]


MEMBERS = (
    Member(
        "sampler_throughput",
        "How fast are patches cut, and how exactly?",
        7,
        "DIR --images 16 --rounds 5",
        "DIR --images 1 --patches 4 --rounds 1 --workers 0",
    ),
    Member(
        "sampler_digest",
        "Are an epoch's patches the same however it is run?",
        9,
        "DIR --images 100",
        "DIR --images 2 --patches 8 --most 0",
    ),
    Member(
        "sampler_memory",
        "Does memory stay flat over an epoch?",
        11,
        "DIR",
        "DIR --patches 8 --workers 0",
    ),
    Member(
        "large_checkpoints",
        "How do large files load?",
        3,
        "--gigabytes 4",
        "--gigabytes 0.01 --width 64 --rounds 1 --in_process",
    ),
    Member(
        "transfer_half_billion",
        "What does a transfer cost beside load_state_dict?",
        1,
        "--layers 30",
        "--layers 2 --width 64 --repeats 2",
    ),
    Member(
        "scores_on_photos",
        "What are multiscale patches worth, and do they know where things are?",
        30,
        "--data_dir DIR --weights FILE --out OUT",
        "--data_dir DIR --weights FILE --out OUT --train_photos 5 --test_photos 2 --train_patches 8 --test_patches 8",
    ),
)

ON_GPU = (
    Member(
        "recipe_on_gpu",
        "How fast is the full recipe on a GPU?",
        10,
        "--data_dir DIR",
        "--data_dir DIR --device cpu --photos 2 --patches 4 --batch 2 --side 67 --hidden 8 --kept 2 --workers 0 --rounds 1",
    ),
)
"""The members that need a GPU; ``--quick`` tries them on the cpu."""
