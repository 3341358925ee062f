"""Stable Diffusion 3 and 3.5 by diffusers and transformers, from the same tiny files as ours: the oracle."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.loaders.single_file_utils import (
    convert_ldm_vae_checkpoint,
    convert_sd3_transformer_checkpoint_to_diffusers,
)
from safetensors.torch import load_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from resd3_medium.mmdit import MMDiTConfig
from resd3_medium.vae import VAEConfig

TOKENIZERS = Path(__file__).resolve().parents[1] / "models" / "tokenizers"


def part(folder: Path, prefix: str) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("sd3*.safetensors")
    tensors = load_file(file)
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}


def clip(path: Path, activation: str) -> CLIPTextModelWithProjection:
    tensors = load_file(path)
    width = tensors["text_model.final_layer_norm.weight"].shape[0]
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=tensors["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=len({name.split(".")[3] for name in tensors if ".layers." in name}),
        num_attention_heads=width // 64,
        projection_dim=width,
        hidden_act=activation,
        bos_token_id=0,
        eos_token_id=2,  # selects the pooled token as the released models need it: the one with the greatest id
    )
    model = CLIPTextModelWithProjection(config)
    tensors.setdefault("text_projection.weight", torch.eye(width))
    model.load_state_dict(tensors)
    return model.eval()


def t5(folder: Path) -> T5EncoderModel:
    tensors = load_file(folder / "t5xxl.safetensors")
    first = "encoder.block.0.layer."
    heads = tensors[f"{first}0.SelfAttention.relative_attention_bias.weight"].shape[1]
    config = T5Config(
        vocab_size=tensors["shared.weight"].shape[0],
        d_model=tensors["shared.weight"].shape[1],
        d_kv=tensors[f"{first}0.SelfAttention.q.weight"].shape[0] // heads,
        d_ff=tensors[f"{first}1.DenseReluDense.wi_0.weight"].shape[0],
        num_layers=len({name.split(".")[2] for name in tensors if ".block." in name}),
        num_heads=heads,
        feed_forward_proj="gated-gelu",
    )
    model = T5EncoderModel(config)
    model.load_state_dict(tensors)
    return model.eval()


def transformer(folder: Path) -> SD3Transformer2DModel:
    tensors = part(folder, "model.diffusion_model.")
    sizes = MMDiTConfig.from_shapes({name: tuple(value.shape) for name, value in tensors.items()})
    model = SD3Transformer2DModel(
        sample_size=128,
        patch_size=sizes.patch,
        in_channels=sizes.channels,
        num_layers=sizes.depth,
        attention_head_dim=64,
        num_attention_heads=sizes.width // 64,
        joint_attention_dim=sizes.context_width,
        caption_projection_dim=sizes.width,
        pooled_projection_dim=sizes.pooled_width,
        out_channels=sizes.channels,
        pos_embed_max_size=sizes.grid,
        dual_attention_layers=sizes.dual,
        qk_norm="rms_norm" if sizes.qk_norm else None,
    )
    model.load_state_dict(convert_sd3_transformer_checkpoint_to_diffusers(dict(tensors)))
    return model.eval()


def autoencoder(folder: Path) -> AutoencoderKL:
    tensors = part(folder, "first_stage_model.")
    sizes = VAEConfig.from_shapes({name: tuple(value.shape) for name, value in tensors.items()})
    levels = len(sizes.widths)
    model = AutoencoderKL(
        block_out_channels=sizes.widths,
        layers_per_block=sizes.blocks,
        latent_channels=sizes.channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        force_upcast=False,
    )
    model.load_state_dict(
        convert_ldm_vae_checkpoint({f"first_stage_model.{n}": t for n, t in tensors.items()}, model.config)
    )
    return model.eval()


def clip_tokenizer(filler: str) -> CLIPTokenizer:
    return CLIPTokenizer(
        vocab=str(TOKENIZERS / "vocab.json"),
        merges=str(TOKENIZERS / "merges.txt"),
        pad_token=filler,
        model_max_length=77,
    )


def t5_tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_file=str(TOKENIZERS / "t5_tokenizer.json"), pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def pipeline(folder: Path, with_t5: bool) -> StableDiffusion3Pipeline:
    found = StableDiffusion3Pipeline(
        transformer=transformer(folder),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(folder),
        text_encoder=clip(folder / "clip_l.safetensors", "quick_gelu"),
        tokenizer=clip_tokenizer("<|endoftext|>"),
        text_encoder_2=clip(folder / "clip_g.safetensors", "gelu"),
        tokenizer_2=clip_tokenizer("!"),
        text_encoder_3=t5(folder) if with_t5 else None,
        tokenizer_3=t5_tokenizer() if with_t5 else None,
    )
    found.set_progress_bar_config(disable=True)
    return found
