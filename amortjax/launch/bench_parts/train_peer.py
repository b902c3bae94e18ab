"""The other side of bench_training: trains one of dictionary_learning's own trainers, unchanged, as it is told.

Run by path with a Python that has torch and dictionary_learning; nothing of amortjax is imported. A line of JSON
comes in on stdin, a line of JSON goes out on stdout, until stdin ends:

    {"do": "hello"}                                        -> {"versions": {..}}
    {"do": "setup", "module": .., "trainer": .., "options": {..}, "attributes": {..}, "rows": .., "order": ..,
     "weights": FILE, "threads": ..}                   -> {"device": ..}
    {"do": "train", "steps": n}                            -> {"seconds": .., "dead": ..}
    {"do": "quieten", "latents": FILE, "factor": f}        -> {"dead": ..}
    {"do": "encode", "x": FILE, "out": FILE}               -> {"seconds": ..}

An answer {"error": text} ends it. Everything that the trainers print goes to stderr.
"""

import importlib
import importlib.metadata
import json
import platform
import sys
import time
import traceback
from typing import Any

import numpy as np

CHUNK = 1024  # rows encoded at once


class Peer:
    """One trainer, and the batches it is fed with."""

    def hello(self, told: dict[str, Any]) -> dict[str, Any]:
        """Fails if something is not installed."""
        for name in ("torch", "dictionary_learning.trainers"):
            importlib.import_module(name)
        names = ("torch", "dictionary-learning", "numpy")
        versions = {name: importlib.metadata.version(name) for name in names}
        return {"versions": versions | {"python": platform.python_version()}}

    def setup(self, told: dict[str, Any]) -> dict[str, Any]:
        """`options` are the trainer's arguments; `attributes` are set on it afterwards, for what its arguments
        leave out. Batch i is rows[order[i]]. `weights` has the first w_enc (M, D) and w_dec (M, D)."""
        import torch

        torch.set_num_threads(told["threads"])
        options = told["options"]
        # Not every trainer seeds itself.
        torch.manual_seed(options["seed"])
        trainer = getattr(importlib.import_module(told["module"]), told["trainer"])
        self.trainer: Any = trainer(**options)
        for name, value in told["attributes"].items():
            if not hasattr(self.trainer, name):
                raise AttributeError(f"{told['trainer']} has no {name}")
            setattr(self.trainer, name, value)
        self._start(np.load(told["weights"]))
        self.rows = np.load(told["rows"], mmap_mode="r")
        self.order = np.load(told["order"], mmap_mode="r")
        self.step, self.device = 0, options["device"]
        return {"device": torch.cuda.get_device_name() if self.device == "cuda" else "cpu"}

    def _start(self, first: Any) -> None:
        """Directions of the given weights at the norms that the trainer starts with; biases are the trainer's."""
        import torch

        ae = self.trainer.ae
        # W_enc is (D, M) and W_dec (M, D); Linear layers keep them the other way round.
        turned = hasattr(ae, "W_enc")
        enc, dec = (ae.W_enc, ae.W_dec) if turned else (ae.encoder.weight, ae.decoder.weight)
        with torch.no_grad():
            for own, given, flip in ((enc, first["w_enc"], turned), (dec, first["w_dec"], not turned)):
                new = torch.from_numpy(np.array(given.T if flip else given)).to(own)
                own.copy_(new * (own.norm() / new.norm()))

    def train(self, told: dict[str, Any]) -> dict[str, Any]:
        """Further steps; the time includes fetching the batches."""
        start = time.perf_counter()
        for _ in range(told["steps"]):
            x = self._tensor(self.rows[self.order[self.step]])
            self.trainer.update(self.step, x)
            self.step += 1
        self._wait()
        return {"seconds": time.perf_counter() - start, "dead": self._dead()}

    def quieten(self, told: dict[str, Any]) -> dict[str, Any]:
        """Shrinks the encoders of some latents by `factor`, and counts these latents as dead."""
        chosen = np.load(told["latents"])
        import torch

        latents = torch.from_numpy(chosen).to(self.device)
        ae = self.trainer.ae
        with torch.no_grad():
            if hasattr(ae, "W_enc"):
                ae.W_enc[:, latents] *= told["factor"]
            else:
                ae.encoder.weight[latents] *= told["factor"]
        self.trainer.num_tokens_since_fired[latents] = self.trainer.dead_feature_threshold
        return {"dead": self._dead()}

    def encode(self, told: dict[str, Any]) -> dict[str, Any]:
        """Writes the non-zero codes of x (N, D), by the trained SAE's own `encode`, and its decoder."""
        import torch

        x, parts, ae = np.load(told["x"], mmap_mode="r"), [], self.trainer.ae
        start = time.perf_counter()
        with torch.no_grad():
            for first in range(0, len(x), CHUNK):
                z = ae.encode(self._tensor(x[first : first + CHUNK]))
                at = z.nonzero(as_tuple=True)
                parts.append([(at[0] + first).cpu().numpy(), at[1].cpu().numpy(), z[at].cpu().numpy()])
        seconds = time.perf_counter() - start
        rows, latents, values = map(np.concatenate, zip(*parts))  # noqa: B905  (Python 3.9 and older)
        w_dec = ae.W_dec if hasattr(ae, "W_dec") else ae.decoder.weight.T
        b_dec = next(getattr(ae, name) for name in ("b_dec", "decoder_bias", "bias") if hasattr(ae, name))
        dense = {"w_dec": w_dec.detach().cpu().numpy(), "b_dec": b_dec.detach().cpu().numpy()}
        np.savez(told["out"], rows=rows, latents=latents, values=values, **dense)
        return {"seconds": seconds}

    def _tensor(self, rows: np.ndarray) -> Any:
        import torch

        return torch.from_numpy(np.array(rows)).to(self.device)

    def _dead(self) -> int | None:
        """None if this trainer does not count."""
        silent = getattr(self.trainer, "num_tokens_since_fired", None)
        return None if silent is None else int((silent >= self.trainer.dead_feature_threshold).sum())

    def _wait(self) -> None:
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr
    peer = Peer()
    for line in sys.stdin:
        told = json.loads(line)
        try:
            said = getattr(peer, told["do"])(told)
        except Exception as error:
            traceback.print_exc()
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers, flush=True)
            return
        print(json.dumps(said), file=answers, flush=True)


if __name__ == "__main__":
    main()
