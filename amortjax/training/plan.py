"""What a training will take, before anything is allocated: device memory, host memory and disk, term by term.

    made = plan([recipe], d_model)
    print(made.text())
    made.check(device_free(), host_free(), disk_free(folder))      # AmortjaxError naming the term and its flag

Device memory is counted in `training.scratch`, what is free in `training.room`.
"""

import dataclasses
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from amortjax.errors import AmortjaxError
from amortjax.training.batches import MEMORY
from amortjax.training.feed import AHEAD
from amortjax.training.recipe import Recipe
from amortjax.training.room import device_free, disk_free, host_free, size
from amortjax.training.scratch import F, Term, Where, device_terms, state, weights


class Held(NamedTuple):
    """Rows in host memory: bytes, the flag that governs them, and how many bytes are taken already."""

    nbytes: int = 0
    remedy: str = ""
    held: int = 0


@dataclasses.dataclass(frozen=True)
class Plan:
    """`shared`: device and host have one memory (a CPU), in which `copies` devices have each their own terms."""

    title: str
    terms: tuple[Term, ...]
    shared: bool = False
    copies: int = 1

    def total(self, where: Where) -> int:
        """Bytes of the terms there; device terms are those of one device."""
        return sum(term.nbytes for term in self.terms if term.where == where)

    def text(self) -> str:
        """A table, a line per term."""
        wide = max(len(term.name) for term in self.terms)
        lines = [f"memory plan: {self.title}"]
        for where in ("device", "host", "disk"):
            terms = [term for term in self.terms if term.where == where]
            lines += [f"  {where:6}  {term.name:{wide}}  {size(term.nbytes):>9}" for term in terms]
            lines.append(f"  {where:6}  {'total':{wide}}  {size(self.total(where)):>9}")
        if self.shared:
            both = self.copies * self.total("device") + self.total("host")
            lines.append(f"  {'memory':6}  {'total: the device is the host':{wide}}  {size(both):>9}")
        return "\n".join(lines)

    def check(self, device: int | None, host: int | None, disk: int | None) -> "Plan":
        """Itself, or AmortjaxError naming the largest term of what does not fit into so many free bytes (None:
        not known), the flag that governs it, and the remedy."""
        on = {
            name: [term for term in self.terms if term.where == name] for name in ("device", "host", "disk")
        }
        if self.shared:
            free = min((n for n in (device, host) if n is not None), default=None)
            both = [t._replace(nbytes=t.nbytes * self.copies) for t in on["device"]] + on["host"]
            _refuse("memory", both, free)
        else:
            _refuse("device memory", on["device"], device)
            _refuse("host memory", on["host"], host)
        _refuse("disk", on["disk"], disk)
        return self


def _refuse(what: str, terms: Sequence[Term], free: int | None) -> None:
    needed = sum(term.nbytes - term.held for term in terms)
    if free is None or needed <= free:
        return
    worst = max(terms, key=lambda term: term.nbytes - term.held)
    raise AmortjaxError(
        f"not enough {what}: this training needs {size(needed)} and {size(free)} are free. The largest part is "
        f"{worst.name}, {size(worst.nbytes)}: {worst.remedy}"
    )


def plan(
    recipes: Sequence[Recipe],
    d_model: int,
    *,
    rows: Held | None = None,
    held_out: int = 0,
    evaluate: bool = True,
    gap: bool = False,
    sample: int = 0,
    snapshots: int = 0,
    checkpoints: int = 2,
    devices: int = 1,
    processes: int = 1,
    shared: bool = False,
) -> Plan:
    """What training SAEs of these recipes on the same batches takes, per device, process and disk.

    held_out, sample: rows read for metrics, and for scale and centre. evaluate, gap: whether those metrics are
    taken. snapshots: SAEs written on the way.
    checkpoints: how many are on disk at once: the kept one, and one that is being written. devices: all of them,
    over which a batch is split. shared: they are CPUs.
    """
    local = devices // processes if shared else 1
    on_device = device_terms(recipes, d_model, devices, held_out, evaluate)
    on_host = _host(recipes, d_model, processes, rows or Held(), held_out, sample, gap)
    variants = ", ".join(dict.fromkeys(recipe.variant for recipe in recipes))
    widths = "/".join(str(m) for m in sorted({recipe.n_latents for recipe in recipes}))
    many = f"{len(recipes)} SAEs, " if len(recipes) > 1 else ""
    title = f"{many}{variants}, M = {widths}, D = {d_model}, {recipes[0].batch_size} tokens a step"
    if devices > 1:
        title += f" on {devices} devices"
    terms = (*on_device, *on_host, *_disk(recipes, d_model, checkpoints, snapshots))
    return Plan(title, terms, shared, max(local, 1))


