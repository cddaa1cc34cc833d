"""Speech, sound, images with text, and time series."""

from collections.abc import Mapping

import torch

from benchmarks.zoo.family import Family
from benchmarks.zoo.inputs import (
    BRANCHES,
    IMAGE,
    SPEECH,
    WIDE,
    captioned,
    ids,
    image,
    large_image,
    noise,
    plain_text,
    text,
    wave,
)

_LAYERS = {name: size for name, size in WIDE.items() if name != "vocab_size"}
_TWO_TOWERS = {"text_config": WIDE, "vision_config": IMAGE, "projection_dim": 32}
_SERIES = {
    **BRANCHES,
    "prediction_length": 4,
    "context_length": 8,
    "lags_sequence": [1, 2],
    "num_time_features": 1,
    "use_cache": False,
}


def _series() -> Mapping[str, object]:
    return {
        "past_values": noise(2, 10),
        "past_time_features": noise(2, 10, 1),
        "past_observed_mask": torch.ones(2, 10),
        "future_values": noise(2, 4),
        "future_time_features": noise(2, 4, 1),
    }


SPEECH_AND_OTHERS: Mapping[str, Family] = {
    "ast": Family(
        "ASTConfig",
        "ASTModel",
        {
            **_LAYERS,
            "patch_size": 8,
            "max_length": 32,
            "num_mel_bins": 16,
            "frequency_stride": 8,
            "time_stride": 8,
        },
        lambda: {"input_values": noise(1, 32, 16)},
    ),
    "sew": Family(
        "SEWConfig",
        "SEWModel",
        {
            **SPEECH,
            "squeeze_factor": 2,
            "conv_stride": [5, 2, 2, 2, 2, 2, 2],
            "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
        },
        wave,
    ),
    "unispeech": Family("UniSpeechConfig", "UniSpeechModel", SPEECH, wave),
    "unispeech_sat": Family("UniSpeechSatConfig", "UniSpeechSatModel", SPEECH, wave),
    "data2vec_audio": Family(
        "Data2VecAudioConfig",
        "Data2VecAudioModel",
        {**SPEECH, "conv_pos_kernel_size": 3, "num_conv_pos_embeddings": 2},
        wave,
    ),
    "wav2vec2_bert": Family(
        "Wav2Vec2BertConfig",
        "Wav2Vec2BertModel",
        {**WIDE, "feature_projection_input_dim": 16},
        lambda: {"input_features": noise(1, 20, 16)},
    ),
    "speecht5": Family(
        "SpeechT5Config",
        "SpeechT5ForSpeechToText",
        {
            "hidden_size": 64,
            "vocab_size": 128,
            **{name: value for name, value in BRANCHES.items() if name != "d_model"},
            **{name: value for name, value in SPEECH.items() if "conv" in name},
            "use_cache": False,
        },
        lambda: {**wave(), "decoder_input_ids": ids(8)[:1]},
    ),
    "moonshine": Family(
        "MoonshineConfig",
        "MoonshineModel",
        {
            "hidden_size": 64,
            "intermediate_size": 128,
            "encoder_num_hidden_layers": 2,
            "decoder_num_hidden_layers": 2,
            "encoder_num_attention_heads": 4,
            "decoder_num_attention_heads": 4,
            "vocab_size": 128,
            "use_cache": False,
            "pad_token_id": 0,
        },
        lambda: {**wave(), "decoder_input_ids": ids(8)[:1]},
    ),
    "parakeet": Family(
        "ParakeetEncoderConfig",
        "ParakeetEncoder",
        {**_LAYERS, "subsampling_conv_channels": 16, "num_mel_bins": 16},
        lambda: {"input_features": noise(1, 64, 16)},
    ),
    "clap_audio": Family(
        "ClapAudioConfig",
        "ClapAudioModel",
        {
            "window_size": 4,
            "num_mel_bins": 16,
            "spec_size": 64,
            "patch_size": 4,
            "patch_stride": [4, 4],
            "hidden_size": 64,
            "patch_embeds_hidden_size": 16,
            "depths": [1, 1],
            "num_attention_heads": [2, 4],
            "num_hidden_layers": 2,
        },
        lambda: {"input_features": noise(1, 1, 256, 16)},
    ),
    "dac": Family(
        "DacConfig",
        "DacModel",
        {
            "encoder_hidden_size": 8,
            "downsampling_ratios": [2, 2],
            "decoder_hidden_size": 32,
            "upsampling_ratios": [2, 2],
            "n_codebooks": 2,
            "codebook_size": 16,
            "codebook_dim": 4,
        },
        lambda: {"input_values": noise(1, 1, 256)},
        in_float64=True,
    ),
    "univnet": Family(
        "UnivNetConfig",
        "UnivNetModel",
        {
            "model_hidden_channels": 8,
            "model_in_channels": 8,
            "num_mel_bins": 16,
            "resblock_kernel_sizes": [3],
            "resblock_stride_sizes": [4],
            "resblock_dilation_sizes": [[1, 3]],
            "kernel_predictor_hidden_channels": 8,
        },
        lambda: {"input_features": noise(1, 20, 16), "noise_sequence": noise(1, 20, 8)},
    ),
    "hifigan": Family(
        "SpeechT5HifiGanConfig",
        "SpeechT5HifiGan",
        {"model_in_dim": 16, "upsample_initial_channel": 32},
        lambda: {"spectrogram": noise(20, 16)},
    ),
    "siglip": Family(
        "SiglipConfig", "SiglipModel", {"text_config": WIDE, "vision_config": IMAGE}, captioned
    ),
    "altclip": Family(
        "AltCLIPConfig",
        "AltCLIPModel",
        {**_TWO_TOWERS, "text_config": {**WIDE, "project_dim": 32}},
        captioned,
    ),
    "chinese_clip": Family("ChineseCLIPConfig", "ChineseCLIPModel", _TWO_TOWERS, captioned),
    "metaclip_2": Family("MetaClip2Config", "MetaClip2Model", _TWO_TOWERS, captioned),
    "clipseg": Family("CLIPSegConfig", "CLIPSegModel", _TWO_TOWERS, captioned),
    "blip": Family("BlipConfig", "BlipModel", _TWO_TOWERS, captioned),
    "groupvit_vision": Family(
        "GroupViTVisionConfig",
        "GroupViTVisionModel",
        {
            **{name: value for name, value in IMAGE.items() if name != "num_hidden_layers"},
            "depths": [1, 1, 1],
            "num_group_tokens": [8, 4, 0],
            "num_output_groups": [8, 4, 0],
        },
        image,
        in_float64=True,
    ),
    "align_vision": Family(
        "AlignVisionConfig",
        "AlignVisionModel",
        {"width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 64},
        large_image,
    ),
    "owlvit_vision": Family("OwlViTVisionConfig", "OwlViTVisionModel", IMAGE, image),
    "flava_image": Family("FlavaImageConfig", "FlavaImageModel", IMAGE, image),
    "pixtral_vision": Family(
        "PixtralVisionConfig",
        "PixtralVisionModel",
        IMAGE,
        lambda: {"pixel_values": noise(1, 3, 32, 32), "image_sizes": [(32, 32)]},
    ),
    "idefics3_vision": Family("Idefics3VisionConfig", "Idefics3VisionTransformer", IMAGE, image),
    "aimv2": Family("Aimv2VisionConfig", "Aimv2VisionModel", IMAGE, image),
    "visual_bert": Family(
        "VisualBertConfig",
        "VisualBertModel",
        {**WIDE, "visual_embedding_dim": 32},
        lambda: {**text(), "visual_embeds": noise(2, 4, 32)},
    ),
    "lxmert": Family(
        "LxmertConfig",
        "LxmertModel",
        {**WIDE, "l_layers": 1, "x_layers": 1, "r_layers": 1, "visual_feat_dim": 32},
        lambda: {**text(), "visual_feats": noise(2, 4, 32), "visual_pos": noise(2, 4, 4)},
    ),
    "git": Family(
        "GitConfig", "GitModel", {**WIDE, "vision_config": IMAGE, "use_cache": False}, captioned
    ),
    "blip2_qformer": Family(
        "Blip2QFormerConfig",
        "Blip2QFormerModel",
        {**_LAYERS, "encoder_hidden_size": 32, "cross_attention_frequency": 1},
        lambda: {"query_embeds": noise(2, 4, 64), "encoder_hidden_states": noise(2, 16, 32)},
    ),
    "trocr": Family(
        "TrOCRConfig",
        "TrOCRForCausalLM",
        {
            "vocab_size": 128,
            "d_model": 64,
            "decoder_layers": 2,
            "decoder_attention_heads": 4,
            "decoder_ffn_dim": 128,
            "use_cache": False,
        },
        plain_text,
    ),
    "patchtsmixer": Family(
        "PatchTSMixerConfig",
        "PatchTSMixerModel",
        {
            "context_length": 32,
            "patch_length": 4,
            "patch_stride": 4,
            "num_input_channels": 2,
            "d_model": 16,
            "num_layers": 2,
            "gated_attn": True,
            "self_attn": True,
            "self_attn_heads": 2,
        },
        lambda: {"past_values": noise(2, 32, 2)},
    ),
    "time_series_transformer": Family(
        "TimeSeriesTransformerConfig", "TimeSeriesTransformerModel", _SERIES, _series
    ),
    "informer": Family(
        "InformerConfig",
        "InformerModel",
        {**_SERIES, "attention_type": "full", "distil": False},
        _series,
    ),
}
