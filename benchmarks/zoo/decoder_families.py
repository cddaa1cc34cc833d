"""Decoders, mixtures of experts, state-space and recurrent models, encoders, translators."""

from collections.abc import Mapping

import torch

from benchmarks.zoo.family import Family
from benchmarks.zoo.inputs import (
    DECODER,
    SEQUENCES,
    WIDE,
    ids,
    masked_pair,
    pair,
    plain_text,
    text,
)

_HEAD_OF_16 = {"head_dim": 16, "pad_token_id": 0}
_GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128, "use_cache": False}
_T5 = {
    "d_model": 64,
    "num_layers": 2,
    "num_heads": 4,
    "d_ff": 128,
    "d_kv": 16,
    "vocab_size": 128,
    "use_cache": False,
}
_LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "first_k_dense_replace": 2,
}
_EXPERTS = {"num_experts_per_tok": 2}


def _decoders() -> dict[str, Family]:
    """Returns the families whose classes are called ``<prefix>ForCausalLM``."""
    ends = {"pad_token_id": 0, "eos_token_id": 1}
    prefixes: dict[str, tuple[str, Mapping[str, object]]] = {
        "cohere": ("Cohere", {}),
        "cohere2": ("Cohere2", {}),
        "olmo": ("Olmo", ends),
        "olmo2": ("Olmo2", ends),
        "stablelm": ("StableLm", {}),
        "starcoder2": ("Starcoder2", {}),
        "persimmon": ("Persimmon", {}),
        "phi": ("Phi", {}),
        "granite": ("Granite", {}),
        "nemotron": ("Nemotron", {}),
        "helium": ("Helium", _HEAD_OF_16),
        "glm": ("Glm", _HEAD_OF_16),
        "glm4": ("Glm4", _HEAD_OF_16),
        "ernie4_5": ("Ernie4_5", {"head_dim": 16}),
        "exaone4": ("Exaone4", {}),
        "smollm3": ("SmolLM3", {"pad_token_id": 0}),
        "seed_oss": ("SeedOss", {"head_dim": 16}),
        "arcee": ("Arcee", {}),
        "apertus": ("Apertus", {"pad_token_id": 0}),
        "diffllama": ("DiffLlama", {}),
        "doge": ("Doge", {}),
        "bitnet": ("BitNet", {"pad_token_id": 0}),
        "modernbert_decoder": ("ModernBertDecoder", {"pad_token_id": 0}),
        "falcon_mamba": ("FalconMamba", {}),
        "mamba2": (
            "Mamba2",
            {"num_heads": 4, "head_dim": 32, "n_groups": 1, "state_size": 8, "chunk_size": 8},
        ),
        "deepseek_v2": ("DeepseekV2", {**_LATENT, "n_routed_experts": 4}),
        "deepseek_v3": ("DeepseekV3", {**_LATENT, "n_routed_experts": 4}),
    }
    return {
        name: Family(f"{prefix}Config", f"{prefix}ForCausalLM", {**DECODER, **more}, plain_text)
        for name, (prefix, more) in prefixes.items()
    }


def _encoders() -> dict[str, Family]:
    """Returns the families whose classes are called ``<prefix>Model``."""
    prefixes: dict[str, tuple[str, Mapping[str, object]]] = {
        "convbert": ("ConvBert", {"embedding_size": 32, "head_ratio": 2, "num_groups": 1}),
        "deberta": (
            "Deberta",
            {
                "relative_attention": True,
                "pos_att_type": ["p2c", "c2p"],
                "max_relative_positions": 16,
            },
        ),
        "data2vec_text": ("Data2VecText", {}),
        "ernie": ("Ernie", {}),
        "ibert": ("IBert", {}),
        "luke": ("Luke", {"entity_vocab_size": 10, "entity_emb_size": 32}),
        "markuplm": ("MarkupLM", {}),
        "megatron_bert": ("MegatronBert", {}),
        "rembert": ("RemBert", {"input_embedding_size": 32}),
        "roberta_prelayernorm": ("RobertaPreLayerNorm", {}),
        "splinter": ("Splinter", {}),
        "xlm_roberta_xl": ("XLMRobertaXL", {}),
        "yoso": ("Yoso", {}),
        "esm": (
            "Esm",
            {"pad_token_id": 1, "mask_token_id": 2, "position_embedding_type": "rotary"},
        ),
        "big_bird": ("BigBird", {"attention_type": "original_full"}),
        "canine": (
            "Canine",
            {"num_hash_buckets": 64, "local_transformer_stride": 8, "downsampling_rate": 4},
        ),
    }
    return {
        name: Family(f"{prefix}Config", f"{prefix}Model", {**WIDE, **more}, text)
        for name, (prefix, more) in prefixes.items()
    }


