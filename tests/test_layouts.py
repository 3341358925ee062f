"""Other layouts' names: diffusers' models and ours give the same through the tables, and llama.cpp's are gguf's own."""

import pytest
import torch
from diffusers import AutoencoderKL
from gguf.constants import MODEL_ARCH
from gguf.tensor_mapping import get_tensor_name_map
from reference_layouts import FORMS, as_ours, shapes_of, transformer

from resd3_medium.layouts import Origin, diffusers_transformer, llama_t5, shapes_as_ours
from resd3_medium.mmdit import MMDiT, MMDiTConfig
from resd3_medium.refine_other_impls import T5Config, T5Encoder
from resd3_medium.vae import VAE, VAEConfig


@pytest.mark.parametrize("form", FORMS)
def test_a_transformer_of_diffusers_gives_the_same_through_the_table(form):
    theirs = transformer(form)
    tensors = as_ours(theirs.state_dict(), "transformer")
    assert sum(t.numel() for t in tensors.values()) == sum(t.numel() for t in theirs.state_dict().values())
    ours = MMDiT(MMDiTConfig.from_shapes(shapes_of(tensors))).eval().requires_grad_(False)
    ours.pos_embed = tensors.pop("pos_embed")
    ours.load_state_dict(tensors)
    latent, context, pooled = torch.randn(2, 16, 8, 12), torch.randn(2, 5, 96), torch.randn(2, 80)
    timestep = torch.tensor([900.0, 30.0])
    there = theirs(latent, context, pooled, timestep).sample
    here = ours(latent, timestep, context, pooled, ours.positions(8, 12))
    assert (here - there).abs().max() < 1e-5 * there.abs().max()


def test_an_autoencoder_of_diffusers_gives_the_same_through_the_table():
    torch.manual_seed(0)
    theirs = AutoencoderKL(
        block_out_channels=(32, 64, 96),
        layers_per_block=2,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()
    tensors = as_ours(theirs.state_dict(), "vae")
    assert tensors.keys() == as_ours(dict(reversed(theirs.state_dict().items())), "vae").keys()
    ours = VAE(VAEConfig.from_shapes(shapes_of(tensors))).eval()
    ours.load_state_dict(tensors)
    image, latent = torch.randn(1, 3, 32, 24), torch.randn(1, 4, 4, 6)
    with torch.no_grad():
        for here, there in (
            (ours.encoder(image), theirs.encoder(image)),
            (ours.decoder(latent), theirs.decoder(latent)),
        ):
            assert (here - there).abs().max() < 1e-5 * there.abs().max()


def test_t5_has_the_names_of_gguf():
    config = T5Config(depth=12, width=8, hidden=8, heads=2, head_width=4, buckets=4, vocabulary=9)
    ours = shapes_of(T5Encoder(config).state_dict())
    names = get_tensor_name_map(MODEL_ARCH.T5ENCODER, config.depth)
    there = {}
    for name, shape in ours.items():
        assert llama_t5(name) == Origin((names.get_name(name, try_suffixes=(".weight",)),))
        there[llama_t5(name).names[0]] = shape
    assert shapes_as_ours(there, "t5") == ours


def test_only_the_last_norms_have_their_halves_swapped():
    block = "joint_blocks.{}.context_block.adaLN_modulation.1.{}".format
    swapped = [diffusers_transformer(block(i, leaf), depth=12) for i in (1, 10, 11) for leaf in ("weight", "bias")]
    assert [source.swapped for source in swapped] == [False] * 4 + [True] * 2
    assert diffusers_transformer("final_layer.adaLN_modulation.1.bias", 12) == Origin(("norm_out.linear.bias",), True)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("transformer", "transformer_blocks.0.attn.to_w.weight"),
        ("transformer", "single_transformer_blocks.0.norm.linear.weight"),
        ("transformer", "joint_blocks.0.x_block.attn.qkv.weight"),
        ("vae", "decoder.up_blocks.7.resnets.0.conv1.weight"),
        ("vae", "quant_conv.weight"),
        ("t5", "dec.blk.0.attn_q.weight"),
    ],
)
def test_a_name_that_the_layout_does_not_know_is_named(kind, name):
    with pytest.raises(KeyError, match=name):
        shapes_as_ours({name: (8, 8)}, kind)


def test_a_matrix_that_lacks_a_part_is_left_out_and_one_with_parts_that_do_not_fit_is_refused():
    p = "transformer_blocks.0.attn."
    assert shapes_as_ours({f"{p}to_q.weight": (8, 8), f"{p}to_k.weight": (8, 8)}, "transformer") == {}
    parts = {f"{p}to_q.weight": (8, 8), f"{p}to_k.weight": (8, 8), f"{p}to_v.weight": (8, 9)}
    with pytest.raises(ValueError, match=r"to_v.*\[8, 9\]"):
        shapes_as_ours(parts, "transformer")
