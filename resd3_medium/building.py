"""Models with their weights on a device: dense, or with large matrices kept at few bits, whole or streamed.

Models are built without memory for their weights (on torch's meta device) and then get the tensors of the
memory-mapped files, straight at the wanted dtype and on the wanted device. Start reading at `build`.
"""

from collections.abc import Callable

import torch
from torch import nn

from resd3_medium.mmdit import MMDiT
from resd3_medium.packed import Packed, PackedLinear, quantised
from resd3_medium.stored_weight import Weight
from resd3_medium.streaming import BlockStream
from resd3_medium.vae import LatentFormat
from resd3_medium.weight_files import DENSE, FLOAT8
from resd3_medium.weights import PartWeights

Kept = dict[str, torch.Tensor]  # tensors by their names in a module's state


def build(
    weights: PartWeights,
    device: torch.device,
    dtype: torch.dtype,
    keep: str = "stored",
    stream: bool = False,
    without: str = "$",
) -> nn.Module:
    """The model with its weights. Raises ParameterError, see `PartWeights`.

    `keep` is `stored` (matrices of the layers stay at the bits that they have in the file), `full` (all at `dtype`),
    `int8` or `fp8` (a dense file's are rounded to those). Where nothing has to be changed, weights stay in the file's
    memory map. With `stream`, layers stay there and come in one by one, unless on the CPU the map does that by itself.
    Submodules whose names start with `without` get no weights: they stay on the meta device.
    """
    model = weights.structure().to(dtype)
    matrices = pack_layers(model, weights, keep)
    layers = weights.part.layers + "."

    def read(name: str) -> Kept:
        """Our tensor of that name as the module keeps it, on the host."""
        weight = weights.weight(name)
        if name not in matrices:
            return {name: weight.dense(dtype)}
        packed = matrices[name](weight)
        stem = name.removesuffix("weight")
        return {stem + "packed": packed.data} | ({} if packed.scale is None else {stem + "scale": packed.scale})

    names = [name for name in weights.wanted if name != "pos_embed" and not name.startswith(without)]
    inside = [name for name in names if name.startswith(layers)]
    streamed = stream and any(not in_place(weights.weight(n), matrices.get(n), dtype, device) for n in inside)
    state: Kept = {}
    for name in names:
        if not (streamed and name.startswith(layers)):
            state |= {n: tensor.to(device) for n, tensor in read(name).items()}
    model.load_state_dict(state, assign=True, strict=not streamed and without == "$")
    if streamed:
        blocks = list(model.get_submodule(weights.part.layers))
        readers = [
            [lambda n=name, s=start: cut(read(n), s) for name in inside if name.startswith(start)]
            for start in (f"{layers}{i}." for i in range(len(blocks)))
        ]
        model.stream = BlockStream(blocks, readers, device)
    add_loras(model, weights, matrices, device)
    finish(model, weights, device)
    return model.requires_grad_(False)


def cut(kept: Kept, start: str) -> Kept:
    """The same tensors by their names within a block."""
    return {name.removeprefix(start): tensor for name, tensor in kept.items()}


def pack_layers(model: nn.Module, weights: PartWeights, keep: str) -> dict[str, Callable[[Weight], Packed]]:
    """Put a PackedLinear in the place of each linear layer that is kept at few bits.

    Returns, for our names of their matrices, what packs a weight. Token tables, embedders, norms, biases, the last
    layer and the autoencoder are not among them.
    """
    found: dict[str, Callable[[Weight], Packed]] = {}
    if keep == "full":
        return found
    for name, module in list(model.named_modules()):
        if not (isinstance(module, nn.Linear) and name.startswith(weights.part.layers + ".")):
            continue
        weight = weights.weight(name + ".weight")
        packed = weight.packed()
        if packed is not None:  # as it is in the file, whatever `keep` says: nothing is rounded twice
            form = packed.kind, tuple(packed.data.shape), None if packed.scale is None else tuple(packed.scale.shape)
            found[name + ".weight"] = stored
        elif weights.eight_bits(keep) and weight.is_dense:
            rows = weight.shape[0]
            form = ("INT8", weight.shape, (rows, 1)) if keep == "int8" else ("F8_E4M3", weight.shape, (1, 1))
            found[name + ".weight"] = lambda w, kind=keep: quantised(w.floats(), kind)
        else:
            continue
        kind, data_shape, scale_shape = form
        with torch.device("meta"):
            layer = PackedLinear(kind, weight.shape, data_shape, scale_shape, bias=module.bias is not None)
        if module.bias is not None:
            layer.bias = module.bias
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer)
    return found


def stored(weight: Weight) -> Packed:
    """A matrix as the file has it."""
    packed = weight.packed()
    assert packed is not None
    return packed


def in_place(weight: Weight, make: Callable[[Weight], Packed] | None, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a tensor is used from the file's memory map as it is, or is too small to matter."""
    if device.type != "cpu":
        return False
    if make is not None:
        return make is stored and len(weight.pieces) == 1 and not weight.swapped
    return len(weight.shape) < 2 or weight.in_map(dtype)


def add_loras(
    model: nn.Module,
    weights: PartWeights,
    matrices: dict[str, Callable[[Weight], Packed]],
    device: torch.device,
) -> None:
    """Give the layers that stay as they are in the file what LoRAs add; all others have it in their weights."""
    for name, make in matrices.items():
        if make is stored and (deltas := weights.deltas.get(name)):
            layer = model.get_submodule(name.removesuffix(".weight"))
            layer.lora = [(d.start, d.up.float().to(device), d.down.float().to(device), d.factor) for d in deltas]


def finish(model: nn.Module, weights: PartWeights, device: torch.device) -> None:
    """What a model needs besides its parameters: the position table, the known tokens, or where the latents lie."""
    known = getattr(weights.config, "known", None)
    if known is not None:
        model.known = torch.tensor(known, device=device)
    if isinstance(model, MMDiT):
        table = weights.weight("pos_embed")
        plain = table.kind in DENSE or (table.kind in FLOAT8 and not any(table.scales))
        # in the memory map where it can be, since a run needs a small part of it only
        model.pos_embed = weights.file.raw(table.pieces[0]).view(table.shape) if plain else table.floats()
    if weights.part.name == "VAE":
        model.latents = LatentFormat(weights.extras.latent_scale, weights.extras.latent_shift)
