"""What `autointerp` writes: result rows, the latents' tables, and what the report's head says."""

import json
from pathlib import Path
from typing import Any

from amortjax import interp
from amortjax.interp.scoring import LatentScore
from amortjax.launch.autointerp_parts import Scene, Scored

EXAMPLES = 4  # contexts of each kind that latents.json and the report show


def rows_of(config: Any, scene: Scene, scored: list[Scored]) -> list[dict[str, Any]]:
    """A row for each SAE and mode, with its difference from the SAE's first mode and from the first SAE."""
    rows = []
    for one in scored:
        row = (
            one.subject.base | interp.summary(one.scores, config.seed) | {"protocol": scene.settings.protocol}
        )
        row |= {
            "judge": scene.judge.identity,
            "scorer": scene.scorer.identity,
            "n_eligible": one.subject.eligible,
        }
        if one.shuffled is not None:
            null = interp.summary(one.shuffled, config.seed)
            row |= {f"shuffled_{end}": null[end] for end in ("macro_f1", "macro_f1_lo", "macro_f1_hi")}
        first = next(o for o in scored if o.subject.checkpoint == one.subject.checkpoint)
        if first is not one:
            row |= _against(first, one, "mode", first.subject.mode, True, config.seed)
        other = next((o for o in scored if o.subject.mode == one.subject.mode), one)
        if other is not one:
            name = other.subject.checkpoint
            row |= _against(other, one, "sae", name, config.same_latents, config.seed)
        rows.append(row)
    return rows + [row | {"protocol": scene.settings.protocol} for row in scene.left_out]


def _against(first: Scored, one: Scored, which: str, name: str, paired: bool, seed: int) -> dict[str, Any]:
    found = interp.difference(one.scores, first.scores, paired, seed)
    return {f"against_{which}": name} | {f"{key}_{which}": value for key, value in found.items()}


def latent_rows(scored: list[Scored]) -> list[dict[str, Any]]:
    """A plain row for each SAE, mode and latent, with some of its contexts; what latents.json holds."""
    out = []
    for subject, scores, shuffled in scored:
        null = {s.latent: s.macro_f1 for s in shuffled or ()}
        for s in scores:
            row = {
                "checkpoint": subject.checkpoint,
                "mode": subject.mode,
                "latent": s.latent,
                "status": s.status,
            }
            row |= {"explanation": s.explanation, "n_fires": s.n_fires, "peak": s.peak}
            names = ("macro_f1", "f1", "precision", "recall", "balanced_accuracy", "fuzz")
            row |= {name: getattr(s, name) for name in names}
            row |= {"macro_f1_shuffled": null.get(s.latent), "n_negatives_active": s.unlike}
            out.append(row | {"examples": _examples(s)})
    return out


def _examples(score: LatentScore) -> list[dict[str, Any]]:
    """The strongest contexts that explained, then scoring contexts, wrongly answered ones first."""
    shown = [(c, "explained", None) for c in score.shown if c.positive][:EXAMPLES]
    said = score.said or (None,) * len(score.contexts)
    scored = [(c, "scored", answer) for c, answer in zip(score.contexts, said, strict=True)]
    scored.sort(key=lambda item: item[2] is None or item[2] == item[0].positive)
    out = []
    for context, use, answer in (*shown, *scored[: 2 * EXAMPLES]):
        values = [float(f"{value:.4g}") for value in context.values]
        about = {"use": use, "source": context.source, "positive": context.positive, "said": answer}
        out.append(about | {"tokens": list(context.tokens), "values": values, "at": context.at})
    return out


def write_latents(folder: Path, scored: list[Scored]) -> None:
    """latents.csv, and latents.json with contexts."""
    import pandas as pd

    from amortjax.files import write_atomically

    rows = latent_rows(scored)
    plain = [{key: value for key, value in row.items() if key != "examples"} for row in rows]
    write_atomically(folder / "latents.csv", pd.DataFrame(plain).to_csv(index=False))
    write_atomically(folder / "latents.json", json.dumps(rows, allow_nan=False) + "\n")


def about(scene: Scene) -> dict[str, str]:
    """For the report's head."""

    def said(judge: Any) -> str:
        model = judge.identity.get("model")
        return judge.name + (f" ({model})" if model else "")

    who = {"interpreter": said(scene.judge), "scorer": said(scene.scorer)}
    return who | {"protocol": scene.settings.protocol}
