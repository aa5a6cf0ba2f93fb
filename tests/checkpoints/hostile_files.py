"""Write files that try to run code, to take memory or time, or to be what they are not.

Each comes as (name, suffix, content). The programs among them create a file, the canary, if any of them runs.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec

import numpy as np

File = tuple[str, str, bytes]

# A small assembler for pickles: each function returns the instructions that leave one value on the stack.


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def raw_bytes(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def integer(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def items(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def listed(*values: bytes) -> bytes:
    return b"](" + b"".join(values) + b"e"


def mapping(**values: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in values.items()) + b"u"


def called(function: bytes, *arguments: bytes) -> bytes:
    return function + items(*arguments) + b"R"


def program(value: bytes, protocol: int = 2) -> bytes:
    return bytes([0x80, protocol]) + value + b"."


# Names whose call is the end of a safe file, with the arguments that make it create the canary.


def dangerous_calls(canary: str) -> dict[str, tuple[str, str, tuple[bytes, ...]]]:
    shell, python = text(f"touch {canary}"), text(f"open({canary!r}, 'w').close()")
    return {
        "os.system": ("os", "system", (shell,)),
        "posix.system": ("posix", "system", (shell,)),
        "nt.system": ("nt", "system", (shell,)),
        "os.popen": ("os", "popen", (shell,)),
        "subprocess.Popen": ("subprocess", "Popen", (listed(text("touch"), text(canary)),)),
        "subprocess.check_output": ("subprocess", "check_output", (listed(text("touch"), text(canary)),)),
        "builtins.eval": ("builtins", "eval", (python,)),
        "builtins.exec": ("builtins", "exec", (python,)),
        "__builtin__.eval": ("__builtin__", "eval", (python,)),
        "builtins.open": ("builtins", "open", (text(canary), text("w"))),
        "io.open": ("io", "open", (text(canary), text("w"))),
        "builtins.__import__": ("builtins", "__import__", (text("antigravity"),)),
        "builtins.getattr": ("builtins", "getattr", (name("os", "sys"), text("exit"))),
        "importlib.import_module": ("importlib", "import_module", (text("this"),)),
        "runpy.run_path": ("runpy", "run_path", (text(canary),)),
        "pickle.loads": ("pickle", "loads", (raw_bytes(program(called(name("os", "system"), shell))),)),
        "torch.load": ("torch", "load", (text(canary),)),
        "torch.hub.load": ("torch.hub", "load", (text("a/b"), text("c"))),
        "torch.jit.load": ("torch.jit", "load", (text(canary),)),
        "torch.save": ("torch", "save", (integer(0), text(canary))),
        "torch.package": ("torch.package", "PackageImporter", (text(canary),)),
        "torch inductor": ("torch._inductor.codecache", "_reload_python_module", (text("k"), text(canary))),
        "numpy.save": ("numpy", "save", (text(canary), integer(0))),
        "numpy.load": ("numpy", "load", (text(canary),)),
        "numpy.memmap": ("numpy", "memmap", (text(canary), text("u1"), text("w+"))),
        "numpy.lib.npyio": ("numpy.lib.npyio", "DataSource", (text(canary),)),
        "functools.partial": ("functools", "partial", (name("os", "system"), shell)),
        "types.FunctionType": ("types", "FunctionType", (name("os", "system"), b"}")),
        "code.interact": ("code", "interact", ()),
        "pty.spawn": ("pty", "spawn", (shell,)),
        "ctypes.CDLL": ("ctypes", "CDLL", (text("libc.so.6"),)),
        "shutil.copyfile": ("shutil", "copyfile", (text("/etc/hostname"), text(canary))),
        "os.mkdir": ("os", "mkdir", (text(canary),)),
    }


def harmless_calls() -> dict[str, bytes]:
    """Return values that no program is made of, so that weights beside them are read."""
    odd = name("numpy", "matrix"), items(integer(0)), raw_bytes(b"b")
    return {
        "operator.attrgetter": called(name("operator", "attrgetter"), text("system")),
        "pathlib.Path": called(name("pathlib", "Path"), text("/etc/passwd")),
        "codecs": called(name("_codecs", "lookup"), text("rot13")),
        "a matrix": called(name("numpy.core.multiarray", "_reconstruct"), *odd),
        "dates": _array(_dtype("m8"), b"\0" * 8, (1,)),
        "an object of numpy": called(name("numpy.core.multiarray", "scalar"), _dtype("O8"), raw_bytes(b"N.")),
        "a class": name("torch.optim.adam", "Adam"),
        "a function": name("builtins", "len"),
        "an object": name("argparse", "Namespace") + b")\x81" + mapping(lr=integer(1)) + b"b",
        "an old object": b"(" + name("mine", "Args") + b"o" + mapping(__class__=name("mine", "Evil")) + b"b",
        "itself": name("mine", "Node") + b")\x81q\x02" + mapping(me=b"h\x02") + b"b",
    }


# Ways to make a call, or to smuggle one past a check.


def mechanisms(canary: str) -> Iterator[tuple[str, bytes]]:
    module, attribute, arguments = dangerous_calls(canary)["os.system"]
    (shell,) = arguments
    system = name(module, attribute)
    short = b"\x8c\x02os" + b"\x8c\x06system"
    yield "stack_global", short + b"\x93" + items(shell) + b"R"
    yield "stack_global dotted", b"\x8c\x08builtins" + b"\x8c\x0d__import__.os" + b"\x93" + items(shell) + b"R"
    yield "stack_global from the memo", b"\x8c\x02os\x94\x8c\x06system\x94h\x00h\x01\x93" + items(shell) + b"R"
    yield "newobj", system + items(shell) + b"\x81"
    yield "newobj_ex", system + items(shell) + b"}\x92"
    yield "newobj_ex with keywords", system + b")" + mapping(command=shell) + b"\x92"
    yield "build", called(name("builtins", "object")) + mapping(__setstate__=system) + b"b" + shell + b"b"
    yield "build on a dict", b"}" + mapping(__class__=system) + b"b"
    yield "build on a list", b"]" + shell + b"b"
    yield "inst", b"(" + shell + b"ios\nsystem\n"
    yield "obj", b"(" + system + shell + b"o"
    yield "ext1", b"\x82\x01" + items(shell) + b"R"
    yield "ext2", b"\x83\x01\x00" + items(shell) + b"R"
    yield "ext4", b"\x84\x01\x00\x00\x00" + items(shell) + b"R"
    yield "persistent id of protocol 0", b"Pos.system\n"
    yield "persistent id", items(text("module"), system, shell) + b"Q"
    yield (
        "persistent storage of a wrong class",
        items(text("storage"), system, text("0"), text("cpu"), integer(1)) + b"Q",
    )
    yield (
        "a call of a call",
        called(called(name("builtins", "getattr"), name("os", "path"), text("join")), shell),
    )
    yield "a call of a string", called(text("os.system"), shell)
    yield "a call of a number", called(integer(7), shell)
    yield "as a dict key", b"}" + called(system, shell) + integer(1) + b"s"
    yield "in a tuple in a list", listed(items(items(called(system, shell))))
    yield "hidden behind a pop", called(system, shell) + b"0" + b"}"
    yield "hidden behind pop_mark", b"(" + called(system, shell) + b"1" + b"}"
    yield "through the memo", system + b"q\x05" + b"0" + b"h\x05" + items(shell) + b"R"
    yield "appended to a call", called(name("collections", "deque")) + b"(" + called(system, shell) + b"e"
    yield (
        "as the state of an array",
        called(name("numpy", "ndarray"), items(integer(1))) + called(system, shell) + b"b",
    )
    yield "as the dtype of an array", _array(called(system, shell), b"\0" * 4, (1,))
    yield "as the data of an array", _array(_dtype("f4"), called(system, shell), (1,), packed=False)
    yield "as an OrderedDict's pairs", called(name("collections", "OrderedDict"), called(system, shell))
    yield "codecs.encode to another codec", called(name("_codecs", "encode"), text("x"), text("rot13"))
    yield "next_buffer", b"\x97"
    yield "readonly_buffer of nothing", b"\x98"


# Numpy arrays that are not what they say.


def _dtype(code: str, order: str = "<", call: bytes | None = None) -> bytes:
    made = call or called(name("numpy", "dtype"), text(code), b"\x89", b"\x88")
    return made + items(integer(3), text(order), b"N", b"N", b"N", integer(-1), integer(-1), integer(0)) + b"b"


def _array(dtype: bytes, data: bytes, shape: tuple[int, ...], *, packed: bool = True) -> bytes:
    maker = called(
        name("numpy.core.multiarray", "_reconstruct"),
        name("numpy", "ndarray"),
        items(integer(0)),
        raw_bytes(b"b"),
    )
    content = raw_bytes(data) if packed else data
    return maker + items(integer(1), items(*map(integer, shape)), dtype, b"\x89", content) + b"b"


def arrays() -> Iterator[tuple[str, bytes]]:
    for code in (
        "O8",
        "O",
        "V8",
        "U5",
        "S5",
        "M8[x]",
        "f16",
        "c32",
        "f3",
        "i7",
        "(2,)f4",
        "f4,f4",
        "",
        "\x00",
    ):
        yield f"dtype {code!r}", _array(_dtype(code), b"\0" * 8, (1,))
    for order in ("O", "", "<<", "\x00"):
        yield f"byte order {order!r}", _array(_dtype("f4", order), b"\0" * 4, (1,))
    for shape in ((10**9,), (-1,), (2**32, 2**32), (2**62, 4), (0, -1), (3,), (2**63,), (1,) * 100):
        yield f"shape {str(shape)[:30]}", _array(_dtype("f4"), b"\0" * (8 if len(shape) == 100 else 4), shape)
    yield "shape of strings", _array(_dtype("f4"), b"\0" * 4, ())[:-1] + items(text("a")) + b"b"
    yield (
        "no state",
        called(
            name("numpy.core.multiarray", "_reconstruct"),
            name("numpy", "ndarray"),
            items(integer(0)),
            raw_bytes(b"b"),
        ),
    )
    yield "short scalar", called(name("numpy.core.multiarray", "scalar"), _dtype("f8"), raw_bytes(b"\0"))
    yield (
        "frombuffer too short",
        called(
            name("numpy.core.numeric", "_frombuffer"),
            raw_bytes(b"\0"),
            _dtype("f8"),
            items(integer(99)),
            text("C"),
        ),
    )
    yield "bytearray of a number", called(name("builtins", "bytearray"), integer(10**12))
    yield "set of a number", called(name("builtins", "set"), integer(10))
    yield (
        "one buffer under ten thousand arrays",
        raw_bytes(b"\0" * 100_000)
        + b"q\x01"
        + b"0"
        + listed(*[_array(_dtype("f4"), b"h\x01", (25_000,), packed=False)] * 10_000),
    )


# Sizes and graphs.


def bombs() -> Iterator[tuple[str, bytes]]:
    for code, size in ((b"B", 4), (b"T", 4), (b"X", 4), (b"\x8b", 4), (b"\x8e", 8), (b"\x8d", 8), (b"\x96", 8)):
        yield f"a length of 2^31 - 1 for {code!r}", code + (2**31 - 1).to_bytes(size, "little") + b"abc"
    yield "a negative length", b"T\xff\xff\xff\xffabc"
    yield "a negative length of a number", b"\x8b\xff\xff\xff\xffabc"
    yield "a number of a hundred thousand digits", b"I" + b"9" * 100_000 + b"\n"
    yield "a number of a million bytes", b"\x8b" + struct.pack("<I", 10**6) + b"\x7f" * 10**6
    yield "lists in lists", b"]" * 20_000 + b"a" * 19_999
    yield "tuples in tuples", b")" + b"\x85" * 20_000
    yield "dicts in dicts", b"}" + (b"K\x01}" * 20_000) + b"s" * 20_000
    yield "marks", b"(" * 200_000
    yield "a list in itself", b"]q\x00h\x00a"
    yield "a dict in itself", b"}q\x00K\x01h\x00s"
    yield "a tuple in itself by way of a list", b"]q\x00h\x00\x85a"
    yield (
        "a billion laughs",
        b"]q\x00" + b"".join(b"](" + b"h%c" % n * 10 + b"eq%c" % (n + 1) for n in range(12)),
    )
    yield (
        "a dict key that takes forever to hash",
        b")q\x00" + b"".join(b"h%c" % n * 2 + b"\x86q%c" % (n + 1) for n in range(60)) + b"}h\x3cK\x01s",
    )
    yield "three million instructions", b"N0" * 1_500_000 + b"}"
    yield "a million lists", b"(" + b"]" * 1_000_000 + b"l"
    yield "a list as a dict key", b"}]K\x01s"
    yield "an odd number of keys and values", b"}(K\x01u"
    yield "an unknown instruction", b"\xff"
    yield "a memo that is not there", b"h\x07"
    yield "text that is not utf-8", b"X\x02\x00\x00\x00\xff\xfe"


def broken_programs() -> Iterator[File]:
    yield "an empty stack", ".pkl", b"\x80\x02}0."
    yield "two values left", ".pkl", b"\x80\x02}}."
    yield "no end", ".pkl", b"\x80\x02}NNN"
    yield "a second pickle in the place of the first", ".pkl", b"\x80\x02}(."


# The formats that carry a pickle.


def torch_zip(
    pickle: bytes, extra: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED
) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickle)
        for member, content in {
            "version": b"3\n",
            "byteorder": b"little",
            "data/0": b"\0" * 16,
            **(extra or {}),
        }.items():
            archive.writestr(f"archive/{member}", content)
    return buffer.getvalue()


def torch_row(saved: bytes, keys: bytes = b"]") -> bytes:
    magic = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
    machine = program(mapping(little_endian=b"\x88", protocol_version=integer(1001)))
    return magic + program(integer(1001)) + machine + saved + program(keys)


def torch_tar(
    saved: bytes, storages: bytes = program(integer(0)) + program(b"]"), tensors: bytes = program(integer(0))
) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for member, content in (("storages", storages), ("tensors", tensors), ("pickle", saved)):
            header = tarfile.TarInfo(member)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return buffer.getvalue()


def torch_tar_of(arrays: dict[str, np.ndarray]) -> bytes:
    """Return a good tar archive of float32 arrays, as torch wrote them in its first year."""
    storages, tensors, entries = program(integer(len(arrays))), program(integer(len(arrays))), b""
    for number, (key, array) in enumerate(arrays.items()):
        storages += program(items(integer(number), text("cpu"), name("torch", "FloatStorage")))
        storages += struct.pack("<q", array.size) + array.astype("<f4").tobytes()
        tensors += program(items(integer(100 + number), integer(number), name("torch", "FloatTensor")))
        strides = [stride // 4 for stride in array.strides]
        tensors += struct.pack(f"<ii{array.ndim}q{array.ndim}qq", array.ndim, 0, *array.shape, *strides, 0)
        entries += text(key) + integer(100 + number) + b"Q"
    return torch_tar(program(b"}(" + entries + b"u"), storages + program(b"]"), tensors)


def storage(kind: str = "FloatStorage", key: str = "0", count: int = 4) -> bytes:
    return items(text("storage"), name("torch", kind), text(key), text("cpu"), integer(count)) + b"Q"


def tensor(source: bytes, shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    return called(
        name("torch._utils", "_rebuild_tensor_v2"),
        *(source, integer(offset), items(*map(integer, shape)), items(*map(integer, stride))),
        *(b"\x89", called(name("collections", "OrderedDict"))),
    )


def in_every_format(label: str, value: bytes) -> Iterator[File]:
    """Put a value beside weights that would be read without it, so that it alone is what is refused."""
    linear = mapping(
        type=text("neon.layers.layer.Linear"),
        config=b"}",
        params=mapping(W=_array(_dtype("f4"), b"\0" * 4, (1, 1))),
    )
    model = mapping(type=text("neon.layers.container.Sequential"), config=mapping(layers=listed(linear)))
    weights = mapping(weight=tensor(storage(), (2, 2), (2, 1)))
    yield f"neon: {label}", ".prm", program(mapping(model=model, epoch_index=value))
    yield f"pickle: {label}", ".pkl", program(value)
    yield f"torch zip: {label}", ".pt", torch_zip(program(mapping(state_dict=weights, epoch=value)))
    row = torch_row(program(mapping(state_dict=weights, epoch=value)), listed(text("0")))
    yield f"torch row: {label}", ".pth", row + struct.pack("<q", 4) + b"\0" * 16


def in_archives(label: str, value: bytes) -> Iterator[File]:
    """Put a value beside weights into the files that hold other files, and into those that hold pickles of their own."""
    weights = program(mapping(state_dict=mapping(weight=_array(_dtype("f4"), b"\0" * 4, (1,))), epoch=value))
    inner = torch_zip(
        program(mapping(state_dict=mapping(weight=tensor(storage(), (2, 2), (2, 1))), epoch=value))
    )
    header = "{'descr': '|O', 'fortran_order': False, 'shape': (), }".ljust(117) + "\n"
    yield (
        f"npy: {label}",
        ".npy",
        b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + weights,
    )
    yield f"zlib: {label}", ".joblib", zlib.compress(weights)
    yield f"gzip: {label}", ".pt.gz", gzip.compress(inner, 1)
    yield f"zip: {label}", ".zip", _zip({"model.pt": inner})
    yield f"zip in zip in zip: {label}", ".zip", _zip({"a.zip": _zip({"a.zip": _zip({"model.pt": inner})})})
    yield f"tar: {label}", ".tar", plain_tar({"model.pkl": weights})
    yield f"stable-baselines3: {label}", ".zip", _zip({"data": b"{}", "policy.pth": inner})
    script = torch_zip(
        program(name("__torch__", "Net") + b")\x81" + mapping(w=tensor(storage(), (4,), (1,)), x=value) + b"b"),
        {"constants.pkl": program(b")"), "code/__torch__.py": b"import os"},
    )
    yield f"TorchScript: {label}", ".pt", script
    wrapper = name("joblib.numpy_pickle", "NumpyArrayWrapper") + b")\x81"
    state = mapping(shape=items(integer(1)), dtype=_dtype("O8"), order=text("C"))
    objects = wrapper + state + b"b" + program(listed(value))
    yield (
        f"joblib: {label}",
        ".joblib",
        program(mapping(weight=_array(_dtype("f4"), b"\0" * 4, (1,)), x=objects)),
    )
    bytes_of = called(name("torch.storage", "_load_from_bytes"), raw_bytes(torch_row(program(value))))
    yield f"in bytes: {label}", ".pkl", program(mapping(weight=tensor(bytes_of, (4,), (1,))))


def plain_tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member, content in members.items():
            header = tarfile.TarInfo(member)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return buffer.getvalue()


def torch_tricks() -> Iterator[File]:
    good = tensor(storage(), (4,), (1,))
    yield (
        "a storage larger than its record",
        ".pt",
        torch_zip(program(mapping(w=tensor(storage(count=10**12), (4,), (1,))))),
    )
    yield (
        "a storage of negative size",
        ".pt",
        torch_zip(program(mapping(w=tensor(storage(count=-1), (4,), (1,))))),
    )
    yield (
        "a storage that is not there",
        ".pt",
        torch_zip(program(mapping(w=tensor(storage(key="9"), (4,), (1,))))),
    )
    yield (
        "a tensor of 10^12 elements over four",
        ".pt",
        torch_zip(program(mapping(w=tensor(storage(), (10**12,), (0,))))),
    )
    yield (
        "a tensor beyond its storage",
        ".pt",
        torch_zip(program(mapping(w=tensor(storage(), (4,), (1,), 10**6)))),
    )
    yield "a tensor of negative size", ".pt", torch_zip(program(mapping(w=tensor(storage(), (-4,), (1,)))))
    yield "a stride of 2^60", ".pt", torch_zip(program(mapping(w=tensor(storage(), (2, 2), (2**60, 1)))))
    yield (
        "a bytearray of 10^12",
        ".pt",
        torch_zip(program(mapping(w=good, x=called(name("builtins", "bytearray"), integer(10**12))))),
    )
    yield (
        "a FloatTensor of 10^12",
        ".pt",
        torch_zip(program(mapping(w=good, x=called(name("torch", "FloatTensor"), integer(10**12))))),
    )
    yield (
        "a meta tensor",
        ".pt",
        torch_zip(
            program(
                mapping(
                    **{
                        "a.w": called(
                            name("torch._utils", "_rebuild_meta_tensor_no_storage"),
                            name("torch", "float32"),
                            items(integer(4)),
                            items(integer(1)),
                            b"\x89",
                        )
                    }
                )
            )
        ),
    )
    yield (
        "a compressed pickle",
        ".pt",
        torch_zip(program(mapping(w=good, pad=raw_bytes(b"\0" * 10**7))), compression=zipfile.ZIP_DEFLATED),
    )
    yield (
        "an exported program",
        ".pt2",
        torch_zip(program(mapping(w=good)), {"data/weights/model_weights_config.json": b"{}"}),
    )
    yield "a zip without a directory", ".pt", torch_zip(program(mapping(w=good)))[:-40]
    yield "protocol 4", ".pt", torch_zip(program(b"\x95\x01\0\0\0\0\0\0\0}\x94", 4))
    yield "no tensors", ".pt", torch_zip(program(b"}"))
    yield (
        "row: a storage larger than the file",
        ".pth",
        torch_row(program(mapping(w=tensor(storage(count=10**12), (4,), (1,)))), listed(text("0")))
        + struct.pack("<q", 10**12),
    )
    yield (
        "row: a storage that is cut off",
        ".pth",
        torch_row(program(mapping(w=good)), listed(text("0"))) + struct.pack("<q", 4) + b"\0",
    )
    yield "row: storages that never come", ".pth", torch_row(program(mapping(w=good)))
    yield (
        "row: a tensor beyond its storage",
        ".pth",
        torch_row(program(mapping(w=tensor(storage(), (5,), (1,)))), listed(text("0")))
        + struct.pack("<q", 4)
        + b"\0" * 16,
    )
    yield (
        "row: a negative offset",
        ".pth",
        torch_row(program(mapping(w=tensor(storage(), (1,), (1,), -8))), listed(text("0")))
        + struct.pack("<q", 4)
        + b"\0" * 16,
    )
    yield (
        "row: a whole module",
        ".pth",
        torch_row(
            program(
                mapping(m=items(text("module"), name("torch.nn.modules.linear", "Linear"), b"N", b"N") + b"Q")
            )
        ),
    )
    yield "tar: a call", ".tar", torch_tar(program(called(name("os", "getpid"))))
    yield "tar: a reference to nothing", ".tar", torch_tar(program(mapping(w=integer(5) + b"Q")))
    yield "tar: no parts", ".tar", torch_tar(program(b"}"))[:512]


def archive_tricks(canary: str) -> Iterator[File]:
    payload = program(called(name("os", "system"), text(f"touch {canary}")))
    twice = io.BytesIO()
    with zipfile.ZipFile(twice, "w") as archive:
        archive.writestr("archive/data.pkl", program(b"}"))
        archive.writestr("archive/data.pkX", payload)
    yield "two members of one name", ".pt", twice.getvalue().replace(b"data.pkX", b"data.pkl")
    encrypted = bytearray(torch_zip(program(b"}")))
    encrypted[encrypted.rfind(b"PK\x01\x02") + 8] |= 1
    yield "an encrypted member", ".pt", bytes(encrypted)
    huge = bytearray(torch_zip(program(b"}")))
    for place in (20, 24):
        struct.pack_into("<I", huge, huge.find(b"PK\x01\x02") + place, 2**31)
    yield "a member larger than the file", ".pt", bytes(huge)
    yield "only a pickle", ".zip", _zip({"weights.pkl": payload})
    yield "an object array", ".npz", _npz({"a": np.array([{}], dtype=object)})
    yield "a structured array", ".npz", _npz({"a": np.zeros(2, dtype=[("x", "f4")])})
    yield "dates", ".npz", _npz({"a": np.zeros(2, dtype="M8[s]")})
    header = b"\x93NUMPY\x01\x00\x76\x00"
    for label, description in {
        "a shape of 10^12": "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }",
        "a negative shape": "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
        "code for a header": f"__import__('os').system('touch {canary}')",
        "an object dtype": "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        "nested tuples": "(" * 50 + ")" * 50,
        "no header": "",
    }.items():
        yield (
            f"npz: {label}",
            ".npz",
            _zip({"a.npy": header + description.encode().ljust(118)[:118] + b"\0" * 4}),
        )
    yield "npz: a bomb", ".npz", _zip({"a.npy": b"\0" * (1 << 27)}, zipfile.ZIP_DEFLATED)
    yield (
        "npz: a bomb in many parts",
        ".npz",
        _zip({f"{n}.npy": b"\0" * (1 << 23) for n in range(16)}, zipfile.ZIP_DEFLATED),
    )
    yield "gzip: a call", ".prm.gz", gzip.compress(payload)
    yield "gzip: a bomb", ".gz", gzip.compress(b"\x80\x02}" + b"N" * (1 << 27), 1)
    yield "gzip: cut off", ".gz", gzip.compress(program(b"}"))[:-6]
    yield "gzip: something else", ".gz", gzip.compress(b"hello")


def decoys() -> Iterator[File]:
    """Write archives of which two readers see different things: one is checked, and another one is loaded."""
    good = program(mapping(w=tensor(storage(), (4,), (1,))))
    evil = {
        "memory that is never filled": called(name("builtins", "bytearray"), integer(3 * 10**9)),
        "another's memory": called(name("torch", "FloatTensor"), integer(1000)),
    }
    for label, value in evil.items():
        bad = program(mapping(w=tensor(storage(), (4,), (1,)), x=value))
        for place in ("archive/x/data.pkl", "archive/Data.pkl", "archive/DATA.PKL", "x/data.pkl", "data.pkl"):
            for one, other in ((good, bad), (bad, good)):
                yield f"{label}, with {place}", ".pt", _archive({place: one, "archive/data.pkl": other})
    yield "only Data.pkl", ".pt", _archive({"archive/Data.pkl": good})
    yield "storages of two cases", ".pt", _archive({"archive/data.pkl": good, "archive/DATA/0": b"\1" * 16})
    moved = bytearray(_archive({"archive/data.pkl": good}))
    place = moved.find(b"archive/data/0") - 30
    struct.pack_into("<H", moved, place + 28, 0xFFFF)  # its local header says that it begins beyond the file
    yield "a storage somewhere else", ".pt", bytes(moved)
    renamed = _archive({"archive/data.pkl": good})
    yield "a local header of another name", ".pt", renamed.replace(b"archive/data.pkl", b"archive/data.pkX", 1)


def _archive(first: dict[str, bytes]) -> bytes:
    return _zip(
        {"archive/version": b"3\n", **first, "archive/byteorder": b"little", "archive/data/0": b"\0" * 16}
    )


def twins() -> Iterator[File]:
    """Write files in which two tensors go by one name, one of which would be lost."""
    array = _array(_dtype("f4"), b"\0" * 4, (1,))
    yield "a number and its digits", ".pkl", program(b"}(" + integer(1) + array + text("1") + array + b"u")
    yield "bytes and text", ".pkl", program(b"}(" + raw_bytes(b"a") + array + text("a") + array + b"u")
    weight = tensor(storage(), (4,), (1,))
    pairs = b"}(" + raw_bytes(b"w") + weight + text("w") + weight + b"u"
    yield (
        "row: bytes and text",
        ".pth",
        torch_row(program(pairs), listed(text("0"))) + struct.pack("<q", 4) + b"\0" * 16,
    )
    entry = b'"a":{"dtype":"%s","shape":[1],"data_offsets":[0,4]}'
    header = b"{" + entry % b"F32" + b"," + entry % b"I32" + b"}"
    yield "safetensors", ".safetensors", struct.pack("<Q", len(header)) + header + b"\0" * 4
    yield "an index", ".index.json", b'{"weight_map": {"a.w": "x.bin", "a.w": "y.bin"}}'


COLLIDING = 2**61 - 1  # every multiple of it has the hash 0


def _many(count: int, value: bytes = b"") -> bytes:
    return b"".join(b"\x8a\x0a" + (n * COLLIDING).to_bytes(10, "little") + value for n in range(1, count))


def repeated() -> Iterator[File]:
    """Write small files that would be huge, or take forever, if each part were made anew wherever it is named."""
    long, weight = "a" * 160_000, tensor(storage(), (4,), (1,))
    encode = name("_codecs", "encode") + b"q\1" + b"0" + items(text(long), text("latin1")) + b"q\2" + b"0"
    yield from in_every_format(
        "one string in 20,000 places", text(long) + b"q\1" + b"0(" + b"h\1" * 20_000 + b"l"
    )
    yield from in_every_format(
        "the same bytes", raw_bytes(long.encode()) + b"q\1" + b"0(" + b"h\1" * 20_000 + b"l"
    )
    yield from in_every_format("short bytes", raw_bytes(b"a" * 4000) + b"q\1" + b"0(" + b"h\1" * 200_000 + b"l")
    yield from in_every_format("a call made again", encode + b"(" + b"h\1h\2R" * 20_000 + b"l")
    yield from in_every_format(
        "a long tuple as a key", b"(" + b"N" * 50_000 + b"tq\1" + b"0}(" + b"h\1N" * 20_000 + b"u"
    )
    yield from in_every_format(
        "empty dicts", b"}(" + b"".join(text(f"a{n}") + b"}" for n in range(20_000)) + b"u"
    )
    yield from in_every_format("numbers of one hash", b"}(" + _many(20_000, b"N") + b"u")
    yield "numbers one by one", ".pkl", program(b"}" + _many(12_000, b"Ns"))
    yield from in_every_format(
        "pairs of one hash", called(name("collections", "OrderedDict"), b"](" + _many(40_000, b"N\x86") + b"e")
    )
    yield from in_every_format(
        "memos of one hash", b"N" + b"".join(b"p%d\n" % (n * COLLIDING) for n in range(1, 20_000))
    )
    ids = mapping(
        state=b"}(" + _many(5000, b"}") + b"u",
        param_groups=listed(mapping(params=b"](" + _many(100_000) + b"e")),
    )
    yield (
        "an optimizer of one hash",
        ".pt",
        torch_zip(program(mapping(model=mapping(**{"a.w": weight}), optimizer=ids))),
    )
    names = b"".join(b"h\0" + b"\x8c\x06" + b"n%05d" % n + b"\x93" for n in range(20_000))
    yield "names to import of one module", ".pkl", b"\x80\4" + text(long) + b"\x94(" + names + b"l."
    view = (
        items(storage(), integer(0), items(integer(4_000_000)), items(integer(0)), b"\x89", b"N")
        + b"q\3"
        + b"0"
    )
    keys = b"".join(text(f"{n}.w") + b"h\1h\3R" for n in range(1000))
    rebuild = name("torch._utils", "_rebuild_tensor_v2") + b"q\1" + b"0"
    yield "tensors that repeat four numbers", ".pt", torch_zip(program(rebuild + view + b"}(" + keys + b"u"))
    row = torch_row(program(mapping(w=tensor(storage(), (10**12,), (0,)))), listed(text("0")))
    yield "10^12 elements in a row", ".pth", row + struct.pack("<q", 4) + b"\0" * 16
    state = items(storage(count=0), integer(0), items(integer(10**9)), items(integer(1)))
    grown = tensor(storage(count=0), (0,), (1,)) + state + b"b"
    yield "a tensor that is to grow its storage", ".pt", torch_zip(program(mapping(w=weight, x=grown)))
    layer = {"type": "Linear", "config": {"name": "fc"}, "params": {"W": np.ones((100, 1000), "f4")}}
    yield "one neon layer in 50,000 places", ".prm", _neon([layer] * 50_000)
    yield "one array in 5,000 neon layers", ".prm", _neon([{**layer} for _ in range(5000)])
    yield "neon names", ".prm", _neon([{"type": "Linear", "config": {"name": long}, "params": layer["params"]}])
    chain = ["a"] * 3000 + ["a" + f"_{n}" * k for n in range(3) for k in range(60)] * 10
    yield (
        "neon names that follow each other",
        ".prm",
        _neon([{**layer, "config": {"name": each}} for each in chain]),
    )
    yield (
        "gzip of a thousand times",
        ".gz",
        gzip.compress(b"\x80\2B" + struct.pack("<I", 10**9) + b"\0" * 4 * 10**8, 1),
    )
    yield "gzip with padding", ".gz", gzip.compress(program(b"}")) + b"\0" * 10**7
    yield "gzip in a hundred thousand parts", ".gz", gzip.compress(program(b"}")) + gzip.compress(b"") * 100_000
    yield "a zip that is a list of names", ".zip", _zip({str(n): b"" for n in range(60_000)})
    header = json.dumps(
        {f"{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(210_000)}
    ).encode()
    yield "tensors of nothing", ".safetensors", struct.pack("<Q", len(header)) + header


def _neon(layers: list[dict[str, object]]) -> bytes:
    return pickle.dumps({"model": {"type": "neon.Sequential", "config": {"layers": layers}}}, 2)


def header_tricks() -> Iterator[File]:
    def file(header: object, data: bytes = b"\0" * 16, length: int | None = None) -> bytes:
        raw = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(raw) if length is None else length) + raw + data

    good = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    yield "a header of 2^60 bytes", ".safetensors", file({"a": good}, length=2**60)
    yield "a header of 50 MB that is not there", ".safetensors", file({"a": good}, length=5 * 10**7)
    yield "a shape of 10^12", ".safetensors", file({"a": good | {"shape": [10**12]}})
    yield "offsets beyond the file", ".safetensors", file({"a": good | {"data_offsets": [0, 10**12]}})
    yield "offsets backwards", ".safetensors", file({"a": good | {"data_offsets": [16, 0]}})
    yield "overlapping tensors", ".safetensors", file({"a": good, "b": good})
    yield "a hole", ".safetensors", file({"a": good | {"data_offsets": [8, 24]}}, b"\0" * 24)
    yield "an unknown dtype", ".safetensors", file({"a": good | {"dtype": "PICKLE"}})
    yield "no JSON", ".safetensors", file(b"{" + b"[" * 1000)
    yield (
        "JSON nested a hundred thousand deep",
        ".safetensors",
        file(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    )
    yield "a list for a header", ".safetensors", file(b"[]")
    yield "negative shapes", ".safetensors", file({"a": good | {"shape": [-2, -2]}})
    for label, target in {
        "a parent": "../x.bin",
        "an absolute path": "/etc/passwd",
        "a folder": "..",
        "nothing": "",
    }.items():
        yield (
            f"an index that points to {label}",
            ".index.json",
            json.dumps({"weight_map": {"a.w": target}}).encode(),
        )
    yield "an index without a map", ".index.json", b"{}"
    yield "an index of numbers", ".index.json", b'{"weight_map": {"a": 1}}'
    yield "an index nested deeply", ".index.json", b"[" * 100_000
    yield "an index of missing shards", ".index.json", b'{"weight_map": {"a.w": "not-there.bin"}}'


def look_alikes() -> Iterator[File]:
    yield "nothing", ".pt", b""
    yield "a web page", ".pth", b"<!DOCTYPE html><html><body>404</body></html>"
    yield "a git-lfs pointer", ".bin", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    if find_spec("h5py"):
        yield "HDF5", ".h5", b"\x89HDF\r\n\x1a\n" + b"\0" * 100
    yield "GGUF", ".gguf", b"GGUF\x03\0\0\0" + b"\0" * 100
    yield "a Python script", ".pt", b"import os\nos.system('true')\n"
    yield "a single array", ".npy", b"\x93NUMPY\x01\x00" + b" " * 120
    yield "zeros", ".safetensors", b"\0" * 1000
    yield "a shell script", ".ckpt", b"#!/bin/sh\ntrue\n"


def hostile_groups(canary: str) -> dict[str, Callable[[], Iterator[File]]]:
    """Return what makes the hostile files, by what they try."""

    def inside(values: Iterable[tuple[str, bytes]]) -> Iterator[File]:
        for label, value in values:
            yield from in_archives(label, value)

    def everywhere(values: Iterable[tuple[str, bytes]]) -> Iterator[File]:
        for label, value in values:
            yield from in_every_format(label, value)

    calls = dangerous_calls(canary).items()
    return {
        "calls": lambda: everywhere((f"calls {k}", called(name(m, a), *given)) for k, (m, a, given) in calls),
        "mechanisms": lambda: everywhere(mechanisms(canary)),
        "inside": lambda: inside(
            [*mechanisms(canary), *((k, called(name(m, a), *g)) for k, (m, a, g) in calls)]
        ),
        "arrays": lambda: (next(in_every_format(f"array: {label}", value)) for label, value in arrays()),
        "bombs": lambda: everywhere(bombs()),
        "broken programs": broken_programs,
        "torch": torch_tricks,
        "archives": lambda: archive_tricks(canary),
        "decoys": decoys,
        "twins": twins,
        "headers": header_tricks,
        "look-alikes": look_alikes,
    }


def _zip(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return buffer.getvalue()


def _npz(arrays: dict[str, object]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()
