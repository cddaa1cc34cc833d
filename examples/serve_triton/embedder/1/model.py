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
        """Embeds the texts of all requests at once; Triton has gathered no more than a batch."""
        import triton_python_backend_utils as triton

        given = [triton.get_input_tensor_by_name(request, "text") for request in requests]
        rows = [[text.decode() for text in tensor.as_numpy().reshape(-1)] for tensor in given]
        vectors = self.embedder([text for row in rows for text in row]).numpy()
        parts = np.split(vectors, np.cumsum([len(row) for row in rows])[:-1])
        return [
            triton.InferenceResponse([triton.Tensor("embedding", part.astype(np.float32))])
            for part in parts
        ]
