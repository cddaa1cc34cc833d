"""Small-config Hugging Face models: one per family, random weights, no download."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.zoo.inputs import (
    DECODER,
    IMAGE,
    TEXT,
    WIDE,
    ids,
    image,
    large_image,
    noise,
    pair,
    photo,
    plain_text,
    text,
    wave,
)

Inputs = Callable[[], Mapping[str, object]]


@dataclass(frozen=True)
class Family:
    """How to build one small model of a family, and what to call it with."""

    config: str
    model: str
    settings: Mapping[str, object]
    inputs: Inputs
    in_float64: bool = False
    """Compared in float64: the model chooses by top-k or argmax."""

    def build(self) -> nn.Module:
        """Returns the model with random weights, in eval mode."""
        import transformers

        config = getattr(transformers, self.config)(**self.settings)
        torch.manual_seed(0)
        return getattr(transformers, self.model)(config).eval()


FIRST: Mapping[str, Family] = {
    "bert": Family("BertConfig", "BertModel", WIDE, text),
    "roberta": Family("RobertaConfig", "RobertaModel", WIDE, text),
    "distilbert": Family(
        "DistilBertConfig",
        "DistilBertModel",
        {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "vocab_size": 128},
        text,
    ),
    "albert": Family("AlbertConfig", "AlbertModel", {**WIDE, "embedding_size": 32}, text),
    "electra": Family("ElectraConfig", "ElectraModel", {**WIDE, "embedding_size": 32}, text),
    "mpnet": Family("MPNetConfig", "MPNetModel", WIDE, text),
    "deberta_v2": Family("DebertaV2Config", "DebertaV2Model", WIDE, text),
    "camembert": Family("CamembertConfig", "CamembertModel", WIDE, text),
    "modernbert": Family(
        "ModernBertConfig",
        "ModernBertModel",
        {**WIDE, "pad_token_id": 0, "reference_compile": False},
        text,
    ),
    "gpt2": Family(
        "GPT2Config",
        "GPT2LMHeadModel",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128, "use_cache": False},
        plain_text,
    ),
    "gpt_neox": Family(
        "GPTNeoXConfig", "GPTNeoXForCausalLM", {**WIDE, "use_cache": False}, plain_text
    ),
    "opt": Family(
        "OPTConfig",
        "OPTForCausalLM",
        {**TEXT, "ffn_dim": 128, "word_embed_proj_dim": 64, "use_cache": False},
        plain_text,
    ),
    "llama": Family("LlamaConfig", "LlamaForCausalLM", DECODER, plain_text),
    "mistral": Family("MistralConfig", "MistralForCausalLM", DECODER, plain_text),
    "qwen2": Family("Qwen2Config", "Qwen2ForCausalLM", DECODER, plain_text),
    "qwen3": Family("Qwen3Config", "Qwen3ForCausalLM", {**DECODER, "head_dim": 16}, plain_text),
    "gemma": Family("GemmaConfig", "GemmaForCausalLM", {**DECODER, "head_dim": 16}, plain_text),
    "gemma2": Family("Gemma2Config", "Gemma2ForCausalLM", {**DECODER, "head_dim": 16}, plain_text),
    "phi3": Family("Phi3Config", "Phi3ForCausalLM", {**DECODER, "pad_token_id": 0}, plain_text),
    "bloom": Family(
        "BloomConfig",
        "BloomForCausalLM",
        {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128, "use_cache": False},
        plain_text,
    ),
    "falcon": Family("FalconConfig", "FalconForCausalLM", {**TEXT, "use_cache": False}, plain_text),
    "t5": Family(
        "T5Config",
        "T5Model",
        {
            "d_model": 64,
            "num_layers": 2,
            "num_heads": 4,
            "d_ff": 128,
            "d_kv": 16,
            "vocab_size": 128,
            "use_cache": False,
        },
        pair,
    ),
    "bart": Family(
        "BartConfig",
        "BartModel",
        {
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128,
            "vocab_size": 128,
            "use_cache": False,
        },
        pair,
    ),
    "vit": Family("ViTConfig", "ViTModel", IMAGE, image),
    "deit": Family("DeiTConfig", "DeiTModel", IMAGE, image),
    "beit": Family("BeitConfig", "BeitModel", {**IMAGE, "use_relative_position_bias": True}, image),
    "dinov2": Family("Dinov2Config", "Dinov2Model", IMAGE, image),
    "clip_vision": Family("CLIPVisionConfig", "CLIPVisionModel", IMAGE, image),
    "siglip_vision": Family("SiglipVisionConfig", "SiglipVisionModel", IMAGE, image),
    "swin": Family(
        "SwinConfig",
        "SwinModel",
        {
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 16,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 4,
        },
        image,
    ),
    "swinv2": Family(
        "Swinv2Config",
        "Swinv2Model",
        {
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 16,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 4,
        },
        image,
    ),
    "convnext": Family(
        "ConvNextConfig",
        "ConvNextModel",
        {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]},
        large_image,
    ),
    "resnet": Family(
        "ResNetConfig",
        "ResNetModel",
        {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [2, 2]},
        large_image,
    ),
    "mobilevit": Family("MobileViTConfig", "MobileViTModel", {"image_size": 128}, photo),
    "segformer": Family(
        "SegformerConfig",
        "SegformerForSemanticSegmentation",
        {
            "hidden_sizes": [16, 32, 48, 64],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 4, 4],
            "decoder_hidden_size": 32,
        },
        large_image,
    ),
    "yolos": Family(
        "YolosConfig",
        "YolosForObjectDetection",
        {**IMAGE, "image_size": [32, 32], "num_detection_tokens": 8},
        image,
    ),
    "wav2vec2": Family(
        "Wav2Vec2Config",
        "Wav2Vec2Model",
        {
            **WIDE,
            "conv_dim": [32] * 7,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
        },
        wave,
    ),
    "hubert": Family(
        "HubertConfig",
        "HubertModel",
        {
            **WIDE,
            "conv_dim": [32] * 7,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
        },
        wave,
    ),
    "whisper_encoder": Family(
        "WhisperConfig",
        "WhisperModel",
        {
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128,
            "vocab_size": 128,
            "max_source_positions": 50,
            "num_mel_bins": 16,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
            "use_cache": False,
        },
        lambda: {"input_features": noise(1, 16, 100), "decoder_input_ids": ids(8)[:1]},
    ),
    "clip": Family(
        "CLIPConfig",
        "CLIPModel",
        {
            "text_config": {**WIDE, "projection_dim": 32},
            "vision_config": {**IMAGE, "projection_dim": 32},
            "projection_dim": 32,
        },
        lambda: {
            **image(),
            "input_ids": ids(),
            "attention_mask": torch.ones(2, 16, dtype=torch.long),
        },
    ),
    "rt_detr": Family(
        "RTDetrConfig",
        "RTDetrForObjectDetection",
        {
            "num_queries": 10,
            "d_model": 32,
            "encoder_hidden_dim": 32,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "decoder_in_channels": [32, 32, 32],
        },
        large_image,
        in_float64=True,
    ),
    "layoutlm": Family(
        "LayoutLMConfig",
        "LayoutLMModel",
        WIDE,
        lambda: {"input_ids": ids(), "bbox": torch.ones(2, 16, 4, dtype=torch.long)},
    ),
    "mobilebert": Family(
        "MobileBertConfig",
        "MobileBertModel",
        {**WIDE, "embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32},
        text,
    ),
    "funnel": Family(
        "FunnelConfig",
        "FunnelBaseModel",
        {
            "d_model": 64,
            "n_head": 4,
            "d_head": 16,
            "d_inner": 128,
            "block_sizes": [1, 1],
            "vocab_size": 128,
        },
        text,
    ),
    "xlnet": Family(
        "XLNetConfig",
        "XLNetModel",
        {
            "d_model": 64,
            "n_layer": 2,
            "n_head": 4,
            "d_inner": 128,
            "vocab_size": 128,
            "use_mems_eval": False,
        },
        plain_text,
    ),
    "fnet": Family("FNetConfig", "FNetModel", WIDE, plain_text),
    "mamba": Family(
        "MambaConfig",
        "MambaForCausalLM",
        {"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 128, "use_cache": False},
        plain_text,
    ),
}
