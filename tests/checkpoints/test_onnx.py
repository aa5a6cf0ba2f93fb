"""ONNX: weights as the networks have them that were exported, under the names of their modules."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.checkpoints.files.make_onnx import filled
from tests.checkpoints.protobufs import graph, ints, message, model, node, tensor, varint
from tests.checkpoints.test_hostile import peak_memory, reset_peak
from transferkit.checkpoints import Checkpoint, read_checkpoint
from transferkit.errors import CheckpointError

FILES = Path(__file__).with_name("files")
W = np.arange(6, dtype="f4").reshape(2, 3)


def read(folder: Path, content: bytes, name: str = "model.onnx") -> Checkpoint:
    path = folder / name
    path.write_bytes(content)
    return read_checkpoint(path)


def weights(checkpoint: Checkpoint) -> dict[str, list[int]]:
    return {key: list(each.shape) for key, each in checkpoint.state_dict().items()}


@pytest.mark.parametrize("exporter", ["script", "dynamo"])
@pytest.mark.parametrize("name", ["sight", "words"])
def test_exported_networks_are_read_as_they_were(name: str, exporter: str) -> None:
    state = filled(name).state_dict()
    checkpoint = read_checkpoint(FILES / f"{name}_{exporter}.onnx")
    gone = {key for key in state if key.startswith("bn.") or key.endswith("num_batches_tracked")}
    found = checkpoint.state_dict()
    assert set(found) - {"conv.bias"} == set(state) - gone
    for key in set(found) - {"conv.bias", "conv.weight"}:
        assert torch.equal(found[key], state[key]), key
    assert "pytorch" in checkpoint.metadata["producer"]


@pytest.mark.parametrize("exporter", ["script", "dynamo"])
def test_what_nodes_say_of_layers_is_kept(exporter: str) -> None:
    checkpoint = read_checkpoint(FILES / f"sight_{exporter}.onnx")
    said = {layer.name: dict(layer.attributes) for layer in checkpoint}
    assert said["conv"].pop("batch_norm_folded") is True
    assert any("folded batch norms" in note and note.endswith(": conv") for note in checkpoint.notes)
    ones = {"stride": (1, 1), "dilation": (1, 1), "groups": 1}
    assert said["conv"] == ones | {"stride": (2, 2), "padding": (1, 1), "activation": "relu"}
    assert said["layers.0.0"] == ones | {"padding": (1, 0), "groups": 2, "activation": "relu6"}
    assert said["up"] == ones | {"stride": (2, 2), "padding": (1, 1), "output_padding": (1, 1)}
    assert said["after"] == {"eps": 1e-5, "momentum": 0.2}
    assert said["group"] == {"eps": 1e-4, "num_groups": 2}
    kinds = {layer.name: layer.kind for layer in checkpoint}
    assert [kinds[name] for name in ("conv", "after", "group", "slope", "head")] == [
        *("conv", "norm", "norm", "other", "linear")
    ]


@pytest.mark.parametrize("exporter", ["script", "dynamo"])
def test_a_folded_batch_norm_is_in_the_convolution(exporter: str) -> None:
    network = filled("sight")
    fused = torch.nn.utils.fusion.fuse_conv_bn_eval(network.conv, network.bn)  # type: ignore[arg-type]
    layer = read_checkpoint(FILES / f"sight_{exporter}.onnx")["conv"]
    torch.testing.assert_close(layer.tensors["weight"], fused.weight.detach())
    torch.testing.assert_close(layer.tensors["bias"], fused.bias.detach())


def test_layers_stand_in_the_order_of_the_graph_with_their_kinds() -> None:
    checkpoint = read_checkpoint(FILES / "words_script.onnx")
    assert [(layer.name, layer.kind) for layer in checkpoint][:6] == [
        ("table", "embedding"),
        ("norm", "norm"),
        ("attention", "attention"),
        ("attention.out_proj", "linear"),
        ("mlp.0", "linear"),
        ("mlp.2", "linear"),
    ]
    assert checkpoint["norm"].attributes == {"eps": 1e-6}
    assert checkpoint["mlp.0"].attributes == {"activation": "gelu"}
    assert checkpoint["lstm"].kind == "recurrent"


B = np.array([5, 7], "f4")
TURNED = "onnx::MatMul_1"  # a name that an exporter made up


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Gemm", ["x", "fc.weight", "fc.bias"], "y", transB=1)],
        [node("Gemm", ["x", TURNED, "fc.bias"], "y")],
        [node("MatMul", ["x", TURNED], "m"), node("Add", ["m", "fc.bias"], "y")],
        [node("MatMul", ["x", TURNED], "m"), node("Add", ["fc.bias", "m"], "y"), node("Relu", ["y"], "z")],
        [node("Transpose", ["fc.weight"], "t", perm=(1, 0)), node("Gemm", ["x", "t", "fc.bias"], "y")],
        [node("Identity", ["fc.weight"], "t"), node("Gemm", ["x", "t", "fc.bias"], "y", transB=1)],
        [
            node("MatMul", ["x", TURNED], "m"),
            node("Reshape", ["m", "s"], "r"),
            node("Add", ["r", "fc.bias"], "y"),
        ],
    ],
)
@pytest.mark.parametrize("producer", ["", "pytorch"])
def test_every_way_to_write_a_linear_layer_gives_its_weight_as_torchs(
    tmp_path: Path, nodes: list[bytes], producer: str
) -> None:
    arrays = {"fc.weight": W, TURNED: W.T.copy(), "fc.bias": B}
    used = [tensor(name, array) for name, array in arrays.items() if name.encode() in b"".join(nodes)]
    (layer,) = read(tmp_path, model(nodes, used, producer))
    assert (layer.name, layer.kind) == ("fc", "linear")
    assert torch.equal(layer.tensors["weight"], torch.from_numpy(W))
    assert torch.equal(layer.tensors["bias"], torch.from_numpy(B))


def test_a_parameter_that_torch_multiplies_as_it_is_stays_so(tmp_path: Path) -> None:
    content = model(
        [node("MatMul", ["x", "block.c_attn.weight"], "y")], [tensor("block.c_attn.weight", W)], "pytorch"
    )
    (layer,) = read(tmp_path, content)
    assert layer.shapes == {"weight": (2, 3)} and layer.attributes["transposed"]
    content = model([node("MatMul", ["x", "block.c_attn.weight"], "y")], [tensor("block.c_attn.weight", W)])
    assert weights(read(tmp_path, content)) == {"block.c_attn.weight": [3, 2]}


def test_weights_without_names_are_called_by_their_nodes(tmp_path: Path) -> None:
    kernel = np.ones((2, 3, 1, 1), "f4")
    nodes = [
        node("Conv", ["x", "onnx::Conv_1"], "a", "/layer1/layer1.0/conv1/Conv"),
        node("Conv", ["x", "onnx::Conv_2"], "b", "Conv_7"),
        node("MatMul", ["x", "12"], "c", "/head/MatMul"),
        node("MatMul", ["x", "13"], "d", "/head/MatMul_1"),
    ]
    arrays = {"onnx::Conv_1": kernel, "onnx::Conv_2": kernel, "12": W, "13": W + 1}
    found = read(tmp_path, model(nodes, [tensor(*each) for each in arrays.items()], "pytorch"))
    assert found.names == ("layer1.0.conv1", "Conv_7", "head", "head_1")


@pytest.mark.parametrize(("other", "folded"), [("fc.weight", True), ("7", False)])
def test_numbers_as_names_tell_of_folding_only_beside_names(tmp_path: Path, other: str, folded: bool) -> None:
    arrays = {"1": np.ones((2, 3, 1, 1), "f4"), "2": B, other: W}
    nodes = [node("Conv", ["x", "1", "2"], "a"), node("Gemm", ["a", other], "y", transB=1)]
    layer = read(tmp_path, model(nodes, [tensor(*each) for each in arrays.items()], "pytorch"))[0]
    assert layer.attributes.get("batch_norm_folded", False) == folded


def test_recurrent_layers_of_one_module_are_one_layer_and_others_are_not(tmp_path: Path) -> None:
    arrays = {
        f"onnx::W_{n}": np.full((1, 8, 1), n + 1, "f4") * W[0, 1:2]
        + W.max() * np.arange(8, dtype="f4")[:, None]
        for n in (1, 2)
    }
    nodes = [node("LSTM", ["x", f"onnx::W_{n}", f"onnx::W_{n}"], f"y{n}", "/lstm/LSTM") for n in (1, 2)]
    own = [tensor(*each) for each in arrays.items()]
    assert {"weight_ih_l0", "weight_ih_l1"} <= set(read(tmp_path, model(nodes, own, "pytorch"))["lstm"].tensors)
    assert read(tmp_path, model(nodes, own)).names == ("lstm", "lstm_1")


def test_a_module_that_is_called_twice_is_one_layer_and_tied_weights_are_two(tmp_path: Path) -> None:
    twice = [node("Gemm", ["x", "a.weight"], "b", "/a/Gemm", transB=1)]
    twice += [node("Gemm", ["b", "a.weight"], "c", "/a_1/Gemm", transB=1)]
    square = tensor("a.weight", np.ones((2, 2), "f4"))
    assert read(tmp_path, model(twice, [square], "pytorch")).names == ("a",)
    tied = [*twice, node("Gemm", ["c", "a.weight"], "d", "/head/Gemm", transB=1)]
    found = read(tmp_path, model(tied, [square], "pytorch"))
    assert found.names == ("a", "head") and found.shared == (("a.weight", "head.weight"),)


@pytest.mark.parametrize(
    ("told", "padding"),
    [
        ({"pads": (1, 2, 1, 2)}, (1, 2)),
        ({"pads": (0, 0, 1, 1)}, ((0, 1), (0, 1))),
        ({"auto_pad": "SAME_UPPER"}, "same"),
        ({"auto_pad": "SAME_LOWER"}, "same_lower"),
        ({"auto_pad": "VALID"}, (0, 0)),
        ({}, (0, 0)),
    ],
)
def test_padding_that_torch_cannot_have_is_told_as_it_is(tmp_path: Path, told: Any, padding: Any) -> None:
    nodes = [node("Conv", ["x", "c.weight"], "y", strides=(2, 1), dilations=(1, 3), group=3, **told)]
    (layer,) = read(tmp_path, model(nodes, [tensor("c.weight", np.ones((3, 1, 2, 2), "f4"))]))
    assert layer.attributes == {"stride": (2, 1), "padding": padding, "dilation": (1, 3), "groups": 3}


def test_a_map_with_channels_last_that_is_made_flat_is_told(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "c/kernel:0"], "a"),
        node("Transpose", ["a"], "t", perm=(0, 2, 3, 1)),
        node("Reshape", ["t", "s"], "r"),
        node("MatMul", ["r", "d/kernel:0"], "y"),
    ]
    arrays = {
        "c/kernel:0": np.ones((4, 1, 1, 1), "f4"),
        "d/kernel:0": np.ones((24, 2), "f4"),
        "s": ints(-1, 24),
    }
    found = read(tmp_path, model(nodes, [tensor(*each) for each in arrays.items()], "tf2onnx"))
    assert found["d"].attributes == {"flatten": (6, 1, 4)} and found["d"].shapes == {"weight": (2, 24)}


def recurrent(op: str, **told: Any) -> bytes:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    arrays = {"W": np.arange(gates * 2, dtype="f4").reshape(1, -1, 1), "R": np.ones((1, gates * 2, 2), "f4")}
    nodes = [node(op, ["x", "r/W", "r/R"], "y", hidden_size=2, **told)]
    return model(nodes, [tensor(f"r/{short}", array) for short, array in arrays.items()])


def test_gates_stand_in_torchs_order(tmp_path: Path) -> None:
    def first(content: bytes) -> list[float]:
        return read(tmp_path, content)["r"].tensors["weight_ih_l0"].flatten().tolist()

    assert first(recurrent("LSTM")) == [0, 1, 4, 5, 6, 7, 2, 3]
    assert first(recurrent("GRU", linear_before_reset=1)) == [2, 3, 0, 1, 4, 5]
    assert read(tmp_path, recurrent("RNN", activations=("Relu",)))["r"].attributes == {"nonlinearity": "relu"}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (recurrent("GRU"), "linear_before_reset 0"),
        (recurrent("LSTM", activations=("HardSigmoid", "Tanh", "Tanh")), "hardsigmoid"),
        (recurrent("LSTM", clip=1.0), "clip"),
    ],
)
def test_what_torch_would_compute_otherwise_keeps_its_own_names(
    tmp_path: Path, content: bytes, why: str
) -> None:
    found = read(tmp_path, content)
    assert set(found["r"].tensors) == {"W", "R"} and any(why in note for note in found.notes)


def test_constant_nodes_and_graphs_within_graphs_are_read(tmp_path: Path) -> None:
    constant = node("Constant", [], "w", value={5: tensor("", W), 20: 4})
    inner = graph([constant, node("MatMul", ["x", "w"], "y", "inner/MatMul")], [])
    outer = node("If", ["c"], "z", then_branch={6: inner, 20: 5})
    assert weights(read(tmp_path, model([outer], []))) == {"inner.weight": [3, 2]}


def test_what_is_not_read_is_named(tmp_path: Path) -> None:
    nodes = [
        node("Mul", ["x", "gain"], "a"),
        node("Reshape", ["a", "shape"], "b"),
        node("Add", ["b", "table"], "c"),
    ]
    arrays = {"gain": np.float32(2), "shape": ints(1, 3), "table": np.arange(3, dtype="f4")}
    found = read(tmp_path, model(nodes, [tensor(*each) for each in arrays.items()]))
    assert weights(found) == {"table": [3]}
    assert any(note.endswith("gain, shape") for note in found.notes) and any(
        "table" in note for note in found.notes
    )


TYPED = {"f4": (4, "f4"), "f8": (10, "f8"), "i4": (5, None), "i1": (5, None), "u1": (5, None), "b1": (5, None)}


@pytest.mark.parametrize("code", [*TYPED, "i8", "f2", "bf16"])
def test_every_number_is_read_raw_and_typed(tmp_path: Path, code: str) -> None:
    onnx = pytest.importorskip("onnx")
    values = torch.tensor([0, 1, -3, 100]) if code not in ("u1", "b1") else torch.tensor([0, 1, 1, 0])
    if code == "bf16":
        bits = values.bfloat16().view(torch.int16).numpy()
        raw = tensor("a.w", bits.astype("i4"), f2=16, f9=bits.tobytes())
        typed = tensor("a.w", bits.astype("i4"), f2=16, f9=None, f5=bits.astype("u2").astype("i8"))
    else:
        array = values.numpy().astype(code)
        number, width = TYPED.get(code, (7 if code == "i8" else 5, None))
        numbers = array if width else (array.view("u2") if code == "f2" else array).astype("i8")
        raw, typed = tensor("a.w", array), tensor("a.w", array, f9=None, **{f"f{number}": numbers})
    for each in (raw, typed):
        found = read(tmp_path, model([node("Identity", ["a.w"], "y")], [each], "pytorch")).state_dict()["a.w"]
        theirs = onnx.numpy_helper.to_array(onnx.TensorProto.FromString(each))
        assert found.tolist() == theirs.astype("f8").tolist() == values.tolist()


def test_large_tensors_are_read_at_every_alignment(tmp_path: Path) -> None:
    array = np.arange(1 << 18, dtype="f4")
    content = model([], [tensor("a" * n + ".weight", array + n) for n in range(1, 5)], "pytorch")
    for n in range(1, 5):
        found = read(tmp_path, content)["a" * n].tensors["weight"]
        assert found.data_ptr() % 4 == 0 and np.array_equal(found.numpy(), array + n)


# Data beside the file.


def external(location: str, offset: int = 0, length: int | None = 24) -> bytes:
    entries = {"location": location, "offset": str(offset)} | (
        {} if length is None else {"length": str(length)}
    )
    told = [message({1: key, 2: value}) for key, value in entries.items()]
    return model(
        [node("Gemm", ["x", "fc.weight"], "y", transB=1)], [tensor("fc.weight", W, f9=None, f13=told, f14=1)]
    )


def test_data_beside_the_file_is_mapped(tmp_path: Path) -> None:
    (tmp_path / "model.data").write_bytes(bytes(64) + W.tobytes())
    for length in (24, None):
        found = read(tmp_path, external("model.data", 64, length))
        assert torch.equal(found["fc"].tensors["weight"], torch.from_numpy(W))
        assert [path.name for path in found.files] == ["model.onnx", "model.data"]


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("../secret", "outside"),
        ("/etc/passwd", "outside"),
        ("sub/../../secret", "outside"),
        ("C:\\secret", "outside"),
        ("", "outside"),
        ("a\0b", "outside"),
        ("link", "is a link"),
        ("linked/secret", "is a link"),
        ("missing", "put it there"),
        ("folder", "put it there"),
    ],
)
def test_no_other_file_is_opened(tmp_path: Path, location: str, words: str) -> None:
    (tmp_path / "secret").write_bytes(W.tobytes())
    inside = tmp_path / "inside"
    (inside / "folder").mkdir(parents=True)
    (inside / "link").symlink_to(tmp_path / "secret")
    (inside / "linked").symlink_to(tmp_path)
    with pytest.raises(CheckpointError, match=words):
        read(inside, external(location))


@pytest.mark.parametrize(("offset", "length"), [(1, 24), (0, 25), (-1, 24), (1 << 62, 24), (0, -5)])
def test_data_that_is_not_there_is_refused(tmp_path: Path, offset: int, length: int) -> None:
    (tmp_path / "model.data").write_bytes(W.tobytes())
    with pytest.raises(CheckpointError, match=r"damaged: fc\.weight"):
        read(tmp_path, external("model.data", offset, length))


def test_a_byte_of_data_is_not_a_thousand_tensors(tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(bytes(64))
    told = [[message({1: "location", 2: "d"}), message({1: "offset", 2: str(n)})] for n in range(9)]
    many = [tensor(f"w.{n}", np.zeros(64 - n, "u1"), f9=None, f13=each, f14=1) for n, each in enumerate(told)]
    with pytest.raises(CheckpointError, match="overlap"):
        read(tmp_path, model([], many, "pytorch"))


# What is refused.


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (model([node("Relu", ["x"], "y")], []), "no weights, in 1 nodes: Relu"),
        (model([], [tensor("w", W), tensor("w", W)]), "two initializers are called 'w'"),
        (model([node("Relu", ["x"], "y")] * 2, [tensor("w", W)]), "two nodes make the value 'y'"),
        (
            model([node("QLinearConv", ["x", "s", "z", "k"], "y")], [tensor("k", W)]),
            r"not plain.*k \(QLinearConv\)",
        ),
        (model([node("DequantizeLinear", ["w", "s"], "y")], [tensor("w", W)]), r"w \(DequantizeLinear\)"),
        (model([], [], f15=message({1: tensor("s", W)})), r"s \(sparse\)"),
        (model([], [tensor("a.w", W, f2=8)], "pytorch"), "data type 8"),
        (model([], [tensor("a.w", W, f2=99)], "pytorch"), "data type 99"),
        (model([], [tensor("w", W, f1=ints(1 << 40, 1 << 40))], "pytorch"), "declares a shape"),
        (model([], [tensor("w", W, f1=ints(-2, -3))], "pytorch"), "declares a shape"),
        (model([], [tensor("w", W, f9=None, f4=np.ones(5, "f4"))], "pytorch"), "declares a shape"),
        (model([], [tensor("w", W, f3=b"")], "pytorch"), "data type"),
        (model([], [tensor("w" * 5000, W)], "pytorch"), "5,000 characters"),
        (model([], []) + message({7: graph([], [])}), "stands there twice"),
        (model([node("Gemm", ["x", "w"], "y")], [tensor("w", W)])[:-9], "damaged"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        read(tmp_path, content)


def test_values_that_make_each_other_end(tmp_path: Path) -> None:
    nodes = [
        node("Identity", ["b"], "a"),
        node("Transpose", ["a"], "b", perm=(1, 0)),
        node("MatMul", ["x", "b"], "y"),
    ]
    nodes += [
        node("Reshape", ["r"], "r"),
        node("MatMul", ["r", "w"], "z"),
        node("Transpose", ["t"], "t", perm=(0, 2, 1)),
    ]
    assert weights(read(tmp_path, model(nodes, [tensor("w", W)]))) == {"z.weight": [3, 2]}


def test_graphs_in_graphs_end(tmp_path: Path) -> None:
    inner = graph([], [])
    for _ in range(100):
        inner = graph([node("If", ["c"], "y", then_branch={6: inner, 20: 5})], [])
    with pytest.raises(CheckpointError, match="nested more than 32"):
        read(tmp_path, message({1: 8, 7: inner}))


def test_small_files_take_little_time_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transferkit.checkpoints._protobuf.MAX_FIELDS", 100_000)
    big = np.zeros((1, 4000, 1000), "f4")
    shared = [node("LSTM", ["x", "w", "r"], f"y{n}", f"lstm{n}") for n in range(200)]
    unnamed = [node("MatMul", ["x", f"{n}"], f"y{n}", "same") for n in range(3000)]
    repeated = [tensor("a.w" + end * 500 + "!", W) for end in ("/Read:0", ":0", ".w", "_a", "/read")]
    hostile = {
        "names that a pattern could read in many ways": model(
            [node("MatMul", ["x", "/read" * 90_000], "y")], repeated
        ),
        "one weight of many layers": model(shared, [tensor("w", big), tensor("r", big[:, :, :1])]),
        "one name of many layers": model(unnamed, [tensor(f"{n}", W) for n in range(3000)]),
        "empty fields": message({1: 8, 7: b"\x0a\x00" * 90_000}),
        "empty numbers": model([], [tensor("w", np.zeros(0, "f4"), f5=[b""] * 50_000)], "pytorch"),
    }
    for label, content in hostile.items():
        reset_peak()
        before, begun = peak_memory(), time.process_time()
        try:
            read(tmp_path, content)
        except CheckpointError as error:
            assert "too many fields" in str(error), label
        assert time.process_time() - begun < 10, label
        assert peak_memory() - before < 600, label


def test_the_content_tells_the_format(tmp_path: Path) -> None:
    content = model([node("MatMul", ["x", "w"], "y")], [tensor("w", W)])
    assert read(tmp_path, content, "model.pt").format == "onnx"
    for other in (b"version https://git-lfs.github.com/spec/v1", b"<html>", b"\x08", varint(1) * 50):
        with pytest.raises(CheckpointError):
            read(tmp_path, other)


@pytest.mark.parametrize("name", ["CartPole--model.onnx", "rv1126_mnist--mnist.onnx"])
def test_genuine_files_are_read_as_onnx_reads_them(shared: Path, name: str) -> None:
    onnx = pytest.importorskip("onnx")
    found = read_checkpoint(shared / "wild" / name).state_dict()
    theirs = onnx.load(shared / "wild" / name).graph.initializer
    floats = {each.name: onnx.numpy_helper.to_array(each) for each in theirs if each.data_type == 1}
    assert set(found) == set(floats)
    assert all(np.array_equal(found[name].numpy(), array) for name, array in floats.items())
