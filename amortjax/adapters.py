"""An SAE whose codes come from any inference mode, as SAELens and SAEBench handle SAEs: torch in, torch out.

    sae = aj.load_sae("path/to/an/sae")
    optimal = aj.as_saelens(sae, "optimal", lam=aj.calibrate(sae, x).lam)
    z = optimal.encode(activations)  # (..., D) -> (..., M)

so that their evaluations run on the optimal codes, the refitted ones or the encoder's own, one beside the other.
"""

import dataclasses
import functools
import types
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from amortjax.errors import AmortjaxError
from amortjax.inference import api as inference
from amortjax.inference import modes, objective
from amortjax.saes import api
from amortjax.saes.formats.hooks import transformer_lens_name
from amortjax.saes.sae import SAE, atoms, is_transcoder, norm_in

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

# Tokens at a time: each size compiles once.
BLOCKS = (64, 256, 1024)


class Metadata(types.SimpleNamespace):
    """A copy of a Config; None for whatever else is asked for, as with SAELens' metadata."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@dataclasses.dataclass
class Config:
    """What SAELens and SAEBench ask of `sae.cfg`. SAELens looks in `metadata`, SAEBench beside it; both find all."""

    model_name: str
    d_in: int
    d_sae: int
    hook_layer: int | None
    hook_name: str
    architecture: str
    context_size: int | None = None
    hook_head_index: int | None = None
    apply_b_dec_to_input: bool = False
    activation_fn_str: str = ""
    prepend_bos: bool = True
    normalize_activations: str = "none"
    reshape_activations: str = "none"
    dtype: str = "float32"
    device: str = "cpu"
    dataset_path: str = ""
    dataset_trust_remote_code: bool = False
    seqpos_slice: tuple[int | None, ...] = (None,)
    model_from_pretrained_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    sae_lens_training_version: str | None = None
    neuronpedia_id: str | None = None

    @property
    def metadata(self) -> "Metadata":
        return Metadata(**dataclasses.asdict(self))

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def as_saelens(
    sae: SAE,
    mode: str = "optimal",
    lam: float | None = None,
    tokens: Any = None,
    prepend_bos: bool = True,
    context_size: int | None = None,
    **options: Any,
) -> "Module":
    """A torch module with `encode`, `decode`, `forward`, W_enc (D, M), W_dec (M, D), b_enc, b_dec, cfg, device, dtype.

    encode: x (..., D), or (..., heads, d_head) with heads * d_head = D -> z (..., M) in the module's dtype, on x's
    device, without a gradient. W_dec are the atoms as decode applies them. decode of an SAE that normalises its
    inputs undoes this for the tokens encoded last.

    mode: of `inference.modes.MODES`. lam: half form, as `aj.calibrate` finds it; modes without a lambda need none.
    tokens: activations (N, D); what is not given is fitted on them: lam so that the codes have the encoder's L0, or
    encoder_scaled's one scale. prepend_bos, context_size: how an evaluation is to feed the language model. Further
    options are those of `inference.modes.Options` (tol, semi_steps, ista_steps, ...).

    `n_tokens` and `n_certified` count what was encoded by a mode with a lambda, and what of that is proved optimal
    within `tol`. Raises AmortjaxError for transcoders, whose optimal codes need the output, which encode(x) is not
    given, and for SAEs that rank whole batches.
    """
    mode = modes.resolve(mode)
    _check(sae, mode, lam, tokens)
    lam, scale = _fitted(sae, mode, lam, tokens, options)
    config = _config(sae, mode, prepend_bos, context_size)
    return _module_class()(_Coder(sae, mode, lam, scale, options), config)


def _check(sae: SAE, mode: str, lam: float | None, tokens: Any) -> None:
    if is_transcoder(sae):
        raise AmortjaxError(
            "this is a transcoder: its codes explain an output, which encode(x) is not given; use aj.infer with target="
        )
    if sae.batch_rule:
        raise AmortjaxError(
            "this SAE keeps the k * N largest of a batch, so its codes depend on how an evaluation cuts batches: load "
            "it with threshold=..., the one measured on data"
        )
    knob = modes.MODES[mode].knob
    if knob == "lam" and lam is None and tokens is None:
        raise AmortjaxError(
            f"mode {mode} needs a lambda: pass lam=aj.calibrate(sae, x).lam, or tokens=x to calibrate on them"
        )
    if knob == "scale" and tokens is None:
        raise AmortjaxError(f"mode {mode} needs tokens=x, on which its scale is fitted")


def _fitted(
    sae: SAE, mode: str, lam: float | None, tokens: Any, options: dict[str, Any]
) -> tuple[float, float]:
    """lambda (0 where the mode has none) and the scale of all codes."""
    knob = modes.MODES[mode].knob
    if knob == "lam":
        if lam is None:
            lam = inference.calibrate(sae, tokens, mode=mode, **options).lam
        return float(lam), 1.0
    if knob == "none":
        return 0.0, 1.0
    problem, x = objective.pose(sae), inference.rows(tokens, sae.d_in)
    t = np.asarray(objective.targets(sae, x)[0])
    encoder = problem.fold(inference.encode_codes(sae, x))
    return 0.0, modes.best_scale(problem, t, encoder, lam or 0.0)


def _config(sae: SAE, mode: str, prepend_bos: bool, context_size: int | None) -> Config:
    info = sae.info
    return Config(
        model_name=info.model_name,
        d_in=sae.d_in,
        d_sae=sae.n_latents,
        hook_layer=info.layer_index,
        hook_name=transformer_lens_name(info.hook, info.layer_index),
        architecture=f"{sae.variant} ({mode})",
        context_size=context_size,
        prepend_bos=prepend_bos,
    )


class _Coder:
    """Codes of rows, in NumPy, and the count of what was certified."""

    def __init__(self, sae: SAE, mode: str, lam: float, scale: float, options: dict[str, Any]):
        self.sae, self.mode, self.lam, self.scale, self.options = sae, mode, lam, scale, options
        self.n_tokens = self.n_certified = 0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """x (n, D), n <= 1024 -> z (n, M) float32."""
        if self.mode in ("amortized", "encoder_scaled"):
            return api.encode(self.sae, inference.rows(x, self.sae.d_in)) * np.float32(self.scale)
        size = next(size for size in BLOCKS if len(x) <= size)
        padded = np.pad(x, ((0, size - len(x)), (0, 0)), mode="edge")
        found = inference.infer(self.sae, padded, self.lam, self.mode, **self.options)
        if modes.MODES[self.mode].knob == "lam":
            self.n_tokens += len(x)
            self.n_certified += int(found.certified[: len(x)].sum())
        return found.codes.rows(0, len(x)).dense()


def _rows(x: "Tensor", width: int) -> tuple["Tensor", tuple[int, ...]]:
    """x as (N, width), and its leading axes; heads are flattened."""
    shape = tuple(x.shape)
    if shape and shape[-1] == width:
        return x.reshape(-1, width), shape[:-1]
    if len(shape) > 1 and shape[-2] * shape[-1] == width:
        return x.reshape(-1, width), shape[:-2]
    raise AmortjaxError(f"activations of shape {shape} do not fit an SAE of d_model {width}")


def _host(x: "Tensor") -> np.ndarray:
    return x.detach().cpu().float().numpy()


@functools.cache
def _module_class() -> type:
    """SAELensAdapter. Made on first use, so that torch is needed only then."""
    try:
        import torch
    except ImportError:
        raise AmortjaxError("as_saelens needs torch: pip install 'amortjax[saelens]'") from None

    class SAELensAdapter(torch.nn.Module):
        """See `as_saelens`."""

        W_enc: torch.nn.Parameter
        b_enc: torch.nn.Parameter
        W_dec: torch.nn.Parameter
        b_dec: torch.nn.Parameter

        def __init__(self, coder: _Coder, cfg: Config):
            super().__init__()
            sae = coder.sae
            self.cfg, self.dtype, self.device = cfg, torch.float32, torch.device("cpu")
            self._coder = coder
            self._stats: tuple[Any, list] | None = (
                None  # leading axes, scale and shift of the tokens encoded last
            )
            weights = {"W_enc": sae.W_enc, "b_enc": sae.b_enc, "W_dec": atoms(sae), "b_dec": sae.b_dec}
            for name, array in weights.items():
                value = torch.from_numpy(np.array(array, np.float32))
                self.register_parameter(name, torch.nn.Parameter(value, requires_grad=False))
            self.use_error_term = self.hook_z_reshaping_mode = False

        @property
        def n_tokens(self) -> int:
            return self._coder.n_tokens

        @property
        def n_certified(self) -> int:
            return self._coder.n_certified

        @torch.no_grad()
        def encode(self, x: "Tensor") -> "Tensor":
            """x (..., D) or (..., heads, d_head) -> z (..., M)."""
            rows, leading = _rows(x, self.cfg.d_in)
            z = torch.empty((len(rows), self.cfg.d_sae), dtype=self.dtype, device=x.device)
            for first in range(0, len(rows), BLOCKS[-1]):
                part = slice(first, min(first + BLOCKS[-1], len(rows)))
                z[part] = torch.from_numpy(self._coder(_host(rows[part])))
            if self._coder.sae.norm != "none":
                _, stats = norm_in(self._coder.sae, jnp.asarray(_host(rows)))
                tensors = [torch.from_numpy(np.array(s)).to(x.device, self.dtype) for s in stats]
                self._stats = leading, tensors
            return z.reshape(*leading, self.cfg.d_sae)

        def decode(self, feature_acts: "Tensor") -> "Tensor":
            """z (..., M) -> y (..., D)."""
            y = feature_acts @ self.W_dec + self.b_dec
            if self._coder.sae.norm == "none":
                return y
            if self._stats is None or self._stats[0] != feature_acts.shape[:-1]:
                raise AmortjaxError(
                    "this SAE normalises its input: decode undoes it for the tokens encoded last, once; encode these "
                    "tokens first"
                )
            (leading, (scale, shift)), self._stats = self._stats, None
            return y * scale.reshape(*leading, 1) + shift.reshape(*leading, 1)

        def forward(self, x: "Tensor") -> "Tensor":
            """x -> y, in x's own shape."""
            return self.decode(self.encode(x)).reshape(x.shape)

        def to(self, *args: Any, **kwargs: Any) -> "SAELensAdapter":
            super().to(*args, **kwargs)
            self.dtype, self.device = self.W_dec.dtype, self.W_dec.device
            self.cfg.dtype, self.cfg.device = str(self.dtype).removeprefix("torch."), str(self.device)
            return self

        def turn_on_forward_pass_hook_z_reshaping(self) -> None:
            """Nothing: heads are flattened wherever they come."""
            self.hook_z_reshaping_mode = True

        def turn_off_forward_pass_hook_z_reshaping(self) -> None:
            self.hook_z_reshaping_mode = False

        def fold_W_dec_norm(self) -> None:
            """Refused: codes come from the dictionary as it is."""
            raise AmortjaxError("fold the decoder's norms before: load the SAE with normalize_decoder=True")

    return SAELensAdapter
