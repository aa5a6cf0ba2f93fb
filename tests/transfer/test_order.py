"""Order as evidence: where a file keeps it, where it has lost it, and where names say that it is another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import transferkit
from transferkit.errors import TransferError
from transferkit.layers import layers_of, natural_order
from transferkit.transfer import ByStructure, WeightTransfer, after, before, by_index

Files = Callable[[nn.Module], Path]


@pytest.fixture(params=[".pth", ".safetensors"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    """Save a model's weights, in a file that keeps the order of its layers or in one that does not."""

    def save(model: nn.Module) -> Path:
        path = tmp_path / f"net{request.param}"
        state = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
        torch.save(state, path) if request.param == ".pth" else save_file(state, path)
        return path

    return save


def named(*names: str, size: int = 3) -> nn.Module:
    """Layers that all look the same, defined in the order of their names here."""
    return nn.ModuleDict({name: nn.Linear(size, size) for name in names})


def holds(model: nn.Module, source: nn.Module, pairs: dict[str, str]) -> bool:
    targets, sources = model.state_dict(), source.state_dict()
    return all(torch.equal(targets[f"{a}.weight"], sources[f"{b}.weight"]) for a, b in pairs.items())


class Encoder(nn.Module):
    """A variational autoencoder: its names are in alphabetical order, and so they were defined."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc21, self.fc22 = nn.Linear(6, 4), nn.Linear(4, 2), nn.Linear(4, 2)
        self.fc3, self.fc4 = nn.Linear(2, 4), nn.Linear(4, 6)


class Renamed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc, self.mean, self.spread = nn.Linear(6, 4), nn.Linear(4, 2), nn.Linear(4, 2)
        self.dec, self.out = nn.Linear(2, 4), nn.Linear(4, 6)


@pytest.mark.parametrize("mapping", ["structure", "order"])
def test_names_that_were_defined_in_alphabetical_order_are_no_lost_order(mapping, tmp_path):
    source, model = Encoder(), Encoder()
    torch.save(source.state_dict(), tmp_path / "vae.pth")
    WeightTransfer(tmp_path / "vae.pth", mapping=mapping).apply(model)
    assert holds(model, source, {name: name for name in ("fc1", "fc21", "fc22", "fc3", "fc4")})


def test_by_order_a_file_that_keeps_it_serves_other_names(tmp_path):
    source, model = Encoder(), Renamed()
    torch.save(source.state_dict(), tmp_path / "vae.pth")
    WeightTransfer(tmp_path / "vae.pth", mapping="order").apply(model)
    assert holds(model, source, {"enc": "fc1", "mean": "fc21", "spread": "fc22", "dec": "fc3", "out": "fc4"})


def test_by_order_a_file_that_lost_it_is_refused_with_what_tells(tmp_path):
    source = named("stem", "body", "head")
    save_file(source.state_dict(), tmp_path / "net.safetensors")
    with pytest.raises(TransferError, match=r"does not keep\. Next step: mapping='structure', or say which"):
        WeightTransfer(tmp_path / "net.safetensors", mapping="order").apply(named("0", "1", "2"))
    model = named("stem", "body", "head")
    with pytest.raises(TransferError, match="Next step: mapping='name', since names and shapes agree on all"):
        WeightTransfer(tmp_path / "net.safetensors", mapping="order").apply(model)
    with pytest.raises(TransferError, match="mapping='order' needs the order"):
        layers = transferkit.read_checkpoint(tmp_path / "net.safetensors")[:2]
        WeightTransfer(layers, mapping="order").apply(named("0", "1"))
    WeightTransfer(tmp_path / "net.safetensors", mapping="name").apply(model)
    assert holds(model, source, {name: name for name in ("stem", "body", "head")})


@pytest.mark.parametrize("key", [None, natural_order], ids=["alphabetical", "by number"])
def test_a_dict_that_was_sorted_lost_its_order(key):
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(11)))
    state = model.state_dict()
    by_key = {name: state[name] for name in sorted(state, key=key)}
    assert not all(layer.ordered for layer in transferkit.read_checkpoint(by_key))
    with pytest.raises(TransferError, match="mapping='name', since names and shapes agree"):
        WeightTransfer(by_key, mapping="order").apply(nn.Sequential(*(nn.Linear(2, 2) for _ in range(11))))


def test_by_order_names_that_both_sides_have_do_not_cross():
    source, model = named("grove", "birch", "opal"), named("birch", "grove", "opal")
    with pytest.raises(TransferError, match=r"'birch' would take 'grove'.*mapping='name', since"):
        WeightTransfer(source.state_dict(), mapping="order").apply(model)
    with pytest.raises(TransferError, match="'birch' would take 'grove'"):
        WeightTransfer(source.state_dict(), mapping="order", select=before("grove")).apply(model)
    longer = named("stem", "grove", "birch")  # one layer more in front
    with pytest.raises(TransferError, match="'birch' would take 'grove'"):
        WeightTransfer(longer.state_dict(), mapping="order").apply(named("grove", "birch"))
    with pytest.raises(TransferError, match="'heath' would take 'jade'"):  # its own is not in the source
        WeightTransfer(named("jade"), mapping="order", select=before("jade")).apply(named("heath", "jade"))
    WeightTransfer(source.state_dict(), mapping="name").apply(model)
    assert holds(model, source, {name: name for name in ("grove", "birch", "opal")})


def test_places_of_a_sequence_are_no_names():
    source, model = (
        nn.Sequential(*(nn.Linear(2, 2) for _ in range(3))),
        nn.Sequential(*(nn.Linear(2, 2) for _ in "abc")),
    )
    WeightTransfer(source, mapping="order", select=by_index(1, 2)).apply(model)
    assert holds(model, source, {"1": "0", "2": "1"})


def test_by_structure_names_settle_layers_of_one_look_from_any_file(saved):
    source, model = named("opal", "birch", "grove"), named("grove", "opal", "birch")
    WeightTransfer(saved(source), mapping="structure").apply(model)
    assert holds(model, source, {name: name for name in ("opal", "birch", "grove")})


def test_by_structure_numbers_that_begin_elsewhere_go_by_order_and_are_refused_without_one(tmp_path):
    source, model = named("fc1", "fc2", "fc3"), named("fc0", "fc1", "fc2")
    torch.save(source.state_dict(), tmp_path / "net.pth")
    save_file(source.state_dict(), tmp_path / "net.safetensors")
    WeightTransfer(tmp_path / "net.pth", mapping="structure").apply(model)
    assert holds(model, source, {"fc0": "fc1", "fc1": "fc2", "fc2": "fc3"})
    with pytest.raises(TransferError, match=r"ambiguous: 'fc1' or 'fc2' or 'fc3'(?s:.*)does not keep"):
        WeightTransfer(tmp_path / "net.safetensors", mapping="structure").apply(model)
    known = ByStructure({"fc0": "fc1", "fc1": "fc2", "fc2": "fc3"})
    WeightTransfer(tmp_path / "net.safetensors", mapping=known).apply(model)
    assert holds(model, source, {"fc0": "fc1", "fc1": "fc2", "fc2": "fc3"})


def test_by_structure_a_namesake_elsewhere_casts_doubt(saved):
    """The only layer left to pair with looks right, and another is called so."""
    source = nn.ModuleDict({"flint": nn.Linear(3, 3), "nook": nn.Linear(3, 3), "heath": nn.Linear(3, 1)})
    model = nn.ModuleDict({"nook": nn.Linear(3, 3), "stone": nn.Linear(3, 3), "heath": nn.Linear(3, 1)})
    with pytest.raises(TransferError, match="ambiguous"):
        WeightTransfer(saved(source), mapping="structure").apply(model)
    heads = nn.ModuleDict({"body": nn.Linear(3, 3), "head": nn.Linear(3, 2), "extra": nn.Linear(3, 9)})
    old = nn.ModuleDict({"body": nn.Linear(3, 3), "head": nn.Linear(3, 9)})
    with pytest.raises(TransferError, match="extra.* ambiguous: 'head' or none"):
        WeightTransfer(saved(old), mapping="structure", select=before("head") | after("head")).apply(heads)


def test_by_structure_shapes_of_one_layer_alone_tell_without_order_or_names(saved):
    source = nn.ModuleDict({"b": nn.Linear(2, 3), "a": nn.BatchNorm1d(3), "c": nn.Linear(3, 4)})
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 4))
    WeightTransfer(saved(source), mapping="structure").apply(model)
    assert holds(model, source, {"0": "b", "1": "a", "2": "c"})


# An index means the same in a model and in its file.


class Positioned(nn.Module):
    """A module of nothing but a scratch buffer stands before the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Module()
        self.places.register_buffer("ids", torch.arange(3), persistent=False)
        self.fc1, self.fc2, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)


