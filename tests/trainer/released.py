"""Names and shapes of the nine models that OpenAI released, from its archives and from open_clip's results, without our code."""

Shapes = dict[str, tuple[int, ...]]

# name: parameters in millions (open_clip, docs/openclip_results.csv), then E, image, text width, and the image tower's own numbers.
RESNETS: dict[str, tuple[float, int, int, int, tuple[int, ...], int]] = {
    "RN50": (102.0, 1024, 224, 512, (3, 4, 6, 3), 64),
    "RN101": (119.7, 512, 224, 512, (3, 4, 23, 3), 64),
    "RN50x4": (178.3, 640, 288, 640, (4, 6, 10, 6), 80),
    "RN50x16": (291.0, 768, 384, 768, (6, 8, 18, 8), 96),
    "RN50x64": (623.3, 1024, 448, 1024, (3, 15, 36, 10), 128),
}
VITS: dict[str, tuple[float, int, int, int, int, int, int]] = {
    "ViT-B/32": (151.3, 512, 224, 512, 12, 768, 32),
    "ViT-B/16": (149.6, 512, 224, 512, 12, 768, 16),
    "ViT-L/14": (427.6, 768, 224, 768, 24, 1024, 14),
    "ViT-L/14@336px": (427.9, 768, 336, 768, 24, 1024, 14),
}
OPENAI = [*RESNETS, *VITS]


def transformer_shapes(prefix: str, width: int, layers: int) -> Shapes:
    shapes: Shapes = {}
    for i in range(layers):
        at = f"{prefix}transformer.resblocks.{i}."
        shapes[at + "attn.in_proj_weight"] = (3 * width, width)
        shapes[at + "attn.in_proj_bias"] = (3 * width,)
        shapes[at + "attn.out_proj.weight"] = (width, width)
        shapes[at + "attn.out_proj.bias"] = (width,)
        shapes[at + "mlp.c_fc.weight"] = (4 * width, width)
        shapes[at + "mlp.c_fc.bias"] = (4 * width,)
        shapes[at + "mlp.c_proj.weight"] = (width, 4 * width)
        shapes[at + "mlp.c_proj.bias"] = (width,)
        for norm in ("ln_1", "ln_2"):
            shapes[at + norm + ".weight"] = shapes[at + norm + ".bias"] = (width,)
    return shapes


def batch_norm_shapes(at: str, width: int) -> Shapes:
    per_channel: Shapes = {f"{at}.{key}": (width,) for key in ("weight", "bias", "running_mean", "running_var")}
    return per_channel | {f"{at}.num_batches_tracked": ()}


def resnet_shapes(blocks: tuple[int, ...], width: int, image: int, embed: int) -> Shapes:
    shapes: Shapes = {
        "visual.conv1.weight": (width // 2, 3, 3, 3),
        "visual.conv2.weight": (width // 2, width // 2, 3, 3),
        "visual.conv3.weight": (width, width // 2, 3, 3),
    }
    for i, channels in ((1, width // 2), (2, width // 2), (3, width)):
        shapes |= batch_norm_shapes(f"visual.bn{i}", channels)
    into = width
    for stage in range(4):
        planes = width * 2**stage
        for j in range(blocks[stage]):
            at = f"visual.layer{stage + 1}.{j}"
            shapes[f"{at}.conv1.weight"] = (planes, into, 1, 1)
            shapes[f"{at}.conv2.weight"] = (planes, planes, 3, 3)
            shapes[f"{at}.conv3.weight"] = (4 * planes, planes, 1, 1)
            for i, channels in ((1, planes), (2, planes), (3, 4 * planes)):
                shapes |= batch_norm_shapes(f"{at}.bn{i}", channels)
            if j == 0:
                shapes[f"{at}.downsample.0.weight"] = (4 * planes, into, 1, 1)
                shapes |= batch_norm_shapes(f"{at}.downsample.1", 4 * planes)
            into = 4 * planes
    wide = 32 * width
    shapes["visual.attnpool.positional_embedding"] = ((image // 32) ** 2 + 1, wide)
    for name, out in (("q_proj", wide), ("k_proj", wide), ("v_proj", wide), ("c_proj", embed)):
        shapes[f"visual.attnpool.{name}.weight"] = (out, wide)
        shapes[f"visual.attnpool.{name}.bias"] = (out,)
    return shapes


def vit_shapes(layers: int, width: int, patch: int, image: int, embed: int) -> Shapes:
    shapes: Shapes = {
        "visual.class_embedding": (width,),
        "visual.positional_embedding": ((image // patch) ** 2 + 1, width),
        "visual.proj": (width, embed),
        "visual.conv1.weight": (width, 3, patch, patch),
    }
    for norm in ("ln_pre", "ln_post"):
        shapes[f"visual.{norm}.weight"] = shapes[f"visual.{norm}.bias"] = (width,)
    return shapes | transformer_shapes("visual.", width, layers)


def released_shapes(name: str) -> Shapes:
    """Of a file of `name`: 0-D logit_scale, and without the three numbers that the archives hold beside the weights."""
    if name in RESNETS:
        _, embed, image, text_width, blocks, width = RESNETS[name]
        tower = resnet_shapes(blocks, width, image, embed)
    else:
        _, embed, image, text_width, layers, width, patch = VITS[name]
        tower = vit_shapes(layers, width, patch, image, embed)
    shapes: Shapes = {
        "positional_embedding": (77, text_width),
        "text_projection": (text_width, embed),
        "logit_scale": (),
        "token_embedding.weight": (49408, text_width),
        "ln_final.weight": (text_width,),
        "ln_final.bias": (text_width,),
    }
    return shapes | tower | transformer_shapes("", text_width, 12)
