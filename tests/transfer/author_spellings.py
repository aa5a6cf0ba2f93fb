"""How different authors spell the networks of ``spellings.py``: ``role=name`` in the order of definition."""

from __future__ import annotations

from tests.transfer.spellings import MobileNet, ResNet, Spelling, Transformer, per_block


def names(text: str, prefix: str = "") -> Spelling:
    """Read ``"role=name role=name"``; the prefix goes before every name."""
    return {role: prefix + name for role, _, name in (pair.partition("=") for pair in text.split())}


def chain(pattern: str, numbers: str, fc: str, norm: str = "") -> Spelling:
    """Spell convolutions by one pattern, with norms after them if they have one, and three linear layers."""
    spelled = {}
    for place, number in enumerate(numbers.split()):
        spelled[f"conv{place}"] = pattern.format(number)
        if norm:
            spelled[f"bn{place}"] = norm.format(number, after=number.isdigit() and int(number) + 1)
    return spelled | dict(zip(("fc0", "fc1", "fc2"), fc.split(), strict=True))


def resnet(ends: str, blocks: str, prefix: str = "layer{stage}.{unit}.") -> Spelling:
    spelled = names(ends)
    fc = {"fc": spelled["fc"]}
    return (
        {r: n for r, n in spelled.items() if r != "fc"} | per_block(ResNet.BLOCKS, names(blocks, prefix)) | fc
    )


def mobilenet(stem: str, first: str, others: str, top: str) -> Spelling:
    numbers = [{"next": number + 1} for number in range(len(MobileNet.SHAPES))]
    spelled = {r: n for r, n in per_block(numbers, names(others)).items() if not r.startswith("0.")}
    return names(stem) | {f"0.{role}": name for role, name in names(first).items()} | spelled | names(top)


def transformer(start: str, prefix: str, blocks: str, end: str) -> Spelling:
    return names(start) | per_block([{}] * Transformer.DEPTH, names(blocks, prefix)) | names(end)


CLASSIFIER = "classifier.0 classifier.3 classifier.6"
SPELLINGS: dict[str, Spelling] = {
    "alexnet, torchvision": chain("features.{}", "0 3 6 8 10", "classifier.1 classifier.4 classifier.6"),
    "alexnet, caffe": chain("conv{}", "1 2 3 4 5", "fc6 fc7 fc8"),
    "alexnet, words": chain("{}", "edges textures parts objects scenes", "joined mixed answer"),
    "vgg, torchvision": chain("features.{}", "0 3 6 8 11 13 16 18", CLASSIFIER),
    "vgg, caffe": chain("conv{}", "1_1 2_1 3_1 3_2 4_1 4_2 5_1 5_2", "fc6 fc7 fc8"),
    "vgg_bn, torchvision": chain("features.{}", "0 4 8 11 15 18 22 25", CLASSIFIER, "features.{after}"),
    "vgg_bn, stages": chain(
        "stage{}.convolution", "1.1 2.1 3.1 3.2 4.1 4.2 5.1 5.2", "hidden1 hidden2 out", "stage{}.normalization"
    ),
}

