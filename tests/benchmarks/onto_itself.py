"""Every model onto itself, and onto a copy whose module names are all changed: right, refused or wrong?

    python -m tests.benchmarks.onto_itself --json tables.json --out verdicts.json

asks it of timm's models, the first and the last by name of each of its modules (``pip install timm``). A model is built
on the meta device and its state dict written to a real file of the right names, shapes and order: by torch, which keeps
the order of definition, and as safetensors, which does not. Nothing is moved: which tensor a plan gives to which is
all that is asked, and the right one is known by the name that was changed.

``right``: every tensor of the file goes where it belongs. ``refused``: a library error. ``wrong``: a plan that would
be carried out and has a wrong pair, leaves a tensor out, or fails with an error of another kind. Ends with status 1 if
anything is wrong, or accepted that nothing in the file can tell.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.benchmarks.rounds import say
from tests.benchmarks.table import Table, write_tables
from transferkit.checkpoints import read_checkpoint
from transferkit.errors import TransferKitError
from transferkit.transfer import TransferPlan, WeightTransfer

MAPPINGS = ("name", "order", "structure")
SUFFIXES = (".pth", ".safetensors")
OUTCOMES = ("right", "refused", "wrong")
MOVED = ("copied", "adapted", "cast", "tied")

WRITTEN_WHOLE = 50_000_000  # bytes up to which the safetensors library writes the file
_CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip

Renaming = Mapping[str, str]
"""From a tensor's key to what the other side calls it."""


class Verdict(NamedTuple):
    """What came of one transfer, and in what words: the refusal's first line, or what is wrong."""

    outcome: str
    words: str = ""


class Question(NamedTuple):
    """Whose names the file has, how it was written, and how layers are found."""

    names: str
    suffix: str
    mapping: str

    @property
    def must_be_refused(self) -> bool:
        """Whether nothing in the file tells which layer is which: names changed, and no order or not asked for."""
        return self.names != "itself" and (self.mapping, self.suffix) in {
            ("name", ".pth"),
            ("name", ".safetensors"),
            ("order", ".safetensors"),
        }


# The names on the other side. Every word of a module's name becomes another one, everywhere the same.


def unchanged(keys: Iterable[str]) -> Renaming:
    """Return the keys themselves."""
    return {key: key for key in keys}


def counted(keys: Iterable[str]) -> Renaming:
    """Return the keys with the words of their modules numbered as they come: ``"conv1.weight" -> "m0.weight"``."""
    return _renamed(list(keys), seed=None)


def shuffled(keys: Iterable[str]) -> Renaming:
    """Return the keys with the words of their modules numbered at random, so that no number tells an order."""
    return _renamed(list(keys), seed=0)


NAMES: dict[str, Callable[[Iterable[str]], Renaming]] = {
    "itself": unchanged,
    "counted": counted,
    "shuffled": shuffled,
}


def _renamed(keys: list[str], seed: int | None) -> Renaming:
    words = list(dict.fromkeys(word for key in keys for word in key.split(".")[:-1]))
    numbers = list(range(len(words)))
    if seed is not None:
        random.Random(seed).shuffle(numbers)
    new = {word: f"m{number}" for word, number in zip(words, numbers, strict=True)}
    return {key: ".".join([*(new[word] for word in key.split(".")[:-1]), key.split(".")[-1]]) for key in keys}


# The files: what torch and safetensors write, of models without values.


