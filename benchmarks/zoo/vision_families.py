"""Vision, detection, segmentation and video."""

from collections.abc import Callable, Mapping

from benchmarks.zoo.family import Family, Nested
from benchmarks.zoo.inputs import (
    BRANCHES,
    IMAGE,
    SMALL_RESNET,
    SMALL_SWIN,
    image,
    large_image,
    noise,
    photo,
)

_PYRAMID = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}
_HEADED_PYRAMID = {**_PYRAMID, "image_size": 64, "num_attention_heads": [1, 2, 3, 4]}
_NO_BACKBONE = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None}
_ONE_MAP = Nested("ResNetConfig", {**SMALL_RESNET, "out_features": ["stage4"]})
_THREE_MAPS = Nested(
    "ResNetConfig", {**SMALL_RESNET, "out_features": ["stage2", "stage3", "stage4"]}
)
_DETECTOR = {**BRANCHES, **_NO_BACKBONE, "num_queries": 8}
_REAL_TIME = {
    "num_queries": 10,
    "d_model": 32,
    "encoder_hidden_dim": 32,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "decoder_in_channels": [32, 32, 32],
}


def _video(frames: int) -> Callable[[], Mapping[str, object]]:
    return lambda: {"pixel_values": noise(1, frames, 3, 32, 32)}