BASIC = "conv0=conv1 bn0=bn1 conv1=conv2 bn1=bn2 "
THIRD = "conv2=conv3 bn2=bn3 "
SKIP = "skip=downsample.0 skip_bn=downsample.1 "
PLAIN = "stem=conv1 stem_bn=bn1 fc=fc"
SPELLINGS |= {
    "resnet18, torchvision": resnet(PLAIN, BASIC + SKIP),
    "resnet18, functions": resnet(
        "stem=conv1.0 stem_bn=conv1.1 fc=fc",
        "conv0=residual_function.0 bn0=residual_function.1 conv1=residual_function.3 bn1=residual_function.4 "
        "skip=shortcut.0 skip_bn=shortcut.1",
        "conv{stage}_x.{unit}.",
    ),
    "resnet18, shortcut first": resnet("stem=stem.conv stem_bn=stem.norm fc=head", SKIP + BASIC),
    "resnet50, torchvision": resnet(PLAIN, BASIC + THIRD + SKIP),
    "resnet50, letters": resnet(
        "stem=stem.conv stem_bn=stem.norm fc=head",
        "conv0=conv_a bn0=norm_a conv1=conv_b bn1=norm_b conv2=conv_c bn2=norm_c skip=shortcut skip_bn=shortcut_norm",
        "stages.{stage}.{unit}.",
    ),
    "resnet50, shortcut first": resnet(PLAIN, "skip=proj skip_bn=proj_bn " + BASIC + THIRD),
    "resnet50, shortcut third": resnet(PLAIN, BASIC + "skip=side skip_bn=side_bn " + THIRD),
    "resnet50, words": resnet(
        PLAIN,
        "conv0=narrow bn0=narrow_bn conv1=middle bn1=middle_bn conv2=wide bn2=wide_bn skip=other skip_bn=other_bn",
    ),
}

PARTS = (
    "depthwise={0}.depthwise.conv depthwise_bn={0}.depthwise.norm "
    "project={0}.project.conv project_bn={0}.project.norm"
)
SPELLINGS |= {
    "mobilenet, torchvision": mobilenet(
        "stem=features.0.0 stem_bn=features.0.1",
        "depthwise=features.1.conv.0.0 depthwise_bn=features.1.conv.0.1 project=features.1.conv.1 "
        "project_bn=features.1.conv.2",
        "expand=features.{next}.conv.0.0 expand_bn=features.{next}.conv.0.1 depthwise=features.{next}.conv.1.0 "
        "depthwise_bn=features.{next}.conv.1.1 project=features.{next}.conv.2 project_bn=features.{next}.conv.3",
        "top=features.18.0 top_bn=features.18.1 fc=classifier.1",
    ),
    "mobilenet, words": mobilenet(
        "stem=stem.conv stem_bn=stem.norm",
        PARTS.format("blocks.0"),
        "expand=blocks.{n}.expand.conv expand_bn=blocks.{n}.expand.norm " + PARTS.format("blocks.{n}"),
        "top=last.conv top_bn=last.norm fc=classifier",
    ),
    "efficientnet, lukemelas": mobilenet(
        "stem=_conv_stem stem_bn=_bn0",
        "depthwise=_blocks.0._depthwise_conv depthwise_bn=_blocks.0._bn1 reduce=_blocks.0._se_reduce "
        "restore=_blocks.0._se_expand project=_blocks.0._project_conv project_bn=_blocks.0._bn2",
        "expand=_blocks.{n}._expand_conv expand_bn=_blocks.{n}._bn0 depthwise=_blocks.{n}._depthwise_conv "
        "depthwise_bn=_blocks.{n}._bn1 reduce=_blocks.{n}._se_reduce restore=_blocks.{n}._se_expand "
        "project=_blocks.{n}._project_conv project_bn=_blocks.{n}._bn2",
        "top=_conv_head top_bn=_bn1 fc=_fc",
    ),
    "efficientnet, timm": mobilenet(
        "stem=conv_stem stem_bn=bn1",
        "depthwise=blocks.0.conv_dw depthwise_bn=blocks.0.bn1 reduce=blocks.0.se.conv_reduce "
        "restore=blocks.0.se.conv_expand project=blocks.0.conv_pw project_bn=blocks.0.bn2",
        "expand=blocks.{n}.conv_pw expand_bn=blocks.{n}.bn1 depthwise=blocks.{n}.conv_dw depthwise_bn=blocks.{n}.bn2 "
        "reduce=blocks.{n}.se.conv_reduce restore=blocks.{n}.se.conv_expand project=blocks.{n}.conv_pwl "
        "project_bn=blocks.{n}.bn3",
        "top=conv_head top_bn=bn2 fc=classifier",
    ),
}

