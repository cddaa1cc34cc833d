"""Serves the tuned text embedder over HTTP, requests of many clients computed together.

    pip install fastapi uvicorn batched
    python examples/tune_minilm.py embedder.tuned
    python examples/serve_minilm.py embedder.tuned                # POST /embed {"text": "..."}
    python examples/serve_minilm.py embedder.tuned --measure 500  # load held, latency percentiles

FastAPI and uvicorn serve; ``batched`` gathers what arrives within five milliseconds.
"""

import argparse
import json
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import uvicorn
from batched import aio
from fastapi import Body, FastAPI

sys.path.insert(0, str(Path(__file__).parent))
from tune_minilm import TEXTS, Embedder

from embedl_deploy import load

BATCH = 8
"""The largest batch that the embedder was tuned for."""


def application(embed: Callable[[list[str]], torch.Tensor]) -> FastAPI:
    """Returns the web application around a pipeline."""
    app = FastAPI(title="embedder")

    @aio.dynamically(batch_size=BATCH, timeout_ms=5.0)
    def embed_together(texts: list[str]) -> list[list[float]]:
        return embed(texts).tolist()

    @app.post("/embed")
    async def answer(text: str = Body(embed=True)) -> dict[str, list[float]]:
        return {"embedding": await embed_together(text)}

    return app


def measure(app: FastAPI, requests: int, clients: int, port: int) -> dict[str, float]:
    """Serves ``app``, sends requests from several clients, returns rate and percentiles."""
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)

    def ask(number: int) -> float:
        body = json.dumps({"text": TEXTS[number % len(TEXTS)]}).encode()
        request = urllib.request.Request(  # our own server
            f"http://127.0.0.1:{port}/embed", body, {"Content-Type": "application/json"}
        )
        start = time.perf_counter()
        with urllib.request.urlopen(request) as reply:  # our own server
            assert len(json.load(reply)["embedding"]) == 384
        return 1e3 * (time.perf_counter() - start)

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(ask, range(2 * clients)))
        start = time.perf_counter()
        latencies = sorted(pool.map(ask, range(requests)))
        seconds = time.perf_counter() - start
    server.should_exit = True
    thread.join()
    return {
        "requests_per_s": requests / seconds,
        **{f"p{p}_ms": latencies[min(requests - 1, requests * p // 100)] for p in (50, 95, 99)},
    }


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("path", type=Path, help="what tune_minilm.py wrote")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--measure", type=int, metavar="REQUESTS")
    parser.add_argument("--clients", type=int, default=8)
    arguments = parser.parse_args()
    embedder = Embedder()
    load(embedder, arguments.path)
    app = application(embedder)
    if arguments.measure:
        figures = measure(app, arguments.measure, arguments.clients, arguments.port)
        print(json.dumps({name: round(value, 2) for name, value in figures.items()}))
    else:
        uvicorn.run(app, port=arguments.port)


if __name__ == "__main__":
    main()