@pytest.mark.parametrize("mapping", ["order", "structure", "name"])
def test_scratch_buffers_shift_no_layer(mapping, tmp_path):
    source, model = Positioned(), Positioned()
    torch.save(source.state_dict(), tmp_path / "net.pth")
    file = transferkit.read_checkpoint(tmp_path / "net.pth")
    assert [(layer.index, layer.name) for layer in layers_of(model)] == [
        (layer.index, layer.name) for layer in file
    ]
    WeightTransfer(file, mapping=mapping, select=before("fc2")).apply(model)
    assert holds(model, source, {"fc1": "fc1"}) and not holds(model, source, {"fc2": "fc2"})


# Names as they are spelled, before what they may mean.


def test_a_name_with_brackets_is_a_name():
    source = nn.ModuleDict({"conv[0]": nn.Linear(2, 2), "conv0": nn.Linear(2, 2), "fc*": nn.Linear(2, 2)})
    model = nn.ModuleDict({name: nn.Linear(2, 2) for name in source})
    report = WeightTransfer(source, select=transferkit.by_name("conv[0]")).apply(model)
    assert report.copied == ("conv[0].weight", "conv[0].bias")
    WeightTransfer(source, mapping={"conv[0]": "conv0", "conv0": "conv[0]"}).apply(model)
    assert holds(model, source, {"conv[0]": "conv0", "conv0": "conv[0]"})
    inside = nn.ModuleDict({"block[1]": nn.Sequential(nn.Linear(2, 2))})
    with pytest.raises(transferkit.TransferKitError, match=r"write 'block\[\[\]1\]\.\*'"):
        WeightTransfer(inside, select=transferkit.by_name("block[1]")).apply(inside)
    assert len(WeightTransfer(inside, select=transferkit.by_name("block[[]1].*")).apply(inside).copied) == 2