HUGGINGFACE = (
    "embed=embeddings.word_embeddings positions=embeddings.position_embeddings embed_norm=embeddings.LayerNorm"
)
OWN = "embed=token positions=place embed_norm=token_norm"
SPELLINGS |= {
    "vit, timm": transformer(
        "embed=patch_embed.proj",
        "blocks.{n}.",
        "norm1=norm1 qkv=attn.qkv out=attn.proj norm2=norm2 up=mlp.fc1 down=mlp.fc2",
        "norm=norm fc=head",
    ),
    "vit, layers": transformer(
        "embed=to_patches",
        "transformer.layers.{n}.",
        "norm1=0.norm qkv=0.to_qkv out=0.to_out norm2=1.net.0 up=1.net.1 down=1.net.4",
        "norm=transformer.norm fc=mlp_head",
    ),
    "vit, norms last": transformer(
        "embed=conv_proj",
        "encoder.{n}.",
        "qkv=self_attention.in_proj out=self_attention.out_proj up=linear1 down=linear2 norm1=norm1 norm2=norm2",
        "norm=encoder.ln fc=heads",
    ),
    "bert, huggingface": transformer(
        HUGGINGFACE,
        "encoder.layer.{n}.",
        "q=attention.self.query k=attention.self.key v=attention.self.value out=attention.output.dense "
        "norm1=attention.output.LayerNorm up=intermediate.dense down=output.dense norm2=output.LayerNorm",
        "norm=final fc=classifier",
    ),
    "bert, short": transformer(
        OWN,
        "h.{n}.",
        "q=attn.q_proj k=attn.k_proj v=attn.v_proj out=attn.o_proj "
        "norm1=ln_1 up=mlp.fc_in down=mlp.fc_out norm2=ln_2",
        "norm=ln_f fc=score",
    ),
    "bert, key first": transformer(
        OWN,
        "h.{n}.",
        "k=attn.key q=attn.query v=attn.value out=attn.proj norm1=ln1 up=mlp.0 down=mlp.2 norm2=ln2",
        "norm=ln_f fc=score",
    ),
    "bert, out third": transformer(
        OWN,
        "h.{n}.",
        "q=attn.q k=attn.k out=attn.o v=attn.v norm1=ln1 up=mlp.0 down=mlp.2 norm2=ln2",
        "norm=ln_f fc=score",
    ),
    "bert, branches": transformer(
        OWN,
        "h.{n}.",
        "q=left k=middle v=right out=join norm1=ln1 up=mlp.0 down=mlp.2 norm2=ln2",
        "norm=ln_f fc=score",
    ),
    "bert, norms swapped": transformer(
        OWN,
        "h.{n}.",
        "q=q k=k v=v out=o norm2=norm_output up=mlp.0 down=mlp.2 norm1=norm_attention",
        "norm=ln_f fc=score",
    ),
    "gated, llama": transformer(
        OWN,
        "layers.{n}.",
        "q=self_attn.q_proj k=self_attn.k_proj v=self_attn.v_proj out=self_attn.o_proj gate=mlp.gate_proj "
        "up=mlp.up_proj down=mlp.down_proj norm1=input_layernorm norm2=post_attention_layernorm",
        "norm=norm fc=score",
    ),
    "gated, mistral": transformer(
        OWN,
        "blocks.{n}.",
        "q=attention.wq k=attention.wk v=attention.wv out=attention.wo gate=ffn.gate up=ffn.up down=ffn.down "
        "norm1=norm1 norm2=norm2",
        "norm=norm fc=output",
    ),
    "gated, numbers": transformer(
        OWN,
        "layers.{n}.",
        "q=attention.wq k=attention.wk v=attention.wv out=attention.wo gate=feed_forward.w1 down=feed_forward.w2 "
        "up=feed_forward.w3 norm1=attention_norm norm2=ffn_norm",
        "norm=norm fc=output",
    ),
    "gated, up first": transformer(
        OWN,
        "layers.{n}.",
        "q=attn.q k=attn.k v=attn.v out=attn.out up=mlp.up gate=mlp.gate down=mlp.down "
        "norm1=norm_attn norm2=norm_mlp",
        "norm=norm fc=score",
    ),
}
