# pyright: reportPrivateUsage=false
# torch keeps the table of a module's children private; there is no other door.
"""Quantization-aware training: the rounding of a calibrated graph, trained with its weights."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import nn
from torch.fx import GraphModule

from embedl_deploy.errors import PreconditionError
from embedl_deploy.graph.record import has_record, record_of
from embedl_deploy.modules.fused import WeightedFused
from embedl_deploy.modules.fused_conv import FusedConv
from embedl_deploy.modules.kinds import BATCH_NORMS
from embedl_deploy.passes.quantization import fix_weight_scales
from embedl_deploy.quantization.learned_step import LearnedStep
from embedl_deploy.quantization.rounded_weight import RoundedWeight
from embedl_deploy.quantization.stub import QuantStub, stubs_of
from embedl_deploy.quantization.trainable import TrainableStub, TrainableWeight
from embedl_deploy.quantization.weights import WeightFakeQuantize
from embedl_deploy.rewriting import PassRecord, TransformationReport


@dataclass(frozen=True)
class QatConfig:
    """What is trained, and when the rest stops moving; times count optimizer steps."""

    learned_steps: bool = True
    """Steps are parameters (LSQ). Otherwise those of weights follow the weights, and the ranges
    of activations follow an average of their extremes."""

    freeze_norms_after: int | None = None
    """From then on batch norms use their running statistics and are folded, as in inference.

    0 for the whole training, None for never; a few epochs before the end are usual."""

    freeze_ranges_after: int | None = None
    """From then on steps and ranges are constants; None for never."""

    def __post_init__(self) -> None:
        for name in ("freeze_norms_after", "freeze_ranges_after"):
            steps: int | None = getattr(self, name)
            if steps is not None and steps < 0:
                raise ValueError(f"{name} must be a number of steps or None, got {steps}")


class QatTraining:
    """A graph in training, and the schedule of what freezes when.

    ``model`` is an ordinary module in training mode. Call ``step`` after each optimizer step and
    ``finish`` at the end. To go on after an interruption, save ``model.state_dict()``,
    ``state_dict()`` and the optimizer's; prepare the same quantized graph again, and load them.
    Weights start at their nearest codes, however they were rounded before.

    Source: Krishnamoorthi 2018, section 3.2.2 (norms), https://arxiv.org/abs/1806.08342
    """

    def __init__(self, model: GraphModule, config: QatConfig) -> None:
        _require_calibrated(model)
        self.config = config
        self.steps = 0
        """How many optimizer steps were made."""

        self.model = copy.deepcopy(model).train()
        _make_trainable(self.model, config)
        self._norms = [part for part in self.model.modules() if isinstance(part, BATCH_NORMS)]
        if config.freeze_norms_after != 0:
            _drop_superseded_corrections(self.model)
        # The user's train() also reaches frozen norms: they are told again before each forward.
        self._hook = self.model.register_forward_pre_hook(self._hold_norms)
        self._freeze_due(fits_weights=True)

    def parameter_groups(self) -> list[dict[str, object]]:
        """Returns parameters for an optimizer: weights first, then steps, which must not decay."""
        steps = [part.log_growth for part in self._learned_steps()]
        known = {id(step) for step in steps}
        weights = [one for one in self.model.parameters() if id(one) not in known]
        groups: list[dict[str, object]] = [{"params": weights}]
        return [*groups, {"params": steps, "weight_decay": 0.0}] if steps else groups

    def step(self) -> None:
        """Takes over what the optimizer did to the steps, and freezes what is due."""
        for part in self.model.modules():
            if isinstance(part, (TrainableStub, TrainableWeight)):
                part.take_step()
        self.steps += 1
        self._freeze_due(fits_weights=True)

    def state_dict(self) -> dict[str, int]:
        """Returns where the schedule is; the model and the optimizer have states of their own."""
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on from where another schedule was."""
        if "steps" not in state:
            raise ValueError(
                f"the state of a schedule holds 'steps', got {sorted(state)}: pass what "
                "QatTraining.state_dict returned, and the model's own to model.load_state_dict"
            )
        self.steps = int(state["steps"])
        self._freeze_due(fits_weights=False)

    def finish(self) -> GraphModule:
        """Returns the trained graph in eval mode, with plain quantizers: what ``convert`` takes.

        The scales of weights are constants. This object is of no use afterwards.
        """
        self._hook.remove()
        _replace_children(self.model, _plain)
        self.model.eval()
        fix_weight_scales(self.model, keeps_fixed=True)
        _note(self.model, self._summary())
        return self.model

    def _learned_steps(self) -> list[LearnedStep]:
        return [part for part in self.model.modules() if isinstance(part, LearnedStep)]

    def _is_past(self, limit: int | None) -> bool:
        return limit is not None and self.steps >= limit

    def _freeze_due(self, *, fits_weights: bool) -> None:
        """Freezes what is due; ``fits_weights``: constant scales are taken from the weights."""
        if not self._is_past(self.config.freeze_ranges_after):
            return
        for part in self.model.modules():
            if isinstance(part, TrainableStub):
                part.follows = False
            elif isinstance(part, LearnedStep):
                part.log_growth.requires_grad_(False).grad = None
            elif isinstance(part, WeightFakeQuantize) and not fits_weights:
                part.frozen = True
        if fits_weights:
            fix_weight_scales(self.model, keeps_fixed=True)

    def _hold_norms(self, model: nn.Module, args: object) -> None:
        del model, args
        if self._is_past(self.config.freeze_norms_after):
            for norm in self._norms:
                norm.eval()

    def _summary(self) -> str:
        steps = "learned" if self.config.learned_steps else "followed"
        frozen = [
            f"{what} frozen after {limit}"
            for what, limit in (
                ("norms", self.config.freeze_norms_after),
                ("ranges", self.config.freeze_ranges_after),
            )
            if self._is_past(limit)
        ]
        return ", ".join([f"{self.steps} optimizer steps", f"rounding steps {steps}", *frozen])


