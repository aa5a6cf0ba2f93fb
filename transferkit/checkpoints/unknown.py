"""Files that people take for weights and that are not, each with what to do about it."""

from __future__ import annotations

from pathlib import Path

# How a file begins, what it is, and what to do.
_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (
        b"version https://git-lfs",
        "a git-lfs pointer, not the file itself: run `git lfs pull` in its repository",
    ),
    (b"<!doctype html", "a web page, as a failed download leaves it: download the file again"),
    (b"<html", "a web page, as a failed download leaves it: download the file again"),
    (b"<?xml", "an XML file, as a failed download leaves it: download the file again"),
    (b"\x89hdf", "an HDF5 file (Keras): load it with h5py or Keras and save the arrays with numpy.savez"),
    (b"gguf", "a GGUF file with packed weights: read the original weights that it was made from"),
    (b"ggml", "a GGML file with packed weights: read the original weights that it was made from"),
    (b"\x93numpy", "a single numpy array: save a named set of arrays with numpy.savez"),
    (b"bzh", "a bzip2 archive: unpack it and read what is inside"),
    (b"\xfd7zxz", "an xz archive: unpack it and read what is inside"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it and read what is inside"),
    (b"rar!", "a rar archive: unpack it and read what is inside"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive: unpack it and read what is inside"),
)
_SUFFIXES = {
    ".onnx": "an ONNX model: read the weights that it was exported from, or onnx's own initializers",
    ".pb": "a TensorFlow graph: load it with TensorFlow and save the arrays with numpy.savez",
    ".tflite": "a TensorFlow Lite model with packed weights: read the original weights",
    ".msgpack": "a flax file: load it with flax and save the arrays with numpy.savez",
    ".keras": "a Keras archive: load it with Keras and save the arrays with numpy.savez",
    ".mat": "a MATLAB file: load it with scipy.io and save the arrays with numpy.savez",
}


def what_it_is(path: Path, head: bytes) -> str:
    """Return what a file seems to be and what to do about it."""
    if path.is_file() and not head:
        return "the file is empty"
    start = head[:64].lstrip().lower()
    for beginning, meaning in _BEGINNINGS:
        if start.startswith(beginning):
            return meaning
    if head[257:262] == b"ustar":
        return "a tar archive, and not one that torch wrote: unpack it and read what is inside"
    if head.startswith(b"PK"):
        return (
            "a zip archive without a torch pickle or numpy arrays, or a damaged one: unpack it and look inside"
        )
    return _SUFFIXES.get(path.suffix.lower(), "")
