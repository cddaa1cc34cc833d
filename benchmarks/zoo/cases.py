"""The models of the zoo: torchvision's classifiers and segmenters, timm, Hugging Face, others."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.zoo.decoder_families import DECODERS
from benchmarks.zoo.families import FIRST
from benchmarks.zoo.more_families import MORE
from benchmarks.zoo.speech_families import SPEECH_AND_OTHERS
from benchmarks.zoo.vision_families import VISION
from benchmarks.zoo.written import WRITTEN
from embedl_deploy.cli.torchvision_schemas import define_torchvision_schemas

TIMM = (
    "beit_base_patch16_224", "cait_xxs24_224", "coat_tiny", "coatnet_nano_rw_224",
    "convit_tiny", "convmixer_768_32", "convnextv2_atto", "crossvit_tiny_240", "cspresnet50",
    "darknet53", "davit_tiny", "deit3_small_patch16_224", "densenet121", "dla34", "dpn68",
    "edgenext_xx_small", "efficientformer_l1", "efficientnet_b0", "efficientvit_b0",
    "eva02_tiny_patch14_224", "fastvit_t8", "focalnet_tiny_srf", "gcresnet33ts", "ghostnet_100",
    "hardcorenas_a", "hrnet_w18_small", "inception_v4", "lcnet_050", "levit_128s",
    "maxvit_nano_rw_256", "mixer_s32_224", "mobileone_s0", "mobilevitv2_050", "nfnet_f0",
    "pit_ti_224", "poolformer_s12", "pvt_v2_b0", "regnety_002", "repvgg_a0", "res2net50_26w_4s",
    "resmlp_12_224", "resnest14d", "rexnet_100", "selecsls42", "seresnet18", "sequencer2d_s",
    "swinv2_tiny_window8_256", "tinynet_e", "twins_pcpvt_small", "vgg11_bn", "visformer_tiny",
    "vit_tiny_patch16_224", "volo_d1_224", "xcit_nano_12_p16_224",
    "botnet26t_256", "efficientvit_m0", "gmlp_s16_224", "halonet26t", "lambda_resnet26t",
    "mvitv2_tiny", "nest_tiny", "starnet_s1", "tnt_s_legacy_patch16_224",
)  # fmt: skip

_FAMILIES = {**FIRST, **MORE, **DECODERS, **VISION, **SPEECH_AND_OTHERS}


@dataclass(frozen=True)
class Case:
    """One model of the zoo."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[nn.Module], tuple[tuple[object, ...], Mapping[str, object]]]
    in_float64: bool = False

    @property
    def allowed(self) -> float:
        """How far outputs may move, relative to their norm."""
        return 1e-9 if self.in_float64 else 1e-4


def zoo() -> Iterator[Case]:
    """Yields every case, in a fixed order."""
    define_torchvision_schemas()
    yield from _torchvision()
    yield from _timm()
    for name, family in _FAMILIES.items():
        yield Case(
            f"transformers/{name}",
            family.build,
            lambda _, family=family: ((), family.inputs()),
            family.in_float64,
        )
    for name, (build, inputs) in WRITTEN.items():
        yield Case(f"written/{name}", _seeded(build), lambda _, inputs=inputs: (inputs, {}))


def _torchvision() -> Iterator[Case]:
    import torchvision.models as models

    for module in (models, models.segmentation):
        for name in models.list_models(module=module):
            yield Case(f"torchvision/{name}", _seeded(_builder(models, name)), _image)


def _builder(models: object, name: str) -> Callable[[], nn.Module]:
    options: dict[str, object] = {"weights": None}
    if "segmentation" in str(models.get_model_builder(name).__module__):
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = True
    return lambda: models.get_model(name, **options)


def _timm() -> Iterator[Case]:
    import timm

    for name in TIMM:
        yield Case(f"timm/{name}", _seeded(lambda name=name: timm.create_model(name)), _image)


def _seeded(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def seeded() -> nn.Module:
        torch.manual_seed(0)
        return build().eval()

    return seeded


def _image(model: nn.Module) -> tuple[tuple[object, ...], Mapping[str, object]]:
    config = getattr(model, "default_cfg", None) or getattr(model, "pretrained_cfg", {})
    size = tuple(config.get("input_size", (3, 224, 224)))
    if type(model).__name__ == "Inception3":
        size = (3, 299, 299)
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(1, *size, generator=generator),), {}