def _require_calibrated(model: GraphModule) -> None:
    idle = [stub.site for _, stub in stubs_of(model) if not stub.quantizing]
    quantizers = [part for part in model.modules() if isinstance(part, WeightFakeQuantize)]
    if not has_record(model) or not (quantizers or any(stubs_of(model))):
        raise PreconditionError(
            "training needs a quantized graph, got one without quantizers: "
            "call quantize(model, args, config, forward_loop=...) first"
        )
    if idle:
        raise PreconditionError(
            f"training starts from calibrated quantizers: {len(idle)} have no scale yet, the "
            f"first at {idle[0]}: call calibrate(model, forward_loop)"
        )


def _make_trainable(model: GraphModule, config: QatConfig) -> None:
    def trainable(parent: nn.Module, child: nn.Module) -> nn.Module:
        if isinstance(child, QuantStub):
            if child.config.dynamic is not None:
                return child  # its range is that of the tensor itself
            return TrainableStub(child, config.learned_steps)
        if not isinstance(child, WeightFakeQuantize):
            return child
        if not config.learned_steps:
            return child.plain() if isinstance(child, RoundedWeight) else child
        assert isinstance(parent, WeightedFused), "fused modules alone have weight quantizers"
        return TrainableWeight(child, parent.folded_weight_and_bias()[0].detach())

    _replace_children(model, trainable)


def _replace_children(model: nn.Module, made: Callable[[nn.Module, nn.Module], nn.Module]) -> None:
    """Puts ``made(parent, child)`` in the place of each child, one and the same wherever it is."""
    known: dict[int, nn.Module] = {}
    for parent in tuple(model.modules()):
        for name, child in parent._modules.items():
            if child is not None:
                if id(child) not in known:
                    known[id(child)] = made(parent, child)
                parent._modules[name] = known[id(child)]


def _plain(parent: nn.Module, child: nn.Module) -> nn.Module:
    del parent
    return child.trained() if isinstance(child, (TrainableStub, TrainableWeight)) else child


def _drop_superseded_corrections(model: nn.Module) -> None:
    """Drops the bias corrections of layers whose norm is trained: its mean will hold them."""
    for part in model.modules():
        if isinstance(part, FusedConv) and part.norm is not None:
            part.bias_correction = None


def _note(model: GraphModule, text: str) -> None:
    known = record_of(model)
    if isinstance(known.report, TransformationReport):
        passes = (*known.report.passes, PassRecord("training", notes=(text,)))
        known.report = replace(known.report, passes=passes)
