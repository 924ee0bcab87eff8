"""Write MessagePack files as `flax.serialization` does, and VQGAN checkpoints as vqgan-jax does, without Flax."""

import json

import numpy as np

from support.making import taming_params, taming_state_dict


def packed_array(shape, dtype, data, kind=1):
    """Return the extension that holds an array (type 1) or a NumPy scalar (type 3)."""
    import msgpack

    return msgpack.ExtType(kind, msgpack.packb((shape, dtype, data), use_bin_type=True))


def flax_bytes(tree, largest_chunk=2**30):
    """Return the bytes of a tree of dicts, arrays and NumPy scalars; torch's bfloat16 tensors are JAX's bfloat16."""
    import msgpack

    return msgpack.packb(_packable(tree, largest_chunk), strict_types=True)


def _packable(value, largest_chunk):
    if isinstance(value, dict):
        return {name: _packable(inner, largest_chunk) for name, inner in value.items()}
    if isinstance(value, np.generic):
        return packed_array((), value.dtype.name, value.tobytes(), 3)
    if isinstance(value, np.ndarray):
        dtype, bits = value.dtype.name, value
    else:
        import torch

        assert value.dtype == torch.bfloat16
        dtype, bits = "bfloat16", value.view(torch.uint16).numpy()
    if bits.nbytes <= largest_chunk:
        return packed_array(bits.shape, dtype, bits.tobytes())
    flat, step = bits.reshape(-1), max(1, largest_chunk // bits.itemsize)
    chunks = [flat[start : start + step] for start in range(0, flat.size, step)]
    return {
        "__msgpack_chunked_array__": True,
        "shape": {str(axis): side for axis, side in enumerate(bits.shape)},
        "chunks": {str(i): packed_array(chunk.shape, dtype, chunk.tobytes()) for i, chunk in enumerate(chunks)},
    }


def flax_tree(state):
    """Return a taming state dict as vqgan-jax's tree of parameters, by the rules of its conversion script."""
    tree = {}
    for key, value in state.items():
        path, value = key.split("."), value.numpy()
        while any(part.isdigit() for part in path):  # down.0 -> down_0
            at = next(at for at, part in enumerate(path) if part.isdigit())
            path[at - 1 : at + 1] = [f"{path[at - 1]}_{path[at]}"]
        if path[-1] == "weight" and "norm" in path[-2]:
            path[-1] = "scale"
        elif path[-1] == "weight" and path[-2] == "embedding":
            path[-1] = "embedding"
        elif path[-1] == "weight":
            path[-1], value = "kernel", value.transpose(2, 3, 1, 0)
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = value
    return tree


def save_as_flax(model, folder, *, tree=None, config=(), largest_chunk=2**30):
    """Write a diffusers VQModel as transformers saves vqgan-jax's: `config.json` and `flax_model.msgpack`."""
    params = taming_params(model)
    written = {
        **params["ddconfig"],
        "embed_dim": params["embed_dim"],
        "give_pre_end": False,
        "n_embed": params["n_embed"],
        "num_resolutions": len(params["ddconfig"]["ch_mult"]),
        "resamp_with_conv": True,
        "transformers_version": "4.9.0.dev0",
        **dict(config),
    }
    tree = flax_tree(taming_state_dict(model)) if tree is None else tree
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")
    (folder / "flax_model.msgpack").write_bytes(flax_bytes(tree, largest_chunk))
