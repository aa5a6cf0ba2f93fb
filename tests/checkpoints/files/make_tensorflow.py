"""The small TensorFlow checkpoints that lie here, and how they were written: python make_tensorflow.py, TensorFlow 2.21.

A variable's numbers are told by its name, as in make_onnx.py.
"""

from __future__ import annotations

import os
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent


def numbers(name: str, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the numbers of the variable of a name."""
    count = int(np.prod(shape))
    return ((np.arange(count) % 97 + zlib.crc32(name.encode()) % 89 + 1) / 128).reshape(shape).astype("f4")


def named(tf: Any) -> None:
    """Write variables by name, one of them in two parts, with an optimizer's values and averages."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        shapes = {"net/conv/weights": (3, 3, 2, 4), "net/conv/biases": (4,)}
        made = [v1.get_variable(name, initializer=numbers(name, shape)) for name, shape in shapes.items()]
        whole = tf.constant(numbers("part", (10, 2)))
        part = v1.get_variable("part", (10, 2), partitioner=v1.fixed_size_partitioner(2))
        step = v1.train.get_or_create_global_step()
        loss = tf.add_n([tf.reduce_sum(each) for each in made]) + 0 * tf.reduce_sum(part.as_tensor())
        v1.train.AdamOptimizer(0.1).minimize(loss)
        average = v1.train.ExponentialMovingAverage(0.5).apply(made)
        session.run(v1.global_variables_initializer())
        for each, piece in zip(part, tf.split(whole, 2), strict=True):
            session.run(each.assign(piece))
        session.run([average, step.assign(7)])
        v1.train.Saver().save(session, str(FOLDER / "named"), write_meta_graph=False, latest_filename="latest")
    (FOLDER / "latest").unlink()


def objects(tf: Any) -> None:
    """Write a Keras model with its optimizer, by the paths of objects, and numbers of half the width."""
    import keras

    layers = [
        keras.layers.Conv2D(2, 3, name="conv"),
        keras.layers.Flatten(),
        keras.layers.Dense(3, name="dense"),
    ]
    model = keras.Sequential([keras.Input((4, 5, 1)), *layers], name="net")
    model.compile("adam", "mse")
    model.fit(np.zeros((1, 4, 5, 1)), np.zeros((1, 3)), verbose=0)
    for variable in model.weights:
        variable.assign(numbers(variable.path, tuple(variable.shape)))
    half = tf.Variable(tf.cast(numbers("half", (3,)), tf.bfloat16))
    checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer, half=half, step=tf.Variable(5))
    checkpoint.write(str(FOLDER / "objects"))


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import tensorflow

    for write in sys.argv[1:] or ("objects", "named"):
        {"named": named, "objects": objects}[write](tensorflow)
