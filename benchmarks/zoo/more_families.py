"""Families whose attention, gates or masks are spelled in other ways than those before."""

from collections.abc import Mapping

import torch

from benchmarks.zoo.family import Family
from benchmarks.zoo.inputs import (
    BRANCHES,
    DECODER,
    IMAGE,
    SEQUENCES,
    SPEECH,
    WIDE,
    ids,
    image,
    large_image,
    noise,
    pair,
    plain_text,
    text,
    wave,
)

_GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128}

MORE: Mapping[str, Family] = {
    "deberta_v2_relative": Family(
        "DebertaV2Config",
        "DebertaV2Model",
        {
            **WIDE,
            "relative_attention": True,
            "position_buckets": 8,
            "max_relative_positions": 16,
            "pos_att_type": ["p2c", "c2p"],
            "share_att_key": True,
        },
        text,
    ),
    "roformer": Family("RoFormerConfig", "RoFormerModel", {**WIDE, "embedding_size": 64}, text),
    "squeezebert": Family(
        "SqueezeBertConfig", "SqueezeBertModel", {**WIDE, "embedding_size": 64}, text
    ),
    "xlm": Family(
        "XLMConfig",
        "XLMModel",
        {"emb_dim": 64, "n_layers": 2, "n_heads": 4, "n_words": 128},
        plain_text,
    ),
    "openai_gpt": Family("OpenAIGPTConfig", "OpenAIGPTModel", _GPT, plain_text),
    "gptj": Family(
        "GPTJConfig",
        "GPTJForCausalLM",
        {**_GPT, "rotary_dim": 8, "use_cache": False},
        plain_text,
    ),
    "mpt": Family(
        "MptConfig",
        "MptForCausalLM",
        {"d_model": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 128, "use_cache": False},
        plain_text,
    ),
    "gemma3": Family(
        "Gemma3TextConfig", "Gemma3ForCausalLM", {**DECODER, "head_dim": 16}, plain_text
    ),
    "xglm": Family(
        "XGLMConfig",
        "XGLMModel",
        {
            "d_model": 64,
            "num_layers": 2,
            "attention_heads": 4,
            "ffn_dim": 128,
            "vocab_size": 128,
            "use_cache": False,
        },
        plain_text,
    ),
    "gpt_neox_japanese": Family(
        "GPTNeoXJapaneseConfig",
        "GPTNeoXJapaneseModel",
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": 128,
            "intermediate_multiple_size": 2,
            "use_cache": False,
        },
        plain_text,
    ),
    "pegasus": Family("PegasusConfig", "PegasusModel", SEQUENCES, pair),
    "prophetnet": Family(
        "ProphetNetConfig",
        "ProphetNetModel",
        {
            "hidden_size": 64,
            "num_encoder_layers": 2,
            "num_decoder_layers": 2,
            "num_encoder_attention_heads": 4,
            "num_decoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128,
            "vocab_size": 128,
            "use_cache": False,
        },
        pair,
    ),
    "detr": Family(
        "DetrConfig",
        "DetrModel",
        {
            **BRANCHES,
            "use_timm_backbone": False,
            "use_pretrained_backbone": False,
            "backbone": None,
            "num_queries": 8,
        },
        large_image,
    ),
    "dpt": Family(
        "DPTConfig",
        "DPTForDepthEstimation",
        {
            **IMAGE,
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [16, 32, 32, 32],
            "fusion_hidden_size": 16,
        },
        image,
    ),
    "levit": Family(
        "LevitConfig",
        "LevitModel",
        {
            "image_size": 64,
            "hidden_sizes": [32, 48, 64],
            "num_attention_heads": [2, 3, 4],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
        },
        lambda: {"pixel_values": noise(2, 3, 64, 64)},
    ),
    "perceiver": Family(
        "PerceiverConfig",
        "PerceiverModel",
        {
            "num_latents": 8,
            "d_latents": 32,
            "d_model": 32,
            "num_blocks": 1,
            "num_self_attends_per_block": 2,
            "num_self_attention_heads": 4,
            "num_cross_attention_heads": 4,
        },
        lambda: {"inputs": noise(2, 16, 32)},
    ),
    "layoutlmv3": Family(
        "LayoutLMv3Config",
        "LayoutLMv3Model",
        {**WIDE, "visual_embed": False, "coordinate_size": 8, "shape_size": 16},
        lambda: {"input_ids": ids(), "bbox": torch.ones(2, 16, 4, dtype=torch.long)},
    ),
    "wavlm": Family("WavLMConfig", "WavLMModel", SPEECH, wave),
    "wav2vec2_conformer": Family("Wav2Vec2ConformerConfig", "Wav2Vec2ConformerModel", SPEECH, wave),
    "speech_to_text": Family(
        "Speech2TextConfig",
        "Speech2TextModel",
        {**SEQUENCES, "input_feat_per_channel": 16, "conv_channels": 32},
        lambda: {"input_features": noise(2, 40, 16), "decoder_input_ids": ids(8)},
    ),
    "patchtst": Family(
        "PatchTSTConfig",
        "PatchTSTModel",
        {
            "d_model": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "context_length": 32,
            "patch_length": 4,
            "patch_stride": 4,
            "num_input_channels": 2,
        },
        lambda: {"past_values": noise(2, 32, 2)},
    ),
}
