"""Whether a row, and all rows together, are as good as the best of the peers."""

import math
from collections.abc import Mapping
from typing import cast

from benchmarks.accuracy.judge import Score, is_significantly_worse
from benchmarks.accuracy.tools import OURS, OWN
from embedl_deploy.tuning.machine import JsonValue

MEAN_BAR = 0.9
"""Largest geometric mean of our noise over the best peer's."""

DROP_BAR = 0.003
"""Most accuracy lost by a trained net, over all its folds."""

COSINE_BAR, RETRIEVAL_BAR = 0.9976, 0.944
"""What nncf's transformer preset reached on MiniLM when it was tried; to be exceeded."""

RATIO = "noise over best peer"

Row = dict[str, JsonValue]


def verdict(
    scores: Mapping[str, Score], shares: Mapping[str, float | None], judged: list[str]
) -> Row:
    """Returns how ours compares, empty without ours or without a peer.

    Each peer is compared with that of ours which runs the least in int8, but no less than the peer:
    a tool that leaves layers in float is more exact for that alone. Of ours with equal shares the
    better counts, as of a peer's settings. The best peer is the one that
    comes out best of these comparisons; a ``noise over best peer`` of at most 1 is as good as it.
    """
    own = [tool for tool in scores if tool in OWN]
    peers = [tool for tool in scores if tool not in OWN]
    if not own or not peers:
        return {}
    against = {peer: _comparable(own, scores, shares, peer) for peer in peers}
    ratios = {peer: scores[mine].noise / scores[peer].noise for peer, mine in against.items()}
    best = max(ratios, key=lambda peer: ratios[peer])
    worse: dict[str, JsonValue] = {
        name: any(
            is_significantly_worse(scores[mine].losses[name], scores[peer].losses[name])
            for peer, mine in against.items()
        )
        for name in judged
    }
    row: Row = {
        "best peer": best,
        "compared with": dict(against),
        RATIO: ratios[best],
        "significantly worse": worse,
    }
    told = [
        (own_share, its_share)
        for own_share, its_share in ((shares[mine], shares[peer]) for peer, mine in against.items())
        if own_share is not None and its_share is not None
    ]
    if told:
        row["int8 share at or above the peers'"] = all(mine >= its - 1e-9 for mine, its in told)
    return row


def _comparable(
    own: list[str],
    scores: Mapping[str, Score],
    shares: Mapping[str, float | None],
    peer: str,
) -> str:
    """Returns which of ours runs the least in int8 and no less than a peer; else the first."""
    wanted = shares[peer]
    enough = [
        (round(share, 9), scores[tool].noise, tool)
        for tool in own
        if wanted is not None and (share := shares[tool]) is not None and share >= wanted - 1e-9
    ]
    return min(enough)[2] if enough else own[0]


def mean_ratio(rows: Mapping[str, Row]) -> float | None:
    """Returns the geometric mean over rows of our noise over the best peer's."""
    ratios = [float(str(row[RATIO])) for row in rows.values() if RATIO in row]
    return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else None


def bars(rows: Mapping[str, Row]) -> Row:
    """Returns which of the stated bars the rows meet; what no row tells is left out."""
    mean = mean_ratio(rows)
    met: Row = {}
    if mean is not None:
        met[f"geometric mean at most {MEAN_BAR}"] = mean <= MEAN_BAR
        worse = [
            cast("Mapping[str, bool]", row["significantly worse"])
            for row in rows.values()
            if RATIO in row
        ]
        met["no row significantly worse"] = not any(any(found.values()) for found in worse)
    shares = [value for row in rows.values() for key, value in row.items() if "at or above" in key]
    if shares:
        met["int8 share at or above the peers'"] = all(shares)
    drops = [_drop(row) for row in rows.values() if "top1 of fp32" in row]
    if drops:
        met[f"trained nets lose at most {DROP_BAR:.1%}"] = max(drops) <= DROP_BAR
    for row in rows.values():
        if "linear layers in int8" in row:
            own = _own(row)
            met[f"MiniLM: mean cosine above {COSINE_BAR}"] = own["mean_cosine"] > COSINE_BAR
            above = own["top1_retrieval_agreement"] > RETRIEVAL_BAR
            met[f"MiniLM: top-1 agreement above {RETRIEVAL_BAR}"] = above
            met["MiniLM: 36 linear layers in int8"] = row["linear layers in int8"] == [36, 36]
    return met


def _drop(row: Row) -> float:
    return float(str(row["top1 of fp32"])) - _own(row)["top1"]


def _own(row: Row) -> Mapping[str, float]:
    return cast("Mapping[str, Mapping[str, float]]", row["tools"])[OURS]
