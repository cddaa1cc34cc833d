"""One execution context of a built engine: the tensors of a call bound to it, and its start."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from embedl_deploy.engines.tensorrt_library import Context
from embedl_deploy.errors import LoweringError


class Execution:
    """Runs an engine in one context, whose memory serves one call at a time."""

    def __init__(
        self,
        context: Context,
        inputs: Sequence[str | None],
        outputs: Mapping[str, torch.dtype],
        device: torch.device,
    ) -> None:
        """Takes a context.

        Args:
            context: The context, used by nothing else.
            inputs: What each input of a call is called; None: the engine does not read it.
            outputs: What the engine makes, and the types.
            device: Where it runs.
        """
        self._context = context
        self._inputs = inputs
        self._outputs = outputs
        self._device = device

    def bind(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Tells the context the addresses of inputs and of new outputs, which it returns.

        Args:
            inputs: As ``readable`` returns them; they must live until the run has started.
        """
        for name, tensor in zip(self._inputs, inputs, strict=True):
            if name is not None:
                _expect(self._context.set_input_shape(name, tuple(tensor.shape)), name)
                _expect(self._context.set_tensor_address(name, tensor.data_ptr()), name)
        unknown = self._context.infer_shapes()
        if unknown:
            raise LoweringError(f"TensorRT cannot tell the shapes of {', '.join(unknown)}")
        outputs: list[Tensor] = []
        for name, dtype in self._outputs.items():
            shape = tuple(self._context.get_tensor_shape(name))
            output = torch.empty(shape, dtype=dtype, device=self._device)
            _expect(self._context.set_tensor_address(name, output.data_ptr()), name)
            outputs.append(output)
        return outputs

    def start(self, stream: int) -> None:
        """Runs what is bound, in a stream given by its address."""
        if not self._context.execute_async_v3(stream):
            raise LoweringError("TensorRT could not run the engine; its log says why")


def readable(inputs: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Returns the tensors as TensorRT reads them: on the device, rows one after the other.

    A tensor that lies so already is returned itself, whatever else is a copy.
    """
    return [tensor.to(device).contiguous() for tensor in inputs]


def _expect(done: bool, name: str) -> None:
    if not done:
        raise LoweringError(f"TensorRT does not take this tensor for {name!r}")