@pytest.mark.parametrize("live", [False, True], ids=["file", "live"])
def test_what_is_called_exactly_so_comes_before_what_is_called_so_without_a_wrapper(live):
    source = nn.ModuleDict({"fc": nn.Linear(2, 2), "module": nn.ModuleDict({"fc": nn.Linear(2, 2)})})
    model = nn.ModuleDict({"module": nn.ModuleDict({"fc": nn.Linear(2, 2)})})
    WeightTransfer(source if live else source.state_dict()).apply(model)
    assert holds(model, source, {"module.fc": "module.fc"})
    alone, both = nn.ModuleDict({"module": nn.ModuleDict({"fc": nn.Linear(2, 2)})}), source
    with pytest.raises(TransferError, match=r"missing(?s:.*)  fc"):
        WeightTransfer(alone if live else alone.state_dict()).apply(both)


def test_a_checkpoint_of_a_wrapped_model_has_the_names_inside():
    model = nn.Sequential(nn.Linear(2, 2))
    for wrapped in (torch.compile(model, backend="eager"), nn.DataParallel(model)):
        checkpoint = transferkit.Checkpoint.from_model(wrapped)
        assert checkpoint.names == ("0",)
        assert "set aside the prefixes of wrappers" in checkpoint.notes[0]
        assert (
            WeightTransfer(checkpoint)
            .apply(torch.compile(nn.Sequential(nn.Linear(2, 2)), backend="eager"))
            .copied
        )