def _host(
    recipes: Sequence[Recipe],
    d: int,
    processes: int,
    rows: Held,
    held_out: int,
    sample: int,
    gap: bool,
) -> list[Term]:
    n, m = -(-recipes[0].batch_size // processes), max(recipe.n_latents for recipe in recipes)
    narrow, more = f"lower --n_latents={m}", "use a machine with more memory"
    ahead = (AHEAD + 2) * F * n * d
    # One after the other, so the largest counts.
    passing = [
        Term("rows for scale and centre, float64", 24 * sample * d, "host", more),
        Term("drawing the first weights, float64", 16 * m * d, "host", narrow),
        Term("a checkpoint on its way to disk", sum(state(r, d) for r in recipes), "host", narrow),
        Term("certificates, float64", 24 * m * d * gap, "host", f"{narrow}, or --gap_every=0"),
    ]
    terms = [
        Term("rows of activations", rows.nbytes, "host", rows.remedy, rows.held),
        Term("batches read ahead", ahead, "host", f"lower --batch_size={recipes[0].batch_size}"),
        Term("held-out rows as read", F * held_out * d, "host", more),
        max(passing, key=lambda term: term.nbytes),
    ]
    return [term for term in terms if term.nbytes]


def _disk(recipes: Sequence[Recipe], d: int, checkpoints: int, snapshots: int) -> list[Term]:
    saes = (1 + snapshots) * sum(weights(recipe, d) for recipe in recipes)
    all_states = sum(state(recipe, d) for recipe in recipes)
    free = "free some disk, use another --out, or "
    terms = [
        Term(
            f"checkpoints ({checkpoints} at a time)",
            checkpoints * all_states,
            "disk",
            f"{free}--checkpoint_every=0",
        ),
        Term(
            "trained SAEs",
            saes,
            "disk",
            free + ("fewer shares in --save_at" if snapshots else "lower --n_latents"),
        ),
    ]
    return [term for term in terms if term.nbytes]


def rows_of(source: Any) -> Held:
    """The rows that a `feed.Source` holds in host memory."""
    if hasattr(source, "buffer_tokens"):
        from amortjax.training import streamed

        held = streamed.nbytes(source.d_model, source.buffer_tokens, source.max_seq_len)
        return Held(held, f"lower --buffer_tokens={source.buffer_tokens}")
    if hasattr(source, "window_rows"):
        held = F * source.d_model * source.window_rows
        told = f"up to {size(MEMORY)} of activations are held; use a machine with more memory"
        return Held(held, told, held if "all" in vars(source) else 0)
    return Held()


def announce(recipes: Sequence[Recipe], source: Any, out: str | Path, pace: Any) -> Plan:
    """Prints the plan of a `loop.train` with this `loop.Pace` to stderr, and refuses what can't fit (AmortjaxError).
    Files that are in `out` already count as written."""
    from amortjax.training import loop

    cpu = jax.default_backend() == "cpu"
    made = plan(
        recipes,
        source.d_model,
        rows=rows_of(source),
        held_out=loop.HELD_OUT,
        evaluate=bool(pace.eval_every),
        gap=bool(pace.gap_every),
        sample=loop.SAMPLE,
        snapshots=len(pace.save_at),
        checkpoints=2 if pace.checkpoint_every else 0,
        devices=jax.device_count(),
        processes=jax.process_count(),
        shared=cpu,
    )
    return announced(made, Path(out))


def announced(made: Plan, *folders: Path) -> Plan:
    """Prints a plan to stderr and checks it. `folders`: where it writes, all on one disk; what is in them already
    counts as written."""
    if jax.process_index() == 0:
        print(made.text(), file=sys.stderr)
    free = disk_free(folders[0]) + sum(_written(folder) for folder in folders)
    return made.check(device_free(), host_free(), free)


def _written(folder: Path) -> int:
    files: Iterable[Path] = folder.rglob("*") if folder.is_dir() else ()
    return sum(file.stat().st_size for file in files if file.is_file())
