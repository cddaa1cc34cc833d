"""Runs every tool on one row of the comparison, and puts their figures side by side."""

import time
from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks.accuracy.judge import Score, score
from benchmarks.accuracy.outcome import Outcome, outputs_of
from benchmarks.accuracy.subjects import Subject, subjects_of
from benchmarks.accuracy.tools import OURS, OWN, TOOLS, tools_for
from benchmarks.accuracy.verdict import verdict
from embedl_deploy.cli.console import Screen
from embedl_deploy.cli.demo.sentences import mean_cosine, retrieval_agreement
from embedl_deploy.tuning.machine import JsonValue, commit


def run_row(name: str, tools: list[str], screen: Screen) -> dict[str, JsonValue]:
    """Returns what each tool cost in accuracy on the subjects of a row, and the verdict."""
    began = time.perf_counter()
    parts: list[Subject] = []
    references: list[Tensor] = []
    own_tools = tools_for(name, tools)
    outcomes: dict[str, list[Outcome]] = {tool: [] for tool in own_tools}
    failures: dict[str, JsonValue] = {}
    for subject in subjects_of(name):
        parts.append(subject)
        references.append(outputs_of(subject.model, subject.test))
        for tool in [tool for tool in own_tools if tool not in failures]:
            with screen.step(f"{name}, {subject.part}: {tool}"):
                try:
                    outcomes[tool].append(TOOLS[tool](subject))
                except Exception as error:  # a peer that fails is a fact to report
                    if tool in OWN:
                        raise
                    failures[tool] = f"{type(error).__name__}: {error}"[:300]
    ran = {tool: outcomes[tool] for tool in own_tools if tool not in failures}
    return {
        **_figures(parts, torch.cat(references), ran),
        "failed": failures,
        "asked": list(tools),
        "commit": commit(),
        "seconds": time.perf_counter() - began,
    }


def _figures(
    parts: list[Subject], reference: Tensor, outcomes: Mapping[str, list[Outcome]]
) -> dict[str, JsonValue]:
    labels = [part.labels for part in parts if part.labels is not None]
    truth = torch.cat(labels) if labels else None
    outputs = {tool: torch.cat([o.outputs for o in found]) for tool, found in outcomes.items()}
    scores = {tool: score(found, reference, truth) for tool, found in outputs.items()}
    shares = {tool: _least_share(found) for tool, found in outcomes.items()}
    tools: dict[str, JsonValue] = {
        tool: {
            **_own_figures(parts[0], scores[tool], outputs[tool], reference),
            "int8_share": shares[tool],
        }
        for tool in outcomes
    }
    judged = ["noise", *(["kl", "top1"] if parts[0].gives_logits else [])]
    figures: dict[str, JsonValue] = {"tools": tools, **verdict(scores, shares, judged)}
    if truth is not None:
        figures["top1 of fp32"] = float((reference.argmax(1) == truth).double().mean())
    linears = [o.linears for o in outcomes.get(OURS, []) if o.linears is not None]
    if parts[0].is_encoder and linears:
        figures["linear layers in int8"] = list(linears[0])
    return figures


def _own_figures(
    subject: Subject, own: Score, outputs: Tensor, reference: Tensor
) -> dict[str, JsonValue]:
    figures: dict[str, JsonValue] = {"noise": own.noise, "snr_db": own.snr_db}
    if subject.gives_logits:
        figures |= {"kl": own.kl, "top1_agreement": own.top1_agreement}
    if subject.labels is not None:
        figures["top1"] = 1.0 - float(own.losses["top1"].mean())
    if subject.is_encoder:
        figures["mean_cosine"] = mean_cosine(outputs, reference)
        figures["top1_retrieval_agreement"] = retrieval_agreement(outputs, reference)
        figures["top10_retrieval_agreement"] = _top10_agreement(outputs, reference)
    return figures


def _least_share(outcomes: list[Outcome]) -> float | None:
    return min((o.share for o in outcomes if o.share is not None), default=None)


def _top10_agreement(vectors: Tensor, reference: Tensor) -> float:
    """Returns the mean share of each text's ten nearest others that both embeddings share."""
    found, wanted = (_nearest(tensor) for tensor in (vectors, reference))
    return float((found[:, :, None] == wanted[:, None, :]).any(2).double().mean())


def _nearest(vectors: Tensor) -> Tensor:
    similarity = vectors @ vectors.T
    return similarity.fill_diagonal_(-torch.inf).topk(10, dim=1).indices