def write_source(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors of these shapes under these names; tied ones are tied in the file."""
    if path.suffix == ".pth":
        write_torch(tensors, path)
    else:
        write_safetensors(tensors, path)


def write_torch(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Let torch write the file, with holes where the bytes would be."""
    real = {id(tensor): torch.empty(tensor.shape, dtype=tensor.dtype) for tensor in tensors.values()}
    with torch.serialization.skip_data():
        torch.save({key: real[id(tensor)] for key, tensor in tensors.items()}, path)


def write_safetensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Let safetensors write a small file, and write a large one of the same layout with a hole for the bytes."""
    first = {id(tensor): key for key, tensor in sorted(tensors.items(), reverse=True)}
    ties = {key: first[id(tensor)] for key, tensor in tensors.items() if first[id(tensor)] != key}
    kept = {key: tensor for key, tensor in tensors.items() if key not in ties}
    if sum(tensor.nbytes for tensor in kept.values()) <= WRITTEN_WHOLE:
        save_file({key: torch.zeros(t.shape, dtype=t.dtype) for key, t in kept.items()}, path, ties or None)
        return
    header: dict[str, object] = {"__metadata__": ties} if ties else {}
    end = 0
    for key, tensor in sorted(kept.items(), key=lambda item: (-item[1].element_size(), item[0])):
        begin, end = end, end + tensor.nbytes
        header[key] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


# The verdict on a plan.


def verdict(path: Path, mapping: str, model: nn.Module, names: Renaming) -> Verdict:
    """Say what becomes of a file that holds the model's own tensors under other names.

    Args:
        path: The file.
        mapping: How layers are found.
        model: The target.
        names: What the file calls each of the model's tensors.
    """
    try:
        plan = WeightTransfer(read_checkpoint(path), mapping=mapping).plan(model)
        plan.check()
    except TransferKitError as error:
        return Verdict("refused", _gist(str(error)))
    except Exception as error:  # of torch or Python: no words for a user
        return Verdict("wrong", f"{type(error).__name__}: {error}"[:200])
    problem = next(wrongs(plan, model, names), "")
    return Verdict("wrong", problem) if problem else Verdict("right")


def wrongs(plan: TransferPlan, model: nn.Module, names: Renaming) -> Iterator[str]:
    """Say what a plan would do wrong; a tensor that is tied to another has the right value under either name."""
    own = model.state_dict(keep_vars=True)
    tensor_of = _also_bare({key: id(tensor) for key, tensor in own.items()})
    belongs_to = _also_bare({names[key]: id(tensor) for key, tensor in own.items()})
    left = {id(tensor): key for key, tensor in own.items()}
    for entry in plan.entries:
        if entry.target is None or entry.bucket not in MOVED:
            continue
        target = tensor_of[entry.target.key]
        left.pop(target, None)
        for side in entry.sources:
            if belongs_to[side.key] != target:
                yield f"{entry.target.key} takes {side.key}"
    yield from (f"{key} is left out" for key in left.values())


def _also_bare(found: Mapping[str, int]) -> dict[str, int]:
    """Return keys also without the word that a wrapper puts into them, which plans leave out of a name."""
    return {key.replace("module.", ""): value for key, value in found.items()} | dict(found)


def _gist(message: str) -> str:
    """Return the line of a refusal that tells why."""
    lines = [line.strip() for line in message.splitlines()]
    return next((line for line in lines if "ambiguous:" in line), lines[min(2, len(lines) - 1)])[:240]


def questions(names: Iterable[str]) -> list[Question]:
    """Return all that is asked of a model."""
    return [Question(name, suffix, mapping) for name in names for suffix in SUFFIXES for mapping in MAPPINGS]


def verdicts(model: nn.Module, folder: Path, names: Iterable[str] = tuple(NAMES)) -> dict[Question, Verdict]:
    """Return the verdict on each question about a model.

    Args:
        model: On the meta device, or any other.
        folder: Where the files are written, and deleted.
        names: Of the renamings.
    """
    own = model.state_dict(keep_vars=True)
    found = {}
    for name in names:
        new = NAMES[name](own)
        for suffix in SUFFIXES:
            path = folder / f"source{suffix}"
            write_source({new[key]: tensor for key, tensor in own.items()}, path)
            for mapping in MAPPINGS:
                found[Question(name, suffix, mapping)] = verdict(path, mapping, model, new)
            path.unlink()
    return found


# timm's models.


def timm_models() -> list[str]:
    """Return the names of the first and the last model of each of timm's modules."""
    import timm

    ends = []
    for module in timm.list_modules():
        found = timm.list_models(module=module)
        ends += [found[0], found[-1]] if found else []
    return list(dict.fromkeys(ends))


def build(name: str) -> nn.Module:
    """Build one of timm's models on the meta device, or with values where it looks at them as it is built."""
    import timm

    try:
        with torch.device("meta"):
            return timm.create_model(name)
    except (RuntimeError, NotImplementedError):
        return timm.create_model(name)


def table_of(found: Mapping[str, Mapping[Question, Verdict]], names: Iterable[str]) -> Table:
    """Return how many models came out how."""
    columns = {"names of the file": "", "file": "", "mapping": "", **dict.fromkeys(OUTCOMES, ",.0f")}
    table = Table(f"{len(found)} models onto themselves", columns)
    for question in questions(names):
        outcomes = [verdicts[question].outcome for verdicts in found.values()]
        table.add(*question, *(float(outcomes.count(outcome)) for outcome in OUTCOMES))
    return table


def plain(found: Mapping[str, Mapping[Question, Verdict]]) -> dict[str, dict[str, dict[str, str]]]:
    """Return the models' names by question and outcome, each with the words, for JSON."""
    listed: dict[str, dict[str, dict[str, str]]] = {}
    for model, verdicts in found.items():
        for question, (outcome, words) in verdicts.items():
            listed.setdefault(", ".join(question), {name: {} for name in OUTCOMES})[outcome][model] = words
    return listed


def failures(found: Mapping[str, Mapping[Question, Verdict]]) -> list[str]:
    """Return what may not be: wrong pairs, and pairs out of nothing."""
    return [
        f"{model}, {', '.join(question)}: {outcome} {words}"
        for model, verdicts in found.items()
        for question, (outcome, words) in verdicts.items()
        if outcome == "wrong" or (outcome == "right" and question.must_be_refused)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", help="names of timm's models (default two of each module)")
    parser.add_argument("--names", nargs="+", choices=NAMES, default=list(NAMES), help="whose names files have")
    parser.add_argument("--json", type=Path, help="also write the table here")
    parser.add_argument("--out", type=Path, help="also write every verdict here, with its words")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found: dict[str, dict[Question, Verdict]] = {}
    with TemporaryDirectory() as folder:
        for name in options.models or timm_models():
            started = time.perf_counter()
            found[name] = verdicts(build(name), Path(folder), options.names)
            outcomes = [found[name][question].outcome for question in questions(options.names)]
            seconds = time.perf_counter() - started
            say(f"{name}: {', '.join(f'{outcomes.count(o)} {o}' for o in OUTCOMES)}, {seconds:.1f} s")
            if options.out:
                options.out.write_text(json.dumps(plain(found), indent=1), encoding="utf-8")
    table = table_of(found, options.names)
    print(table.markdown())
    if options.json:
        write_tables(options.json, [table])
    failed = failures(found)
    print("\n".join([f"{len(failed)} may not be:", *failed]) if failed else "Nothing is wrong.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
