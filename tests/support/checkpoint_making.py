"""Checkpoints without a configuration, as their projects save them, and what their networks compute.

Tables of names and shapes were written after the constructors of LightningDiT, MAR, LlamaGen and 1d-tokenizer; what the
networks compute is written here as functions of a state dict, without modules.
"""

import torch
from torch.nn import functional as F  # noqa: N812

BLOCKS = 2  # per level of the encoder, in all four


def taming_shapes(ch, ch_mult, z, moments, embed, *, decoder_attends=True):
    """Return the shapes of `AutoencoderKL(embed_dim, ch_mult)` of MAR and LightningDiT, or with `moments` = z of a VQ.

    There is attention at the lowest resolution: at 16 x 16 of 256 x 256 pixels, with five levels.
    """
    shapes, last = {}, len(ch_mult) - 1
    conv(shapes, "encoder.conv_in", 3, ch, 3)
    width = ch
    for level, factor in enumerate(ch_mult):
        for block in range(BLOCKS):
            resnet(shapes, f"encoder.down.{level}.block.{block}", width, ch * factor)
            width = ch * factor
            if level == last:
                attention(shapes, f"encoder.down.{level}.attn.{block}", width)
        if level != last:
            conv(shapes, f"encoder.down.{level}.downsample.conv", width, width, 3)
    middle(shapes, "encoder.mid", width)
    norm(shapes, "encoder.norm_out", width)
    conv(shapes, "encoder.conv_out", width, moments, 3)
    conv(shapes, "decoder.conv_in", z, width, 3)
    middle(shapes, "decoder.mid", width)
    for level, factor in reversed(list(enumerate(ch_mult))):
        for block in range(BLOCKS + 1):
            resnet(shapes, f"decoder.up.{level}.block.{block}", width, ch * factor)
            width = ch * factor
            if level == last and decoder_attends:
                attention(shapes, f"decoder.up.{level}.attn.{block}", width)
        if level:
            conv(shapes, f"decoder.up.{level}.upsample.conv", width, width, 3)
    norm(shapes, "decoder.norm_out", width)
    conv(shapes, "decoder.conv_out", width, 3, 3)
    conv(shapes, "quant_conv", moments, embed * (1 if moments == z else 2), 1)
    conv(shapes, "post_quant_conv", embed, z, 1)
    return shapes


def llamagen_shapes(ch, ch_mult, z, embed, codes):
    """Return the shapes of LlamaGen's `VQModel`: the decoder's `conv_blocks` begin at the lowest resolution."""
    shapes, last = {}, len(ch_mult) - 1
    for name, shape in taming_shapes(ch, ch_mult, z, z, embed).items():
        part, *path = name.split(".")
        if path[0] in ("down", "up"):
            level = int(path[1]) if path[0] == "down" else last - int(path[1])
            path[:2] = ["conv_blocks", str(level)]
            path[2] = "res" if path[2] == "block" else path[2]
        elif path[0] == "mid":
            path[1] = {"block_1": "0", "attn_1": "1", "block_2": "2"}[path[1]]
        shapes[".".join([part, *path])] = shape
    shapes["quantize.embedding.weight"] = (codes, embed)
    shapes["quantize.codebook_used"] = (65536,)
    return shapes


def maskgit_shapes(ch, ch_mult, z, codes):
    """Return the shapes of 1d-tokenizer's `PretrainedTokenizer`: no attention, few biases, convolutions only upward."""
    shapes, last = {}, len(ch_mult) - 1
    conv(shapes, "encoder.conv_in", 3, ch, 3, bias=False)
    width = ch
    for level, factor in enumerate(ch_mult):
        for block in range(BLOCKS):
            maskgit_resnet(shapes, f"encoder.down.{level}.block.{block}", width, ch * factor)
            width = ch * factor
    for block in range(BLOCKS):
        maskgit_resnet(shapes, f"encoder.mid.{block}", width, width)
        maskgit_resnet(shapes, f"decoder.mid.{block}", width, width)
    norm(shapes, "encoder.norm_out", width)
    conv(shapes, "encoder.conv_out", width, z, 1)
    conv(shapes, "decoder.conv_in", z, width, 3)
    for level in range(last, -1, -1):
        for block in range(BLOCKS):
            maskgit_resnet(shapes, f"decoder.up.{level}.block.{block}", width, ch * ch_mult[level])
            width = ch * ch_mult[level]
        if level:
            conv(shapes, f"decoder.up.{level}.upsample_conv", width, width, 3)
    norm(shapes, "decoder.norm_out", width)
    conv(shapes, "decoder.conv_out", width, 3, 3)
    shapes["quantize.embedding.weight"] = (codes, z)
    return shapes


