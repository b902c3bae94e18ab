"""What the judges of claims have in common: sizes from which an effect matters, and commands that make the rows."""

# Of effects, in the metric's own unit; a smaller one is no support for a claim.
LEAST = {
    "dead_half": 0.01,
    "dense@0.1": 0.005,
    "df1": 0.01,
    "absorption": 0.02,
    "absorption_excess": 0.02,
    "nmse": 0.01,
}
WHAT = {
    "dead_half": "dead",
    "dense@0.1": "dense",
    "df1": "ΔF1",
    "absorption": "absorption",
    "absorption_excess": "absorption",
    "nmse": "NMSE",
}
SECTION5 = "python -m amortjax.launch.section5 --flagfile=configs/section5/embedded.flags"
LITERAL = f"{SECTION5} --protocol=literal --out=outputs/quickstart/literal"
SECTION43 = "bash launch/section43.sh embedded"
SWEEP = "python -m amortjax.launch.step_sweep --flagfile=configs/step_sweep/embedded.flags"
LOCA = "python -m amortjax.launch.loca --flagfile=configs/loca/embedded.flags"
_ON_QUICKSTART = "--acts=outputs/quickstart/acts --ckpts=outputs/quickstart/topk,outputs/quickstart/standard"
DEAD = f"python -m amortjax.launch.dead_audit {_ON_QUICKSTART} --out=outputs/quickstart/dead_audit"
NULLS = f"python -m amortjax.launch.nulls {_ON_QUICKSTART} --out=outputs/quickstart/nulls"
CORE = (
    "python -m amortjax.launch.core_lite --ckpts=outputs/quickstart/topk,outputs/quickstart/standard "
    "--model_name=embedded --layer_index=2 --out=outputs/quickstart/core_lite"
)
ONE_PERCENT = 0.01  # of P*: what "is the optimum" may be off
SAME_L0 = 0.02  # relative: what "as sparse as" may be off
