"""safetensors, a JSON header and raw bytes; and weights that an index spreads over files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from transferkit.checkpoints._dcp import is_dcp
from transferkit.checkpoints._state_dicts import check_names, contents_of
from transferkit.checkpoints._torch_files import load_torch_zip
from transferkit.checkpoints.registry import Contents, ReadOptions, find_format, register_reader
from transferkit.errors import CheckpointError, MissingExtraError, listed
from transferkit.layers import natural_order

_LARGEST_HEADER = 1 << 25  # bytes; the tensors of the largest models take a third of it
_LIBRARYS_LIMIT = 100_000_000
LAYOUT = "transferkit.layout"  # where a header says whose axes the tensors have
_ORDER_NOTE = "safetensors does not keep the order of layers; they are in the natural order of their names"


def _matches(path: Path, head: bytes) -> bool:
    length = int.from_bytes(head[:8], "little")
    return len(head) > 9 and head[8:9] == b"{" and 2 <= length <= _LIBRARYS_LIMIT


@register_reader("safetensors", matches=_matches, suffixes=(".safetensors",))
def read_safetensors(path: Path, options: ReadOptions) -> Contents:
    """Read a safetensors file; its tensors are mapped from the file."""
    return safetensors_contents(*mapped_tensors(path))


def safetensors_contents(tensors: dict[str, Tensor], metadata: dict[str, str]) -> Contents:
    """Return tensors in natural order, with the tied weights that ``safetensors.torch.save_model`` recorded."""
    check_names(tensors)
    ties = {name: kept for name, kept in metadata.items() if name not in tensors and kept in tensors}
    tensors = tensors | {name: tensors[kept] for name, kept in ties.items()}
    ordered = {name: tensors[name] for name in sorted(tensors, key=natural_order)}
    found = contents_of(ordered)
    plain = {name: value for name, value in metadata.items() if name not in (*ties, LAYOUT)}
    layout = metadata.get(LAYOUT, "torch")
    return replace(found, notes=(*found.notes, _ORDER_NOTE), metadata=plain, ordered=False, layout=layout)


def mapped_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of one file by name, and the strings in its header's ``__metadata__``.

    Raises:
        MissingExtraError: safetensors is not installed.
        CheckpointError: The file is damaged.
    """
    library = safetensors_library(f"{path}: reading")
    try:
        with library.safe_open(
            path, framework="pt", device="cpu"
        ) as file:  # takes less memory to refuse a header than JSON
            header = _header(path)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is not a dict
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"damaged safetensors file: {error}") from error
    return tensors, {name: str(value) for name, value in (header.get("__metadata__") or {}).items()}


def safetensors_library(what: str) -> Any:
    """Return ``safetensors.torch``, or say what needs it."""
    try:
        import safetensors.torch
    except ImportError:
        raise MissingExtraError(
            f"{what} safetensors needs the package of that name: pip install transferkit[safetensors]"
        ) from None
    return safetensors.torch


def _header(path: Path) -> dict[str, Any]:
    """Return the header, after checking that it has a reasonable size and names each tensor once."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _LARGEST_HEADER:
            raise CheckpointError(f"refused: its header alone has {length:,} bytes")
        header = json_object(file.read(length), "its header")
    check_names(header)
    return header


def json_object(content: bytes, what: str) -> dict[str, Any]:
    """Return a JSON object, none of whose parts has a key twice."""
    try:
        found = json.loads(str(content, "utf-8"), object_pairs_hook=_once_each)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"damaged: {what} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"damaged: {what} is a {type(found).__name__}")
    return found


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found


# Weights spread over several files: a folder with an index, as large models are published.


_INDEX = ".index.json"
_LARGEST_INDEX = 1 << 25
_SINGLE_FILES = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt")
# What Hugging Face's Trainer and accelerate put beside the weights.
_BESIDE = re.compile(
    r"(training_args|optimizer|scheduler|sampler|scaler|rng_state|random_states|dl_state_dict|custom_checkpoint)"
    r"(_\d+)*\.(bin|pt|pth|pkl)"
)
_ADAPTER = "adapter_config.json"
_UNZERO = "zero_to_fp32.py"


@register_reader("sharded", matches=lambda path, head: path.is_dir() or path.name.endswith(_INDEX))
def read_sharded(path: Path, options: ReadOptions) -> Contents:
    """Read a folder with an index, the index itself, or a folder with a single file of weights."""
    if path.is_file():
        return _read_index(path, options)
    index = _index_in(path)
    found = _read_single(path, options) if index is None else _read_index(index, options)
    adapter, notes = _adapter(path)
    return replace(found, notes=(*found.notes, *notes, *_left_in(path)), metadata={**found.metadata, **adapter})


def _read_index(index: Path, options: ReadOptions) -> Contents:
    """Read the shards that an index names."""
    folder, (weight_map, metadata) = index.parent, _weight_map(index)
    files = {name: folder / name for name in dict.fromkeys(weight_map.values())}
    missing = [name for name, file in files.items() if not file.is_file()]
    if missing:
        raise CheckpointError(f"{len(missing)} of {len(files)} shards are missing: {listed(missing, 4)}")
    read = {name: _read_shard(file, options) for name, file in files.items()}
    shards = {name: tensors for name, (tensors, _) in read.items()}
    absent = [key for key, name in weight_map.items() if key not in shards[name]]
    if absent:
        raise CheckpointError(
            f"{len(absent)} tensors are not in the shard that the index names, as {absent[0]!r}"
        )
    tensors = {key: tensor for shard in shards.values() for key, tensor in shard.items() if key in weight_map}
    if any(name.endswith(".safetensors") for name in files):
        headers = {key: value for _, header in read.values() for key, value in header.items()}
        return _by_way_of(index, safetensors_contents(tensors, headers | metadata), [index, *files.values()])
    return _by_way_of(index, contents_of(tensors), [index, *files.values()])


def _read_shard(file: Path, options: ReadOptions) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return one shard's tensors by the names that the index uses, and the strings in its header."""
    if file.name.endswith(".safetensors"):
        return mapped_tensors(file)
    saved = load_torch_zip(file, trusted=options.trusted)
    if not isinstance(saved, Mapping):
        raise CheckpointError(f"shard {file.name} holds no state dict")
    return {key: value for key, value in saved.items() if isinstance(value, Tensor)}, {}


