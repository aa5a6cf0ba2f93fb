"""Write flax.zip, the small Flax files that the tests read: ``python make_flax.py FOLDER``.

Needs jax and flax. For each network NAME.msgpack, as flax.serialization.to_bytes writes variables, and in golden.npz an
input and an output; encoder.npz and bfloat16.npz as big_vision writes parameters; state.msgpack, a training state.
"""

import sys
import zipfile
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import serialization, traverse_util
from flax.training.train_state import TrainState


class Cnn(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (3, 3), use_bias=False, name="conv1")(x)
        x = nn.BatchNorm(use_running_average=True, name="norm1")(x)
        x = nn.max_pool(nn.relu(x), (2, 2), (2, 2))
        x = nn.relu(nn.Conv(8, (3, 3), padding="VALID", name="conv2")(x))
        return nn.Dense(4, name="fc")(x.mean((1, 2)))


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(6)(nn.LayerNorm()(x)))  # square, and with Flax's own names
        return nn.Dense(6)(x)


class Depthwise(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), feature_group_count=4, name="depth")(x)
        return nn.GroupNorm(num_groups=2, name="gn")(nn.Conv(6, (1, 1), name="point")(x))


class Decoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.ConvTranspose(4, (3, 3), strides=(2, 2), padding="VALID", name="up1")(x)
        return nn.ConvTranspose(2, (2, 2), strides=(2, 2), name="up2")(nn.PReLU(name="slope")(x))


class Signal(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(5, (3,), kernel_dilation=2, padding="VALID", name="c1")(x)
        return nn.Dense(2, name="fc")(nn.RMSNorm(name="rms")(x))


class Volume(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Conv(3, (3, 3, 3), name="c1")(x)


class Words(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Embed(11, 5, name="embed")(x)
        return nn.RNN(nn.OptimizedLSTMCell(4, name="lstm"))(x)


class Gates(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.RNN(nn.GRUCell(6, name="gru"))(x)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm(epsilon=1e-6, name="ln1")(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2, name="attn")(y, y)
        y = nn.LayerNorm(epsilon=1e-6, name="ln2")(x)
        return x + nn.Dense(8, name="fc2")(nn.gelu(nn.Dense(12, name="fc1")(y), approximate=False))


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        for number in range(2):
            x = Block(name=f"encoderblock_{number}")(x)
        return nn.LayerNorm(epsilon=1e-6, name="encoder_norm")(x)


class Heads(nn.Module):  # for projections that are layers of their own in torch
    @nn.compact
    def __call__(self, x):
        return nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=6, use_bias=False, name="attn")(x, x)


class Nested(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = Cnn(name="stem")(x)
        return nn.Dense(3, name="head")(x)


NETWORKS = {
    Cnn: (8, 8, 3),
    Mlp: (6,),
    Depthwise: (5, 5, 4),
    Decoder: (3, 4, 3),
    Signal: (9, 3),
    Volume: (4, 5, 3, 2),
    Words: (7,),
    Gates: (5, 4),
    Block: (6, 8),
    Encoder: (6, 8),
    Heads: (6, 8),
    Nested: (8, 8, 3),
}


def rounded(generator, path, array):
    low = 4 if path[-1].key == "var" else -16
    return jnp.asarray(generator.integers(low, 17, array.shape) / 32, array.dtype)


def main(folder: Path) -> None:
    golden = {}
    for number, (network, shape) in enumerate(NETWORKS.items()):
        generator = np.random.default_rng(number)
        words = network is Words
        given = (
            generator.integers(0, 11, (2, *shape))
            if words
            else (generator.integers(-16, 17, (2, *shape)) / 16).astype("f4")
        )
        variables = network().init(jax.random.key(number), jnp.asarray(given))
        variables = jax.tree_util.tree_map_with_path(partial(rounded, generator), variables)
        name = network.__name__.lower()
        (folder / f"{name}.msgpack").write_bytes(serialization.to_bytes(variables))
        golden |= {f"{name}/input": given, f"{name}/output": network().apply(variables, jnp.asarray(given))}
        if network is Encoder:
            flat = traverse_util.flatten_dict(variables, sep="/")
            np.savez(folder / "encoder.npz", **flat)
            np.savez(
                folder / "bfloat16.npz", **{key: np.asarray(a.astype(jnp.bfloat16)) for key, a in flat.items()}
            )
        if network is Mlp:
            state = TrainState.create(apply_fn=None, params=variables["params"], tx=optax.adam(1e-3))
            (folder / "state.msgpack").write_bytes(serialization.to_bytes(state))
    np.savez(folder / "golden.npz", **golden)
    pack(folder, "flax.zip")


def pack(folder: Path, name: str) -> None:
    with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in sorted(folder.iterdir()):
            if path.suffix != ".zip":
                archive.write(path, path.name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
