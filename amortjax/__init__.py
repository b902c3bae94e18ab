"""amortjax: measures and removes the price of amortized inference in sparse autoencoders.

    import amortjax as aj
    sae = aj.load_sae("path/or/org/repo:file")
    codes = aj.infer(sae, x, lam=aj.calibrate(sae, x).lam)

Names are loaded on first use, so that the import itself is quick and free of torch.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_PLACES = {
    "load_sae": "amortjax.saes.formats",
    "save_sae": "amortjax.saes.formats",
    "SAE": "amortjax.saes.sae",
    "encode": "amortjax.saes.api",
    "decode": "amortjax.saes.api",
    "reconstruct": "amortjax.saes.api",
    "infer": "amortjax.inference.api",
    "calibrate": "amortjax.inference.api",
    "Solution": "amortjax.inference.api",
    "Calibration": "amortjax.inference.calibrate",
    "price": "amortjax.price",
    "as_saelens": "amortjax.adapters",
    "open_store": "amortjax.activations.store",
    "MemoryStore": "amortjax.activations.store",
}
__all__ = ["__version__", *_PLACES]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'amortjax' has no attribute {name!r}")
    # `amortjax.price` is also a module: importing it would otherwise hide the function of that name.
    value = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
