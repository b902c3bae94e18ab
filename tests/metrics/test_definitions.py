import numpy as np

from amortjax.metrics import absorption
from amortjax.metrics.definitions import ARROWS, METRICS
from amortjax.metrics.streaming import finalise, init


def test_every_metric_says_what_it_is_and_which_way_is_better():
    for name, metric in METRICS.items():
        assert metric.direction in ARROWS and metric.id and metric.label and metric.text.endswith("."), name
    headers = [METRICS[name].header for name in ("nmse", "f1@1", "l0")]
    assert headers == ["NMSE ↓", "F1@1 ↑", "L0"]


def test_every_number_of_a_stream_and_of_the_probes_is_defined():
    sums = init(3, 2)
    sums.tokens[0] = 1
    sums = sums._replace(per_token=(np.full((1, 3), np.nan),))
    counts = {"n_tokens", "n_latents"}
    assert set(finalise(sums)) - counts <= set(METRICS)
    assert {*absorption.NAMES, "f1@1", "f1@2", "df1", "dead_half"} <= set(METRICS)
