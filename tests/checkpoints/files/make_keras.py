"""Write keras.zip, the small Keras files that the tests read: ``KERAS_BACKEND=torch python make_keras.py FOLDER``.

Needs keras 3 with torch, h5py and numpy. For each network: NAME.keras, NAME.h5 (the older format) and of some
NAME.weights.h5, and in golden.npz inputs and an output. Weights are multiples of 1/32, which pack well.
"""

import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
from keras import layers as L


def cnn():
    return keras.Sequential(
        [
            keras.Input((9, 7, 3)),
            L.Conv2D(6, 3, padding="same", use_bias=False, name="conv1"),
            L.BatchNormalization(name="norm1"),
            L.ReLU(),
            L.MaxPooling2D(2),
            L.Conv2D(8, 3, strides=2, name="conv2"),
            L.Activation("relu"),
            L.Flatten(),
            L.Dropout(0.5),
            L.Dense(10, activation="relu", name="fc1"),
            L.Dense(4, name="fc2"),
        ],
        name="cnn",
    )


def residual():
    x = given = keras.Input((8, 8, 4), name="image")
    y = L.Conv2D(4, 3, padding="same", name="block_conv")(x)
    y = L.BatchNormalization(scale=False, epsilon=1e-2, name="block_norm")(y)
    x = L.Add()([x, L.Activation("relu")(y)])
    z = L.Conv2D(4, 1, name="side")(x)
    x = L.Concatenate()([x, z])
    x = L.GlobalAveragePooling2D()(x)
    return keras.Model(given, L.Dense(3, name="head")(x), name="residual")


def separable():
    return keras.Sequential(
        [
            keras.Input((10, 10, 4)),
            L.SeparableConv2D(6, 3, padding="same", depth_multiplier=2, name="sep"),
            L.DepthwiseConv2D(3, depth_multiplier=2, name="depth"),
            L.LayerNormalization(name="ln"),
            L.GlobalMaxPooling2D(),
            L.Dense(5, use_bias=False, name="out"),
        ],
        name="separable",
    )


def decoder():
    return keras.Sequential(
        [
            keras.Input((6,)),
            L.Dense(2 * 3 * 4, name="grow"),
            L.BatchNormalization(name="norm"),
            L.Reshape((2, 3, 4)),
            L.Conv2DTranspose(5, 2, strides=2, name="up1"),
            L.PReLU(shared_axes=[1, 2], name="slope"),
            L.UpSampling2D(2),
            L.Conv2DTranspose(2, 3, strides=1, padding="valid", name="up2"),
        ],
        name="decoder",
    )


def signal():
    return keras.Sequential(
        [
            keras.Input((20, 3)),
            L.Conv1D(5, 3, padding="causal", name="c1"),
            L.Conv1D(6, 3, dilation_rate=2, groups=1, name="c2"),
            L.AveragePooling1D(2),
            L.Flatten(),
            L.BatchNormalization(name="norm"),
            L.Dense(4, name="fc"),
        ],
        name="signal",
    )


def volume():
    return keras.Sequential(
        [
            keras.Input((5, 6, 4, 2)),
            L.Conv3D(4, 3, name="c1"),
            L.GroupNormalization(groups=2, name="gn"),
            L.Conv3DTranspose(3, 2, strides=2, name="c2"),
            L.Flatten(),
            L.Dense(2, name="fc"),
        ],
        name="volume",
    )


def text():
    return keras.Sequential(
        [
            keras.Input((7,), dtype="int32"),
            L.Embedding(11, 5, name="embed"),
            L.Bidirectional(L.LSTM(4, return_sequences=True), name="bi"),
            L.GRU(6, return_sequences=True, name="gru"),
            L.SimpleRNN(5, return_sequences=True, name="rnn"),
            L.TimeDistributed(L.Dense(3), name="each"),
        ],
        name="text",
    )


def transformer():
    x = given = keras.Input((6, 8))
    y = L.MultiHeadAttention(2, 4, name="mha")(x, x)
    x = L.LayerNormalization(epsilon=1e-6, name="ln1")(L.Add()([x, y]))
    y = L.MultiHeadAttention(3, 2, name="narrow")(x, x)  # heads times width is not the width of the inputs
    x = L.LayerNormalization(epsilon=1e-6, name="ln2")(L.Add()([x, y]))
    return keras.Model(given, L.Dense(8, activation="gelu", name="mlp")(x), name="transformer")


def nested():
    inner = keras.Sequential(
        [keras.Input((6, 6, 3)), L.Conv2D(4, 3, name="conv"), L.BatchNormalization(name="norm")], name="inner"
    )
    given = keras.Input((4, 4, 4))
    middle = keras.Model(given, L.Conv2D(5, 3, name="conv")(given), name="middle")
    return keras.Sequential(
        [keras.Input((6, 6, 3)), inner, middle, L.Flatten(), L.Dense(3, name="head")], name="nested"
    )


def shared():
    one, two = keras.Input((5,), name="one"), keras.Input((5,), name="two")
    tower = L.Dense(4, activation="tanh", name="tower")
    x = L.Lambda(lambda x: x * 1)(L.Concatenate()([tower(one), tower(two)]))
    return keras.Model([one, two], L.Dense(2, name="head")(x), name="shared")


def square():
    return keras.Sequential(
        [
            keras.Input((3, 3, 4)),
            L.Conv2D(4, 3, padding="same", name="conv"),  # as many inputs as outputs
            L.Flatten(),
            L.Dense(36, name="fc1"),  # square
            L.Dense(36, name="fc2"),
        ],
        name="square",
    )


def grouped():
    return keras.Sequential(
        [
            keras.Input((6, 6, 4)),
            L.ZeroPadding2D(((0, 1), (1, 0))),
            L.Conv2D(8, 3, strides=2, groups=2, name="conv"),
            L.Rescaling(0.5),
            L.Cropping2D(1),
            L.Flatten(),
            L.Dense(2, name="fc"),
        ],
        name="grouped",
    )


NETWORKS = [
    cnn,
    residual,
    separable,
    decoder,
    signal,
    volume,
    text,
    transformer,
    nested,
    shared,
    square,
    grouped,
]


def main(folder: Path) -> None:
    golden = {}
    for number, build in enumerate(NETWORKS):
        keras.utils.clear_session()
        model = build()
        generator = np.random.default_rng(number)
        for variable in model.weights:
            values = generator.integers(-16, 17, variable.shape)
            variable.assign((abs(values) + 4 if "variance" in variable.path else values).astype("float32") / 32)
        shapes = [tuple(given.shape[1:]) for given in model.inputs]
        whole = model.inputs[0].dtype == "int32"
        inputs = [generator.integers(0, 11 if whole else 33, (2, *shape)) for shape in shapes]
        inputs = inputs if whole else [(each / 16 - 1).astype("float32") for each in inputs]
        golden[f"{build.__name__}/output"] = model.predict(inputs if len(inputs) > 1 else inputs[0], verbose=0)
        golden |= {f"{build.__name__}/input{place}": each for place, each in enumerate(inputs)}
        if build is shared:
            model.compile("adam", "mse")
            model.optimizer.build(model.trainable_variables)
        model.save(folder / f"{build.__name__}.keras")
        if build not in (volume, grouped):
            model.save(folder / f"{build.__name__}.h5")
        if build in (cnn, transformer):
            model.save_weights(folder / f"{build.__name__}.weights.h5")
    np.savez(folder / "golden.npz", **golden)
    pack(folder, "keras.zip")


def pack(folder: Path, name: str) -> None:
    with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in sorted(folder.iterdir()):
            if path.suffix != ".zip":
                archive.write(path, path.name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
