"""Measures the load that the served embedder holds, and latency percentiles under it.

    python -m benchmarks.serving [--tuned embedder.tuned] [--requests 1000] [--output FILE]

Each server is a process of its own on this machine, beside the clients. First clients that ask
again as soon as they are answered find the rate that the server holds; then requests arrive at
random times at shares of that rate, whether or not earlier ones were answered, and latency counts
from when a request was due.
"""

import argparse
import http.client
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.example_script import EXAMPLES
from embedl_deploy.files import write_aside
from embedl_deploy.tuning.machine import JsonValue, machine_info

RESULTS = Path(__file__).parent / "results"
CLIENTS = (1, 8, 32)
LOADS = (0.5, 0.8, 0.95)
SERVERS = {"tuned": ["{tuned}"], "tuned, no batching": ["{tuned}", "--batch", "1"], "eager": []}
START_S = 300.0

Figures = dict[str, float]
TEXT = "The server gathers what arrives within {} milliseconds and computes it together."


def main() -> None:
    """Measures every server and writes one file."""
    arguments = _arguments()
    document: dict[str, JsonValue] = {"machine": machine_info(), "servers": {}}
    servers: dict[str, JsonValue] = {}
    with tempfile.TemporaryDirectory() as folder:
        path: Path = arguments.tuned or Path(folder) / "embedder.tuned"
        if not path.exists():
            subprocess.run(
                [sys.executable, str(EXAMPLES / "tune_minilm.py"), str(path)], check=True
            )
        for name, options in SERVERS.items():
            with served([option.format(tuned=path) for option in options]) as port:
                servers[name] = measured(port, arguments.requests)
            print(name, json.dumps(servers[name]), flush=True)
            document["servers"] = servers
            write_aside(arguments.output, (json.dumps(document, indent=1) + "\n").encode())
    print(f"written to {arguments.output}")


def measured(port: int, requests: int) -> dict[str, JsonValue]:
    """Returns what one server does under loads of both kinds."""
    held = {str(count): asking_again(port, requests, count) for count in CLIENTS}
    rate = max(figures["requests_per_s"] for figures in held.values())
    arriving = {
        f"{share:.0%} of the most": arriving_at(port, requests, share * rate) for share in LOADS
    }
    return {
        "load held, requests per s": rate,
        "clients that ask again": {name: {**figures} for name, figures in held.items()},
        "requests that arrive at random": {name: {**found} for name, found in arriving.items()},
    }


def asking_again(port: int, requests: int, clients: int) -> Figures:
    """Sends requests from clients that wait for each answer."""
    client = Client(port)
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client.ask, range(2 * clients)))
        start = time.perf_counter()
        latencies = list(pool.map(client.ask, range(requests)))
        seconds = time.perf_counter() - start
    return {"requests_per_s": round(requests / seconds, 1), **percentiles(latencies)}


def arriving_at(port: int, requests: int, rate: float) -> Figures:
    """Sends requests at random times, ``rate`` per second, whether or not others are answered."""
    client, chance = Client(port), random.Random(0)
    due = 0.0
    with ThreadPoolExecutor(128) as pool:
        start = time.perf_counter()
        waiting: list[Future[float]] = []
        for number in range(requests):
            due += chance.expovariate(rate)
            time.sleep(max(0.0, start + due - time.perf_counter()))
            waiting.append(pool.submit(client.ask, number, start + due))
        latencies = [answer.result() for answer in waiting]
        seconds = time.perf_counter() - start
    answered = {"asked_per_s": round(rate, 1), "requests_per_s": round(requests / seconds, 1)}
    return {**answered, **percentiles(latencies)}


def percentiles(latencies_ms: Sequence[float]) -> Figures:
    """Returns the percentiles that matter to whoever waits."""
    cuts = statistics.quantiles(latencies_ms, n=100, method="inclusive")
    return {f"p{p}_ms": round(cuts[p - 1], 2) for p in (50, 95, 99)}


class Client:
    """Asks a server for embeddings, over one connection per thread."""

    def __init__(self, port: int) -> None:
        self._connect = partial(http.client.HTTPConnection, "127.0.0.1", port, timeout=120)
        self._own = threading.local()

    def ask(self, number: int, due: float | None = None) -> float:
        """Returns the milliseconds until the answer is there, from now or from when it was due.

        Raises:
            RuntimeError: The server answers something else.
        """
        start = time.perf_counter() if due is None else due
        body = json.dumps({"text": TEXT.format(number)})
        try:
            status, content = self._post(body)
        except ConnectionError:  # the server closes connections that were idle for seconds
            self.close()
            status, content = self._post(body)
        seconds = time.perf_counter() - start
        if status != 200 or len(json.loads(content)["embedding"]) != 384:
            raise RuntimeError(f"the server answered {status}: {content[:200]!r}")
        return 1e3 * seconds

    def close(self) -> None:
        """Closes the connection of this thread."""
        self._own.connection.close()
        del self._own.connection

    def _post(self, body: str) -> tuple[int, bytes]:
        connection = self._connection()
        connection.request("POST", "/embed", body, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        return reply.status, reply.read()

    def _connection(self) -> http.client.HTTPConnection:
        if not hasattr(self._own, "connection"):
            self._own.connection = self._connect()
            self._own.connection.connect()
            # Head and body of a request are two writes, which Nagle's algorithm would delay.
            self._own.connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._own.connection


@contextmanager
def served(options: Sequence[str]) -> Generator[int]:
    """Runs the example server in a process of its own while the block runs; yields its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    script = str(EXAMPLES / "serve_minilm.py")
    server = subprocess.Popen([sys.executable, script, *options, "--port", str(port)])
    try:
        _wait_until_ready(server, port)
        yield port
    finally:
        server.terminate()
        server.wait(30)


def _wait_until_ready(server: subprocess.Popen[bytes], port: int) -> None:
    limit = time.monotonic() + START_S
    while time.monotonic() < limit:
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with exit status {server.returncode}")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.2)
        finally:
            connection.close()
    raise RuntimeError(f"the server was not ready within {START_S:.0f} s")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tuned", type=Path, help="what tune_minilm.py wrote, or will write")
    parser.add_argument("--requests", type=int, default=1000, help="per load")
    parser.add_argument("--output", type=Path, default=RESULTS / "serving.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