VISION: Mapping[str, Family] = {
    "bit": Family(
        "BitConfig",
        "BitModel",
        {"embedding_size": 32, "hidden_sizes": [32, 64], "depths": [1, 1], "num_groups": 8},
        large_image,
    ),
    "convnextv2": Family("ConvNextV2Config", "ConvNextV2Model", _PYRAMID, large_image),
    "dinov2_with_registers": Family(
        "Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", IMAGE, image
    ),
    "dinov3_vit": Family("DINOv3ViTConfig", "DINOv3ViTModel", IMAGE, image),
    "focalnet": Family(
        "FocalNetConfig",
        "FocalNetModel",
        {"embed_dim": 16, "depths": [1, 1, 1, 1], "image_size": 64},
        large_image,
    ),
    "hiera": Family(
        "HieraConfig",
        "HieraModel",
        {
            "embed_dim": 16,
            "image_size": [64, 64],
            "depths": [1, 1, 2, 1],
            "num_heads": [1, 2, 4, 8],
        },
        large_image,
    ),
    "ijepa": Family("IJepaConfig", "IJepaModel", IMAGE, image),
    "mobilenet_v1": Family(
        "MobileNetV1Config", "MobileNetV1Model", {"depth_multiplier": 0.25}, large_image
    ),
    "mobilenet_v2": Family(
        "MobileNetV2Config", "MobileNetV2Model", {"depth_multiplier": 0.35}, large_image
    ),
    "mobilevitv2": Family(
        "MobileViTV2Config",
        "MobileViTV2Model",
        {"image_size": 64, "width_multiplier": 0.5},
        large_image,
    ),
    "poolformer": Family("PoolFormerConfig", "PoolFormerModel", _PYRAMID, large_image),
    "pvt": Family("PvtConfig", "PvtModel", _HEADED_PYRAMID, large_image),
    "pvt_v2": Family("PvtV2Config", "PvtV2Model", _HEADED_PYRAMID, large_image),
    "regnet": Family(
        "RegNetConfig", "RegNetModel", {**_PYRAMID, "embedding_size": 16, "groups_width": 8}, photo
    ),
    "swiftformer": Family(
        "SwiftFormerConfig",
        "SwiftFormerModel",
        {"embed_dims": [16, 32, 48, 64], "depths": [1, 1, 1, 1]},
        large_image,
    ),
    "vit_msn": Family("ViTMSNConfig", "ViTMSNModel", IMAGE, image),
    "vit_mae": Family(
        "ViTMAEConfig",
        "ViTMAEModel",
        {**IMAGE, "mask_ratio": 0.0},
        lambda: {**image(), "noise": noise(2, 16)},
    ),
    "vitdet": Family(
        "VitDetConfig",
        "VitDetModel",
        {
            **IMAGE,
            "window_size": 2,
            "window_block_indices": [0],
            "use_relative_position_embeddings": True,
            "residual_block_indices": [1],
        },
        image,
    ),
    "sam_vision": Family(
        "SamVisionConfig",
        "SamVisionModel",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 64,
            "patch_size": 8,
            "output_channels": 16,
            "window_size": 4,
            "global_attn_indexes": [1],
            "mlp_dim": 64,
        },
        large_image,
    ),
    "seggpt": Family(
        "SegGptConfig",
        "SegGptModel",
        {
            **IMAGE,
            "image_size": [64, 32],
            "intermediate_hidden_state_indices": [0, 1],
            "merge_index": 0,
            "pretrain_image_size": 32,
            "decoder_hidden_size": 16,
        },
        lambda: {
            name: noise(1, 3, 32, 32)
            for name in ("pixel_values", "prompt_pixel_values", "prompt_masks")
        },
    ),
    "vivit": Family(
        "VivitConfig",
        "VivitModel",
        {**IMAGE, "num_frames": 4, "tubelet_size": [2, 8, 8]},
        _video(4),
    ),
    "timesformer": Family(
        "TimesformerConfig", "TimesformerModel", {**IMAGE, "num_frames": 2}, _video(2)
    ),
    "videomae": Family(
        "VideoMAEConfig",
        "VideoMAEModel",
        {**IMAGE, "num_frames": 4, "use_mean_pooling": False},
        _video(4),
    ),
    "glpn": Family(
        "GLPNConfig",
        "GLPNForDepthEstimation",
        {**_PYRAMID, "num_attention_heads": [1, 2, 4, 4], "decoder_hidden_size": 16},
        large_image,
    ),
    "hgnet_v2": Family("HGNetV2Config", "HGNetV2ForImageClassification", {}, large_image),
    "swin2sr": Family(
        "Swin2SRConfig",
        "Swin2SRForImageSuperResolution",
        {"image_size": 32, "embed_dim": 16, "depths": [2], "num_heads": [2], "window_size": 4},
        image,
    ),
    "maskformer": Family(
        "MaskFormerConfig",
        "MaskFormerModel",
        {
            "backbone_config": Nested("SwinConfig", SMALL_SWIN),
            "fpn_feature_size": 32,
            "mask_feature_size": 32,
            "decoder_config": Nested("DetrConfig", {**_DETECTOR, "backbone": "resnet50"}),
        },
        large_image,
    ),
    "mask2former": Family(
        "Mask2FormerConfig",
        "Mask2FormerModel",
        {
            "backbone_config": Nested("SwinConfig", SMALL_SWIN),
            "feature_size": 32,
            "mask_feature_size": 32,
            "hidden_dim": 32,
            "encoder_feedforward_dim": 64,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "num_attention_heads": 4,
            "dim_feedforward": 64,
            "num_queries": 8,
            "use_pretrained_backbone": False,
        },
        large_image,
        in_float64=True,
    ),
    "depth_anything": Family(
        "DepthAnythingConfig",
        "DepthAnythingForDepthEstimation",
        {
            "backbone_config": Nested(
                "Dinov2Config",
                {
                    **IMAGE,
                    "num_hidden_layers": 4,
                    "out_features": ["stage1", "stage2", "stage3", "stage4"],
                    "reshape_hidden_states": False,
                },
            ),
            "patch_size": 8,
            "reassemble_hidden_size": 64,
            "neck_hidden_sizes": [16, 32, 32, 32],
            "fusion_hidden_size": 16,
            "head_hidden_size": 8,
        },
        image,
    ),
    "conditional_detr": Family(
        "ConditionalDetrConfig",
        "ConditionalDetrModel",
        {**_DETECTOR, "backbone_config": _ONE_MAP},
        large_image,
    ),
    "dab_detr": Family(
        "DabDetrConfig",
        "DabDetrModel",
        {**_DETECTOR, "hidden_size": 64, "backbone_config": _ONE_MAP},
        large_image,
    ),
    "table_transformer": Family(
        "TableTransformerConfig",
        "TableTransformerModel",
        {**_DETECTOR, "backbone_config": _ONE_MAP},
        large_image,
    ),
    "deformable_detr": Family(
        "DeformableDetrConfig",
        "DeformableDetrModel",
        {**_DETECTOR, "backbone_config": _THREE_MAPS},
        photo,
    ),
    "rt_detr_v2": Family(
        "RTDetrV2Config", "RTDetrV2ForObjectDetection", _REAL_TIME, large_image, in_float64=True
    ),
    "d_fine": Family(
        "DFineConfig", "DFineForObjectDetection", _REAL_TIME, large_image, in_float64=True
    ),
}
