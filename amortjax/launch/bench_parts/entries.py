"""What is measured on a problem: this library's solvers, with variants, and the other libraries."""

import dataclasses
import hashlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

import amortjax
from amortjax.errors import AmortjaxError
from amortjax.inference import api
from amortjax.inference.request import Settings, Solved
from amortjax.inference.solvers import SOLVERS
from amortjax.launch.bench_parts import peers
from amortjax.launch.bench_parts.peers import PEERS, Run
from amortjax.launch.bench_parts.problems import Case

# Steps at which `all` measures the solvers with a fixed number: the papers' ISTA, and FISTA short and long.
STEPS: dict[str, tuple[int, ...]] = {"ista": (200,), "fista": (100, 1000)}
UNROLLED, BATCH = ("lista", "alista"), 64  # solvers that are trained first, and tokens of a training step
# What may begin from the encoder's code: the optimum, and the papers' semi-amortized mode.
FROM_ENCODER = ("active_set@encoder", "ista:30@encoder")
ENCODER = "encoder"


class Entry(NamedTuple):
    """`make` gives the function that is timed; `goal` as a Solver's, or "none"; `least`: fewest tokens with
    which it may be tried (a batched solver is no slower on 16 than on 4)."""

    key: str
    label: str
    library: str
    goal: str
    precision: str
    make: Callable[[Case], Run]
    compiles: bool
    least: int
    memory: str


def expand(names: Sequence[str], with_encoder: bool) -> list[str]:
    """The keys that --solvers asks for: NAME[:STEPS][@encoder], "all", "ours" or "peers"."""
    ours = [f"{name}:{n}" if n else name for name in SOLVERS for n in STEPS.get(name, (0,))]
    ours += [ENCODER, *FROM_ENCODER] if with_encoder else []
    groups = {"all": [*ours, *PEERS], "ours": ours, "peers": list(PEERS)}
    keys = [key for name in names for key in groups.get(name, [name])]
    for key in keys:
        _parts(key)
    return [key for key in dict.fromkeys(keys) if with_encoder or "encoder" not in key]


def _parts(key: str) -> tuple[str, int | None, bool]:
    """(name, steps, from the encoder) of a key; AmortjaxError with the choices."""
    name, _, start = key.partition("@")
    name, _, steps = name.partition(":")
    known = name in SOLVERS or (name in (*PEERS, ENCODER) and key == name)
    if not known or start not in ("", "encoder") or not (steps or "1").isdigit() or steps == "0":
        raise AmortjaxError(
            f"--solvers={key}: not a choice. Choices: all, ours, peers, {', '.join([*SOLVERS, *PEERS])}; "
            "a solver may have :STEPS and @encoder after its name"
        )
    return name, int(steps) if steps else None, bool(start)


def settings_of(precision: str, tol: float, n_steps: int | None, n: int) -> Settings:
    """Settings with the precision, which "highest" is without saying."""
    settings = Settings(tol=tol, n_steps=n_steps, chunk=min(n, 1024))
    if precision == "highest":
        return settings
    named: dict[str, Any] = {"precision": precision}
    return dataclasses.replace(settings, **named)


class Asked(NamedTuple):
    """Of every entry. `unrolled_steps`: Adam steps that the learned solvers are trained for."""

    precisions: Sequence[str] = ("highest",)
    tol: float = 1e-4
    unrolled_steps: int = 0


def network(name: str, case: Case, layers: int | None, steps: int) -> Any:
    """An unrolled solver's weights, trained on the problem's other tokens at its lambda; None for the rest."""
    from amortjax.inference import unrolled

    if name not in UNROLLED:
        return None
    init = {"lista": unrolled.init_lista, "alista": unrolled.init_alista}[name]
    params = init(case.problem, layers or unrolled.LAYERS)
    if not steps:
        return params
    with tqdm(total=steps, desc=f"training {name}", unit=" steps", file=sys.stderr, leave=False) as bar:
        return unrolled.fit(case.problem, case.others, case.lam, params, steps, batch=BATCH, bar=bar)


def _own(key: str, precision: str, asked: Asked) -> Entry:
    name, n_steps, warm = _parts(key)
    solver = SOLVERS[name]

    def make(case: Case) -> Run:
        params = network(name, case, n_steps, asked.unrolled_steps)

        def run(n: int) -> Solved:
            settings = settings_of(precision, asked.tol, n_steps, n)
            return solver.solve(case.request(n, dataclasses.replace(settings, params=params), warm))

        return run

    label = name + (f"-{n_steps}" if n_steps else "") + (" from encoder" if warm else "")
    label += " untrained" if name in UNROLLED and not asked.unrolled_steps else ""
    label += "" if precision == "highest" else f" ({precision})"
    return Entry(key, label, "amortjax", solver.goal, precision, make, True, 16, "jax")


def _encoder() -> Entry:
    def make(case: Case) -> Run:
        def run(n: int) -> Solved:
            assert case.sae is not None and case.x is not None
            return case.problem.fold(api.encode_codes(case.sae, case.x[:n])), np.zeros(n, int)

        return run

    return Entry(ENCODER, "encoder, no solver", "amortjax", "none", "highest", make, True, 16, "jax")


def _peer(key: str, asked: Asked) -> Entry:
    peer = PEERS[key]
    # A batched one is tried on no fewer tokens than ours.
    batched, memory = key == "torch_ista", "torch" if key == "torch_ista" else "host"
    # What is not ours is run as it is: the precision is its own.
    make = lambda case: peer.make(case, asked.tol)  # noqa: E731
    return Entry(key, peer.text, peer.module, "lasso", "own", make, False, 16 if batched else 4, memory)


def entries(keys: Sequence[str], asked: Asked) -> list[Entry]:
    """In the order asked for; what is not installed is named and left out."""
    out: list[Entry] = []
    for key in keys:
        if key in PEERS:
            peer = PEERS[key]
            if peer.installed:
                out.append(_peer(key, asked))
            else:
                remedy = f"pip install 'amortjax[{peer.extra}]'"
                print(f"{peer.text} left out: {peer.module} is not installed ({remedy})", file=sys.stderr)
        elif key == ENCODER:
            out.append(_encoder())
        else:
            out += [_own(key, precision, asked) for precision in asked.precisions]
    return out


def code_of(entry: Entry) -> str:
    """A hash of the source that a row was measured with: a solver that has changed is measured again."""
    if entry.library == "amortjax":
        files = sorted(Path(amortjax.__file__).parent.joinpath("inference").glob("*.py"))
    else:
        files = [Path(peers.__file__)]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