def _read_single(folder: Path, options: ReadOptions) -> Contents:
    """Read the one file of weights in a folder, a safetensors file rather than a torch file."""
    for pattern in _SINGLE_FILES:
        found = _weights(folder, pattern)
        if len(found) > 1:
            names = listed([file.name for file in found], 4)
            raise CheckpointError(
                f"a folder with {len(found)} files of weights and no index; name one: {names}"
            )
        if found:
            return _by_way_of(found[0], find_format(found[0]).read(found[0], options), found)
    if inside := _checkpoints_in(folder):
        raise CheckpointError(f"a folder of checkpoints; read one of them: {listed(inside)}")
    if (folder / _UNZERO).is_file():
        raise CheckpointError(
            f"the parts of a model that DeepSpeed trained; put them together with python {folder / _UNZERO} "
            f"{folder} OUT, and read OUT"
        )
    if (folder / "Manifest.json").is_file():
        raise CheckpointError("a Core ML package: read the model that it was converted from")
    raise CheckpointError(f"a folder without weights (no *{_INDEX} and none of {', '.join(_SINGLE_FILES)})")


def _weights(folder: Path, pattern: str) -> list[Path]:
    return sorted(file for file in folder.glob(pattern) if file.is_file() and not _BESIDE.fullmatch(file.name))


def _checkpoints_in(folder: Path) -> list[str]:
    """Return the folders in a folder that hold weights, in natural order, as of ``checkpoint-500``."""
    found = (sub for sub in folder.iterdir() if sub.is_dir() and not _BESIDE.fullmatch(f"{sub.name}.pt"))
    patterns = (*_SINGLE_FILES, f"*{_INDEX}")
    holding = [sub for sub in found if is_dcp(sub) or any(_weights(sub, pattern) for pattern in patterns)]
    return sorted((str(sub) for sub in holding), key=natural_order)


def _left_in(folder: Path) -> list[str]:
    """Say what a folder holds beside the weights that were read."""
    beside = sorted(file.name for file in folder.iterdir() if _BESIDE.fullmatch(file.name))
    notes = [f"left out what lies beside the weights: {listed(beside)}"] if beside else []
    inside = _checkpoints_in(folder)
    return [*notes, f"the folder also holds checkpoints: {listed(inside)}"] if inside else notes


def _adapter(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Return what PEFT says of an adapter in a folder, and a note that it is no whole model."""
    config = folder / _ADAPTER
    if not config.is_file() or config.stat().st_size > _LARGEST_INDEX:
        return {}, []
    told = json_object(config.read_bytes(), _ADAPTER)
    kind, base = str(told.get("peft_type") or ""), str(told.get("base_model_name_or_path") or "")
    note = (
        f"a PEFT adapter ({kind}) of {base or 'a model that it does not name'}, not a whole model. It fits a model "
        f"that PEFT has wrapped; for plain weights: peft.PeftModel.from_pretrained(base, {str(folder)!r})"
        ".merge_and_unload().save_pretrained(folder)"
    )
    return {"peft_type": kind, "base_model_name_or_path": base}, [note]


def _index_in(folder: Path) -> Path | None:
    found = sorted(
        filter(Path.is_file, folder.glob(f"*{_INDEX}")), key=lambda file: ".safetensors" not in file.name
    )
    if len(found) > 1 and (".safetensors" in found[1].name or ".safetensors" not in found[0].name):
        names = listed([file.name for file in found], 4)
        raise CheckpointError(f"a folder with {len(found)} indexes; name one: {names}")
    return found[0] if found else None


def _weight_map(index: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the file of each tensor, after checking that it lies in the index's own folder; and plain metadata."""
    if index.stat().st_size > _LARGEST_INDEX:
        raise CheckpointError(f"refused: {index.name} is larger than any index")
    content = json_object(index.read_bytes(), index.name)
    weight_map, metadata = content.get("weight_map"), content.get("metadata")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"damaged: {index.name} has no weight_map of names")
    outside = [name for name in weight_map.values() if name != Path(name).name or name in ("", ".", "..")]
    if outside:
        raise CheckpointError(f"refused: {index.name} points outside its folder, to {outside[0]!r}")
    check_names(weight_map)
    plain = metadata.items() if isinstance(metadata, dict) else ()
    return weight_map, {name: value for name, value in plain if isinstance(value, str | int | float)}


def _by_way_of(file: Path, contents: Contents, files: list[Path]) -> Contents:
    note = f"read by way of {file.name}"
    return replace(contents, notes=(note, *contents.notes), files=tuple(files))
