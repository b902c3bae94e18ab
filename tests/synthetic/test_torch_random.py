"""PyTorch's random numbers without PyTorch, against PyTorch itself."""

import numpy as np
import pytest
import torch

from amortjax.synthetic.torch_random import TorchStream

SEEDS = (0, 42, 20240625, 2**31 - 1, 2**33 + 5)
SHAPES = ((16, 8), (3,), (5, 3), (17,), (33, 5), (1000,), (200, 37))
# Elsewhere PyTorch takes its normal numbers from the C library.
SAME_BITS = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def same(ours: np.ndarray, theirs: torch.Tensor) -> bool:
    theirs = theirs.detach().numpy()
    if SAME_BITS:
        return ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
    return np.allclose(ours, theirs, rtol=0, atol=3e-6)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_normal_numbers_of_calls_in_a_row(seed, shape):
    torch.manual_seed(seed)
    stream = TorchStream(seed)
    for _ in range(3):
        assert same(stream.randn(*shape), torch.randn(*shape))


@pytest.mark.parametrize("seed", SEEDS)
def test_uniform_numbers_are_the_same_bits(seed):
    torch.manual_seed(seed)
    stream = TorchStream(seed)
    for low, high, n in ((0.0, 1.0, 100), (-0.3, 0.3, 7), (2.0, 5.0, 1000)):
        assert np.array_equal(stream.uniform(low, high, n), torch.empty(n).uniform_(low, high).numpy())


@pytest.mark.parametrize(
    ("n_in", "n_out", "bias"), [(8, 16, True), (7, 33, False), (1, 1, True), (1024, 16, True)]
)
def test_linear_layers_are_the_same_bits_and_leave_the_stream_where_it_is(n_in, n_out, bias):
    torch.manual_seed(5)
    layer, after = torch.nn.Linear(n_in, n_out, bias=bias), torch.randn(32)
    stream = TorchStream(5)
    weight, own = stream.linear(n_in, n_out, bias)
    assert np.array_equal(weight, layer.weight.detach().numpy())
    assert (own is None) == (not bias)
    assert own is None or np.array_equal(own, layer.bias.detach().numpy())
    assert same(stream.randn(32), after)


def test_short_and_long_draws_mix():
    torch.manual_seed(9)
    stream = TorchStream(9)
    # A single number keeps its pair's sine for the next short draw, over a long one.
    for shape in ((1,), (20,), (2,), (16,), (5,)):
        assert same(stream.randn(*shape), torch.randn(*shape)), shape


def test_streams_of_other_seeds_differ():
    assert not np.array_equal(TorchStream(1).randn(40), TorchStream(2).randn(40))