def conv(shapes, name, inner, outer, side, *, bias=True):
    shapes[f"{name}.weight"] = (outer, inner, side, side)
    if bias:
        shapes[f"{name}.bias"] = (outer,)


def norm(shapes, name, width):
    shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)


def resnet(shapes, name, inner, outer):
    norm(shapes, f"{name}.norm1", inner)
    conv(shapes, f"{name}.conv1", inner, outer, 3)
    norm(shapes, f"{name}.norm2", outer)
    conv(shapes, f"{name}.conv2", outer, outer, 3)
    if inner != outer:
        conv(shapes, f"{name}.nin_shortcut", inner, outer, 1)


def maskgit_resnet(shapes, name, inner, outer):
    norm(shapes, f"{name}.norm1", inner)
    conv(shapes, f"{name}.conv1", inner, outer, 3, bias=False)
    norm(shapes, f"{name}.norm2", outer)
    conv(shapes, f"{name}.conv2", outer, outer, 3, bias=False)
    if inner != outer:
        conv(shapes, f"{name}.nin_shortcut", outer, outer, 1, bias=False)


def attention(shapes, name, width):
    norm(shapes, f"{name}.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        conv(shapes, f"{name}.{part}", width, width, 1)


def middle(shapes, name, width):
    resnet(shapes, f"{name}.block_1", width, width)
    attention(shapes, f"{name}.attn_1", width)
    resnet(shapes, f"{name}.block_2", width, width)


def random_state(shapes, seed=0):
    """Return random tensors of these shapes, of such sizes that activations stay near 1."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        if len(shape) == 4:
            values *= (shape[1] * shape[2] * shape[3]) ** -0.5
        elif name.endswith("weight") and len(shape) == 1:
            values = 1 + values / 10
        elif len(shape) == 1:
            values /= 10
        state[name] = values
    return state


# What the networks compute.


class Reference:
    """The functions of a state dict; names of modules come from `names`, by default those of taming-transformers."""

    def __init__(self, state, levels):
        self.state = {name: value.double() for name, value in state.items()}
        self.levels = levels

    def conv(self, name, x, **options):
        return F.conv2d(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"), **options)

    def norm(self, name, x):
        return F.group_norm(x, 32, self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1e-6)

    def swish(self, name, x):
        x = self.norm(name, x)
        return x * torch.sigmoid(x)

    def resnet(self, name, x):
        h = self.conv(f"{name}.conv1", self.swish(f"{name}.norm1", x), padding=1)
        h = self.conv(f"{name}.conv2", self.swish(f"{name}.norm2", h), padding=1)
        return h + (self.conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in self.state else x)

    def attention(self, name, x):
        h = self.norm(f"{name}.norm", x)
        q, k, v = (self.conv(f"{name}.{part}", h).flatten(2) for part in "qkv")
        weights = torch.softmax(torch.einsum("bcq,bck->bqk", q, k) * x.shape[1] ** -0.5, 2)
        return x + self.conv(f"{name}.proj_out", torch.einsum("bck,bqk->bcq", v, weights).view(x.shape))

    def level(self, name, x, block="block"):
        number = 0
        while f"{name}.{block}.{number}.conv1.weight" in self.state:
            x = self.resnet(f"{name}.{block}.{number}", x)
            if f"{name}.attn.{number}.q.weight" in self.state:
                x = self.attention(f"{name}.attn.{number}", x)
            number += 1
        assert number
        if f"{name}.downsample.conv.weight" in self.state:
            x = self.conv(f"{name}.downsample.conv", F.pad(x, (0, 1, 0, 1)), stride=2)
        if f"{name}.upsample.conv.weight" in self.state:
            x = self.conv(f"{name}.upsample.conv", x.repeat_interleave(2, 2).repeat_interleave(2, 3), padding=1)
        return x

    def middle(self, name, x):
        first, attends, second = ("block_1", "attn_1", "block_2")
        x = self.attention(f"{name}.{attends}", self.resnet(f"{name}.{first}", x))
        return self.resnet(f"{name}.{second}", x)

    def encode(self, x):
        """Encode pixels by encoder and quant_conv."""
        x = self.conv("encoder.conv_in", x.double(), padding=1)
        for level in range(self.levels):
            x = self.level(f"encoder.down.{level}", x)
        x = self.swish("encoder.norm_out", self.middle("encoder.mid", x))
        return self.conv("quant_conv", self.conv("encoder.conv_out", x, padding=1))

    def decode(self, z):
        x = self.conv("decoder.conv_in", self.conv("post_quant_conv", z.double()), padding=1)
        x = self.middle("decoder.mid", x)
        for level in reversed(range(self.levels)):
            x = self.level(f"decoder.up.{level}", x)
        return self.conv("decoder.conv_out", self.swish("decoder.norm_out", x), padding=1)


class LlamaGenReference(Reference):
    def middle(self, name, x):
        return self.resnet(f"{name}.2", self.attention(f"{name}.1", self.resnet(f"{name}.0", x)))

    def encode(self, x):
        x = self.conv("encoder.conv_in", x.double(), padding=1)
        for level in range(self.levels):
            x = self.level(f"encoder.conv_blocks.{level}", x, "res")
        x = self.swish("encoder.norm_out", self.middle("encoder.mid", x))
        return self.conv("quant_conv", self.conv("encoder.conv_out", x, padding=1))

    def codebook(self):
        codes = self.state["quantize.embedding.weight"]
        return codes / codes.norm(dim=1, keepdim=True)

    def tokens(self, x):
        z = self.encode(x)
        return torch.einsum("bchw,nc->bnhw", z, self.codebook()).argmax(1)  # the nearest in angle

    def decode(self, tokens):
        x = self.conv("post_quant_conv", self.codebook()[tokens].permute(0, 3, 1, 2))
        x = self.middle("decoder.mid", self.conv("decoder.conv_in", x, padding=1))
        for level in range(self.levels):
            x = self.level(f"decoder.conv_blocks.{level}", x, "res")
        return self.conv("decoder.conv_out", self.swish("decoder.norm_out", x), padding=1)


class MaskGitReference(Reference):
    def resnet(self, name, x):
        h = self.conv(f"{name}.conv1", self.swish(f"{name}.norm1", x), padding=1)
        h = self.conv(f"{name}.conv2", self.swish(f"{name}.norm2", h), padding=1)
        return h + (self.conv(f"{name}.nin_shortcut", h) if f"{name}.nin_shortcut.weight" in self.state else x)

    def encode(self, x):
        x = self.conv("encoder.conv_in", x.double(), padding=1)
        for level in range(self.levels):
            x = self.level(f"encoder.down.{level}", x)
            if level < self.levels - 1:
                x = F.avg_pool2d(x, 2)
        for number in range(BLOCKS):
            x = self.resnet(f"encoder.mid.{number}", x)
        return self.conv("encoder.conv_out", self.swish("encoder.norm_out", x))

    def tokens(self, x):
        z = self.encode(x).permute(0, 2, 3, 1)
        return ((z[..., None, :] - self.state["quantize.embedding.weight"]) ** 2).sum(-1).argmin(-1)

    def decode(self, tokens):
        z = self.state["quantize.embedding.weight"][tokens].permute(0, 3, 1, 2)
        x = self.conv("decoder.conv_in", z, padding=1)
        for number in range(BLOCKS):
            x = self.resnet(f"decoder.mid.{number}", x)
        for level in reversed(range(self.levels)):
            x = self.level(f"decoder.up.{level}", x)
            if level:
                x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
                x = self.conv(f"decoder.up.{level}.upsample_conv", x, padding=1)
        return self.conv("decoder.conv_out", self.swish("decoder.norm_out", x), padding=1)
