"""Small-config Hugging Face models: one per family, random weights, no download."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Inputs = Callable[[], Mapping[str, object]]

_TEXT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128}
_WIDE = {**_TEXT, "intermediate_size": 128}
_DECODER = {**_WIDE, "num_key_value_heads": 2, "max_position_embeddings": 64, "use_cache": False}
_IMAGE = {
    **{k: v for k, v in _WIDE.items() if k != "vocab_size"},
    "image_size": 32,
    "patch_size": 8,
}


def _ids(length: int = 16) -> Tensor:
    return torch.randint(3, 100, (2, length), generator=torch.Generator().manual_seed(0))


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _text() -> Mapping[str, object]:
    return {"input_ids": _ids(), "attention_mask": torch.ones(2, 16, dtype=torch.long)}


def _plain_text() -> Mapping[str, object]:
    return {"input_ids": _ids()}


def _pair() -> Mapping[str, object]:
    return {"input_ids": _ids(), "decoder_input_ids": _ids(8)}


def _image() -> Mapping[str, object]:
    return {"pixel_values": _noise(2, 3, 32, 32)}


def _large_image() -> Mapping[str, object]:
    return {"pixel_values": _noise(1, 3, 64, 64)}


def _photo() -> Mapping[str, object]:
    return {"pixel_values": _noise(2, 3, 128, 128)}


def _wave() -> Mapping[str, object]:
    return {"input_values": _noise(1, 4000)}


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


FAMILIES: Mapping[str, Family] = {
    "bert": Family("BertConfig", "BertModel", _WIDE, _text),
    "roberta": Family("RobertaConfig", "RobertaModel", _WIDE, _text),
    "distilbert": Family(
        "DistilBertConfig",
        "DistilBertModel",
        {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "vocab_size": 128},
        _text,
    ),
    "albert": Family("AlbertConfig", "AlbertModel", {**_WIDE, "embedding_size": 32}, _text),
    "electra": Family("ElectraConfig", "ElectraModel", {**_WIDE, "embedding_size": 32}, _text),
    "mpnet": Family("MPNetConfig", "MPNetModel", _WIDE, _text),
    "deberta_v2": Family("DebertaV2Config", "DebertaV2Model", _WIDE, _text),
    "camembert": Family("CamembertConfig", "CamembertModel", _WIDE, _text),
    "modernbert": Family(
        "ModernBertConfig",
        "ModernBertModel",
        {**_WIDE, "pad_token_id": 0, "reference_compile": False},
        _text,
    ),
    "gpt2": Family(
        "GPT2Config",
        "GPT2LMHeadModel",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128, "use_cache": False},
        _plain_text,
    ),
    "gpt_neox": Family(
        "GPTNeoXConfig", "GPTNeoXForCausalLM", {**_WIDE, "use_cache": False}, _plain_text
    ),
    "opt": Family(
        "OPTConfig",
        "OPTForCausalLM",
        {**_TEXT, "ffn_dim": 128, "word_embed_proj_dim": 64, "use_cache": False},
        _plain_text,
    ),
    "llama": Family("LlamaConfig", "LlamaForCausalLM", _DECODER, _plain_text),
    "mistral": Family("MistralConfig", "MistralForCausalLM", _DECODER, _plain_text),
    "qwen2": Family("Qwen2Config", "Qwen2ForCausalLM", _DECODER, _plain_text),
    "qwen3": Family("Qwen3Config", "Qwen3ForCausalLM", {**_DECODER, "head_dim": 16}, _plain_text),
    "gemma": Family("GemmaConfig", "GemmaForCausalLM", {**_DECODER, "head_dim": 16}, _plain_text),
    "gemma2": Family(
        "Gemma2Config", "Gemma2ForCausalLM", {**_DECODER, "head_dim": 16}, _plain_text
    ),
    "phi3": Family("Phi3Config", "Phi3ForCausalLM", {**_DECODER, "pad_token_id": 0}, _plain_text),
    "bloom": Family(
        "BloomConfig",
        "BloomForCausalLM",
        {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128, "use_cache": False},
        _plain_text,
    ),
    "falcon": Family(
        "FalconConfig", "FalconForCausalLM", {**_TEXT, "use_cache": False}, _plain_text
    ),
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
        _pair,
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
        _pair,
    ),
    "vit": Family("ViTConfig", "ViTModel", _IMAGE, _image),
    "deit": Family("DeiTConfig", "DeiTModel", _IMAGE, _image),
    "beit": Family(
        "BeitConfig", "BeitModel", {**_IMAGE, "use_relative_position_bias": True}, _image
    ),
    "dinov2": Family("Dinov2Config", "Dinov2Model", _IMAGE, _image),
    "clip_vision": Family("CLIPVisionConfig", "CLIPVisionModel", _IMAGE, _image),
    "siglip_vision": Family("SiglipVisionConfig", "SiglipVisionModel", _IMAGE, _image),
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
        _image,
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
        _image,
    ),
    "convnext": Family(
        "ConvNextConfig",
        "ConvNextModel",
        {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]},
        _large_image,
    ),
    "resnet": Family(
        "ResNetConfig",
        "ResNetModel",
        {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [2, 2]},
        _large_image,
    ),
    "mobilevit": Family("MobileViTConfig", "MobileViTModel", {"image_size": 128}, _photo),
    "segformer": Family(
        "SegformerConfig",
        "SegformerForSemanticSegmentation",
        {
            "hidden_sizes": [16, 32, 48, 64],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 4, 4],
            "decoder_hidden_size": 32,
        },
        _large_image,
    ),
    "yolos": Family(
        "YolosConfig",
        "YolosForObjectDetection",
        {**_IMAGE, "image_size": [32, 32], "num_detection_tokens": 8},
        _image,
    ),
    "wav2vec2": Family(
        "Wav2Vec2Config",
        "Wav2Vec2Model",
        {
            **_WIDE,
            "conv_dim": [32] * 7,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
        },
        _wave,
    ),
    "hubert": Family(
        "HubertConfig",
        "HubertModel",
        {
            **_WIDE,
            "conv_dim": [32] * 7,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
        },
        _wave,
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
        lambda: {"input_features": _noise(1, 16, 100), "decoder_input_ids": _ids(8)[:1]},
    ),
    "clip": Family(
        "CLIPConfig",
        "CLIPModel",
        {
            "text_config": {**_WIDE, "projection_dim": 32},
            "vision_config": {**_IMAGE, "projection_dim": 32},
            "projection_dim": 32,
        },
        lambda: {
            **_image(),
            "input_ids": _ids(),
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
        _large_image,
        in_float64=True,
    ),
    "layoutlm": Family(
        "LayoutLMConfig",
        "LayoutLMModel",
        _WIDE,
        lambda: {"input_ids": _ids(), "bbox": torch.ones(2, 16, 4, dtype=torch.long)},
    ),
    "mobilebert": Family(
        "MobileBertConfig",
        "MobileBertModel",
        {**_WIDE, "embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32},
        _text,
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
        _text,
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
        _plain_text,
    ),
    "fnet": Family("FNetConfig", "FNetModel", _WIDE, _plain_text),
    "mamba": Family(
        "MambaConfig",
        "MambaForCausalLM",
        {"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 128, "use_cache": False},
        _plain_text,
    ),
}
