"""The two measurements: rounds of steps taken in turn, and two trainings on the same batches scored alike."""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from amortjax.launch.bench_parts.timing import threads
from amortjax.launch.bench_parts.train_data import Data
from amortjax.launch.bench_parts.train_options import Plan
from amortjax.launch.bench_parts.train_ours import Ours
from amortjax.launch.bench_parts.train_process import Peer
from amortjax.launch.bench_parts.train_score import Codes, score

WARM_UP = 2  # steps after the first, before anything is timed
# Small enough that no such latent is among a token's largest, large enough that half of them are above 0.
QUIET = 0.3
CURVE_ROWS = 4096


class Rounds(NamedTuple):
    count: int
    steps: int  # of each round

    @property
    def batches(self) -> int:
        """How many batches a side needs."""
        return 1 + WARM_UP + self.count * self.steps


def begin(plan: Plan, data: Data, peer: Peer | None) -> tuple[Ours, dict[str, Any]]:
    """Our side, and what the row says of the peer."""
    ours = Ours(plan, data)
    if peer is None:
        return ours, {"peer": None}
    device = "cpu" if jax.default_backend() == "cpu" else "cuda"
    told = plan.for_peer(device)
    versions = peer.ask("hello")["versions"]
    weights = data.rows.with_name("weights.npz")
    ours.write_weights(weights)
    files = {"rows": str(data.rows), "order": str(data.order), "weights": str(weights)}
    said = peer.ask("setup", **told, **files, threads=threads())
    return ours, {"peer": told | {"versions": versions, "device": said["device"]}}


def throughput(
    plan: Plan, data: Data, peer: Peer | None, dead_share: float, rounds: Rounds, tick: Callable[[], Any]
) -> dict[str, Any]:
    """Tokens per second of both, round by round; only one side computes at a time, and they take turns at being
    first. With `dead_share` that share of the latents counts as dead, so that AuxK is at work."""
    # What another row has compiled is compiled again, so that the first step shows it.
    jax.clear_caches()
    ours, row = begin(plan, data, peer)
    first = ours.train(1)
    if peer is not None:
        peer.ask("train", steps=1)
    if dead_share:
        _quieten(ours, peer, dead_share, data.rows.with_name("quiet.npy"))
    ours.train(WARM_UP)
    answer = peer.ask("train", steps=WARM_UP) if peer is not None else {}
    row |= {"dead_at_first": ours.dead, "peer_dead_at_first": answer.get("dead")}
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    for i in range(rounds.count):
        for side in ("ours", "peer") if i % 2 == 0 else ("peer", "ours"):
            if side == "ours":
                seconds[side].append(ours.train(rounds.steps))
            elif peer is not None:
                answer = peer.ask("train", steps=rounds.steps)
                seconds[side].append(answer["seconds"])
            tick()
    tokens = rounds.steps * plan.batch_size
    per_second = {side: [tokens / each for each in took] for side, took in seconds.items()}
    typical = statistics.median(seconds["ours"]) / rounds.steps
    row |= {"dead_at_last": ours.dead, "peer_dead_at_last": answer.get("dead")}
    return row | _of_rounds(per_second) | {"compile_seconds": max(first - typical, 0.0)}


def _of_rounds(per_second: dict[str, list[float]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for side, each in per_second.items():
        if each:
            low, middle, high = min(each), statistics.median(each), max(each)
            out |= {f"{side}_tokens_per_second": middle, f"{side}_lo": low, f"{side}_hi": high}
            out[f"{side}_each"] = each
    if per_second["peer"]:
        ratios = [a / b for a, b in zip(per_second["ours"], per_second["peer"], strict=True)]
        out |= {"ratio": statistics.median(ratios), "ratio_lo": min(ratios), "ratio_hi": max(ratios)}
    return out


def _quieten(ours: Ours, peer: Peer | None, share: float, path: Path) -> None:
    m = ours.recipe.n_latents
    latents = np.sort(np.random.default_rng(0).permutation(m)[: max(round(share * m), 1)])
    np.save(path, latents)
    ours.quieten(latents, QUIET)
    if peer is not None:
        peer.ask("quieten", latents=str(path), factor=QUIET)


def quality(
    plan: Plan, data: Data, peer: Peer | None, points: int, tick: Callable[[int], Any]
) -> dict[str, Any]:
    """Trains both to the end, segment by segment in turn, and scores their codes of the held-out rows: of a few rows
    after each of `points` segments (`curve`), of all at the end."""
    assert data.held_out is not None
    ours, row = begin(plan, data, peer)
    x = np.load(data.held_out, mmap_mode="r")
    few = data.held_out.with_name("few.npy")
    np.save(few, x[:CURVE_ROWS])
    ends = np.unique(np.linspace(0, plan.steps, points + 1).round().astype(int)[1:])
    curve, seconds, done = [], {"ours": 0.0, "peer": 0.0}, 0
    for end in ends:
        seconds["ours"] += ours.train(int(end) - done)
        tick(int(end) - done)
        if peer is not None:
            seconds["peer"] += peer.ask("train", steps=int(end) - done)["seconds"]
        tick(int(end) - done)
        done = int(end)
        if done < plan.steps:
            curve.append({"step": done} | _scores(ours, peer, few))
    last = _scores(ours, peer, data.held_out)
    row |= last | {"curve": [*curve, {"step": done} | last], "eval_tokens": len(x)}
    for side, took in seconds.items():
        row[f"{side}_tokens_per_second"] = plan.steps * plan.batch_size / took if took else None
    return row


def _scores(ours: Ours, peer: Peer | None, path: Path) -> dict[str, float]:
    x = np.load(path)
    found = {"ours": ours.encode(x)}
    if peer is not None:
        out = path.with_name("codes.npz")
        peer.ask("encode", x=str(path), out=str(out))
        with np.load(out) as codes:
            found["peer"] = Codes(**codes)
    return {
        f"{side}_{name}": value
        for side, codes in found.items()
        for name, value in score(codes, x)._asdict().items()
    }
