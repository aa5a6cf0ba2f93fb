"""The suite's members: each a script of this folder that measures one thing and runs alone as well."""

from __future__ import annotations

from dataclasses import dataclass

PLACES = ("DIR", "FILE", "OUT")


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
        """Return the script's arguments with ``DIR``, ``FILE`` and ``OUT`` replaced; an option whose place is not given goes."""
        words = (self.quick if quick else self.arguments).split()
        absent = {place for place, word in enumerate(words) if word in PLACES and word not in places}
        absent |= {place - 1 for place in absent if words[place - 1].startswith("--")}
        return [places.get(word, word) for place, word in enumerate(words) if place not in absent]


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
        "feature_training",
        "What does caching save in training over frozen layers?",
        40,
        "--data_dir DIR --weights FILE --out OUT",
        "--data_dir DIR --weights FILE --out OUT --test_photos 3 --test_patches 4 --train_photos 2 --train_patches 8 "
        "--grid_patches 10 --training_pyramid_scales 1 --epochs 1 --seeds 1 --workers 0 --threads 1",
    ),
    Member(
        "feature_scoring",
        "What do features that patches share save in scoring, and what do they cost?",
        40,
        "--data_dir DIR --weights FILE --out OUT",
        "--data_dir DIR --weights FILE --out OUT --photos 1 --patches 8 --rounds 1 --test_photos 3 --test_patches 4 --pyramid_scales 1 --training_pyramid_scales 1 --no-bfloat16 "
        "--train_photos 2 --train_patches 8 --grid_patches 10 --epochs 1 --seeds 1 --workers 0 --threads 1",
    ),
    Member(
        "feature_growth",
        "How does cost grow with photos and processes?",
        20,
        "--data_dir DIR --weights FILE --out OUT",
        "--data_dir DIR --weights FILE --out OUT --photos 2 --processes 1 --patches 8 --pyramid_scales 1 --workers 0",
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
