"""Tiny models of diffusers, and their tensors under our names."""

import torch
from diffusers import SD3Transformer2DModel

from resd3_medium.layouts import counted, origin, shapes_as_ours

FORMS = {  # of SD3Transformer2DModel
    "sd3": {},
    "sd3.5 medium": {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)},
    "sd3.5 large": {"qk_norm": "rms_norm"},
}


def shapes_of(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def transformer(form: str) -> SD3Transformer2DModel:
    torch.manual_seed(0)
    model = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=16,
        num_layers=3,
        attention_head_dim=64,
        num_attention_heads=2,
        joint_attention_dim=96,
        caption_projection_dim=128,
        pooled_projection_dim=80,
        out_channels=16,
        pos_embed_max_size=12,
        **FORMS[form],
    )
    for parameter in model.parameters():  # norms and biases would else be one and zero, and hide mistakes
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


def as_ours(tensors: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    """The tensors of the other layout under our names, by nothing but the tables."""
    found = {}
    for name, shape in shapes_as_ours(shapes_of(tensors), kind).items():
        source = origin(name, kind, counted(tensors))
        tensor = torch.cat([tensors[other] for other in source.names])
        if source.swapped:
            tensor = torch.cat(tensor.chunk(2)[::-1])
        assert source.reshaped == (tensor.shape != shape)
        found[name] = tensor.reshape(shape)
    return found
