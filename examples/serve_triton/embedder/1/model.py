"""The tuned text embedder for Triton's Python backend; Triton itself brings its module."""

import sys
from pathlib import Path

import numpy as np

from embedl_deploy import load

HERE = Path(__file__).parent


class TritonPythonModel:
    """What Triton's Python backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads what ``tune_minilm.py`` wrote."""
        del args
        sys.path.insert(0, str(HERE))
        from tune_minilm import Embedder

        self.embedder = Embedder()
        load(self.embedder, HERE / "embedder.tuned")

    def execute(self, requests: list[object]) -> list[object]:
        """Embeds the texts of all requests at once; Triton has gathered no more than a batch.

        A request whose text is no UTF-8 gets an error of its own.
        """
        import triton_python_backend_utils as triton

        given = [_texts(triton.get_input_tensor_by_name(it, "text").as_numpy()) for it in requests]
        texts = [text for row in given if row is not None for text in row]
        vectors = iter(self.embedder(texts).numpy().astype(np.float32) if texts else ())
        answers: list[object] = []
        for row in given:
            if row is None:
                error = triton.TritonError("the text must be UTF-8")
                answers.append(triton.InferenceResponse(output_tensors=[], error=error))
            else:
                output = triton.Tensor("embedding", np.stack([next(vectors) for _ in row]))
                answers.append(triton.InferenceResponse(output_tensors=[output]))
        return answers


def _texts(values: np.ndarray) -> list[str] | None:
    """Returns the texts of one request, None if one of them is not UTF-8."""
    try:
        return [value.decode() for value in values.reshape(-1)]
    except UnicodeDecodeError:
        return None