def _translators() -> dict[str, Family]:
    """Returns encoders with decoders whose classes are called ``<prefix>Model``."""
    prefixes: dict[str, tuple[str, Mapping[str, object]]] = {
        "mbart": ("MBart", {}),
        "marian": ("Marian", {"decoder_start_token_id": 0}),
        "blenderbot": ("Blenderbot", {}),
        "blenderbot_small": ("BlenderbotSmall", {}),
        "m2m_100": ("M2M100", {}),
        "plbart": ("PLBart", {}),
    }
    return {
        name: Family(f"{prefix}Config", f"{prefix}Model", {**SEQUENCES, **more}, pair)
        for name, (prefix, more) in prefixes.items()
    }


DECODERS: Mapping[str, Family] = {
    **_decoders(),
    "olmoe": Family(
        "OlmoeConfig",
        "OlmoeForCausalLM",
        {**DECODER, **_EXPERTS, "num_experts": 4, "pad_token_id": 0, "eos_token_id": 1},
        plain_text,
        in_float64=True,
    ),
    "granitemoe": Family(
        "GraniteMoeConfig",
        "GraniteMoeForCausalLM",
        {**DECODER, **_EXPERTS, "num_local_experts": 4},
        plain_text,
        in_float64=True,
    ),
    "gpt_neo": Family(
        "GPTNeoConfig",
        "GPTNeoForCausalLM",
        {
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "vocab_size": 128,
            "max_position_embeddings": 64,
            "window_size": 8,
            "use_cache": False,
        },
        plain_text,
    ),
    "gpt_bigcode": Family("GPTBigCodeConfig", "GPTBigCodeForCausalLM", _GPT, plain_text),
    "codegen": Family("CodeGenConfig", "CodeGenForCausalLM", {**_GPT, "rotary_dim": 8}, plain_text),
    "biogpt": Family("BioGptConfig", "BioGptForCausalLM", {**WIDE, "use_cache": False}, plain_text),
    "ctrl": Family("CTRLConfig", "CTRLModel", {**_GPT, "dff": 128}, plain_text),
    "musicgen_decoder": Family(
        "MusicgenDecoderConfig",
        "MusicgenForCausalLM",
        {
            "vocab_size": 64,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 128,
            "num_codebooks": 2,
            "use_cache": False,
            "pad_token_id": 0,
        },
        lambda: {"input_ids": ids(8).clamp(max=60).reshape(4, 4)},
    ),
    **_encoders(),
    "bert_generation": Family("BertGenerationConfig", "BertGenerationEncoder", WIDE, text),
    "nystromformer": Family(
        "NystromformerConfig",
        "NystromformerModel",
        {
            **WIDE,
            "num_hidden_layers": 1,
            "num_landmarks": 4,
            "segment_means_seq_len": 16,
            "max_position_embeddings": 64,
        },
        text,
    ),
    "flaubert": Family(
        "FlaubertConfig",
        "FlaubertModel",
        {"emb_dim": 64, "n_layers": 2, "n_heads": 4, "n_words": 128},
        plain_text,
    ),
    "lilt": Family(
        "LiltConfig",
        "LiltModel",
        {**WIDE, "hidden_size": 96},
        lambda: {**text(), "bbox": torch.ones(2, 16, 4, dtype=torch.long)},
    ),
    **_translators(),
    "mt5": Family("MT5Config", "MT5Model", _T5, pair),
    "umt5": Family("UMT5Config", "UMT5Model", _T5, pair),
    "longt5": Family("LongT5Config", "LongT5Model", {**_T5, "local_radius": 4}, masked_pair),
    "longt5_global": Family(
        "LongT5Config",
        "LongT5Model",
        {
            **_T5,
            "local_radius": 4,
            "encoder_attention_type": "transient-global",
            "global_block_size": 4,
        },
        masked_pair,
    ),
}
