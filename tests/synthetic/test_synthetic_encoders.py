"""First weights and training steps, against PyTorch's own modules and optimiser."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from amortjax.synthetic import adam, coding, encoders, scenarios, training
from amortjax.synthetic.encoders import Encoder
from amortjax.synthetic.generators import make_data
from amortjax.synthetic.scenarios import Setup
from amortjax.synthetic.training import Batch, Fit, Numbers

STEPS = 5


@pytest.fixture(scope="module")
def data():
    return make_data(11, 6, 4, 2, 64)


def torch_layers(widths: tuple[int, ...], bias: bool) -> torch.nn.Sequential:
    layers = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [torch.nn.Linear(n_in, n_out, bias=bias), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers)


@pytest.mark.parametrize(("biased", "offset"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("hidden", [0, 32])
def test_first_weights_are_those_of_the_modules(hidden, biased, offset):
    torch.manual_seed(20240625 + 42)
    net = torch_layers((8, hidden, 16) if hidden else (8, 16), biased)
    decoder = torch.nn.Linear(16, 8, bias=biased)
    atoms = torch.randn(8, 16)
    ours = encoders.init(20240625 + 42, Encoder(hidden, biased, offset=offset), 16, 8, True)
    linear = [layer for layer in net if isinstance(layer, torch.nn.Linear)]
    for (weight, bias), layer in zip(ours["layers"], linear, strict=True):
        assert np.array_equal(weight.T, layer.weight.detach().numpy())
        assert np.array_equal(bias, layer.bias.detach().numpy()) if biased else bias is None
    assert np.allclose(ours["atoms"].T, atoms.numpy(), atol=3e-6)
    assert np.array_equal(ours["offset"], decoder.bias.detach().numpy()) if offset else "offset" not in ours


def test_known_codes_models_are_made_before_their_runs_seed_is_set():
    """Run 0's SAE follows on the dictionary's draw, run 1's begins the stream of run 0's seed."""
    setup = Setup("known_codes", seeds=2, seed=77)
    torch.manual_seed(77)
    torch.randn(16, 8)
    first = torch.nn.Linear(8, 16)
    torch.manual_seed(77)
    second = torch.nn.Linear(8, 16)
    weight, bias = scenarios.first_weights(setup, "sae")["layers"][0]
    for run, layer in enumerate((first, second)):
        assert np.array_equal(np.asarray(weight[run]).T, layer.weight.detach().numpy())
        assert np.array_equal(np.asarray(bias[run]), layer.bias.detach().numpy())


def torch_loss(net, x, codes, atoms, offset, goal):
    z = net(x)
    if goal == "codes":
        return -torch.nn.functional.cosine_similarity(codes, z, dim=0).mean()
    return torch.mean((z @ atoms + offset - x) ** 2) + 0.05 * torch.mean(torch.abs(z))


@pytest.mark.parametrize(
    ("goal", "hidden"), [("codes", 7), ("reconstruction", 0), ("unknown", 7), ("offset", 7), ("offset", 0)]
)
def test_steps_are_pytorchs(data, hidden, goal):
    """Loss, gradient and Adam: the same weights after some steps as autograd's."""
    learn, bias = goal in ("unknown", "offset"), goal in ("codes", "offset")
    encoder = Encoder(hidden, bias, offset=goal == "offset")
    fit = Fit(encoder, "codes" if goal == "codes" else "reconstruction", learn)
    weights = encoders.init(3, fit.encoder, 6, 4, learn)
    torch.manual_seed(3)
    net = torch_layers((4, hidden, 6) if hidden else (4, 6), bias)
    x, codes = torch.tensor(data.x_train), torch.tensor(data.codes_train)
    atoms = torch.tensor(data.dictionary)
    trained = list(net.parameters())
    if learn:
        atoms = torch.nn.Parameter(torch.tensor(weights["atoms"]))
        trained.append(atoms)
    offset = torch.zeros(4)
    if goal == "offset":
        offset = torch.nn.Parameter(torch.tensor(weights["offset"]))
        trained.append(offset)
    optimizer = torch.optim.Adam(trained, lr=0.01)
    for _ in range(STEPS):
        if learn:  # the decoder is overwritten by the unit one: no gradient passes the normalisation
            atoms.data = torch.nn.functional.normalize(atoms.data, dim=1)
        loss = torch_loss(net, x, codes, atoms, offset, fit.goal)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    state = training.advance(
        training.start(encoders.stacked([weights])),
        scenarios.batch_of(data, fit),
        Numbers(0.05, 0.01),
        STEPS,
        fit=fit,
    )
    linear = [layer for layer in net if isinstance(layer, torch.nn.Linear)]
    for (weight, b), layer in zip(state.weights["layers"], linear, strict=True):
        assert np.allclose(np.asarray(weight[0]).T, layer.weight.detach().numpy(), atol=2e-6)
        assert b is None or np.allclose(np.asarray(b[0]), layer.bias.detach().numpy(), atol=2e-6)
    if learn:
        assert np.allclose(np.asarray(state.weights["atoms"][0]), atoms.detach().numpy(), atol=2e-6)
    if goal == "offset":
        assert not np.allclose(np.asarray(state.weights["offset"][0]), weights["offset"], atol=1e-3)
        assert np.allclose(np.asarray(state.weights["offset"][0]), offset.detach().numpy(), atol=2e-6)


def test_seeds_together_are_seeds_alone(data):
    """Whether seeds are vmapped or follow each other, share their data and rates or have their own."""
    each = [encoders.init(seed, Encoder(), 6, 4, False) for seed in range(3)]
    fit, batch = Fit(Encoder()), Batch(jnp.asarray(data.x_train), None, jnp.asarray(data.dictionary))
    numbers = Numbers(0.05, jnp.asarray([0.01, 0.02, 0.03]))
    together = training.advance(training.start(encoders.stacked(each)), batch, numbers, STEPS, fit=fit)
    own = jax.tree.map(lambda a: jnp.stack([a] * 3), batch)
    apart = training.advance(training.start(encoders.stacked(each)), own, numbers, STEPS, fit=fit)
    for i, weights in enumerate(each):
        rate = Numbers(0.05, float(numbers.lr[i]))
        alone = training.advance(training.start(encoders.stacked([weights])), batch, rate, STEPS, fit=fit)
        for state in (together, apart):
            found, expected = state.weights["layers"][0][0][i], alone.weights["layers"][0][0][0]
            assert np.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_adam_is_pytorchs(dtype):
    """Gradients from far above epsilon to far below it."""
    rng = np.random.default_rng(0)
    slopes = rng.standard_normal((40, 6)) * np.array([1, 1e-3, 1e-7, 1e-8, 1e-9, 1e-12])
    weight = torch.nn.Parameter(torch.zeros(6, dtype=getattr(torch, dtype)))
    optimizer = torch.optim.Adam([weight], lr=0.003)
    with jax.enable_x64(dtype == "float64"):
        ours = jnp.zeros(6, dtype)
        state = adam.init(ours)
        for slope in slopes:
            weight.grad = torch.tensor(slope, dtype=weight.dtype)
            optimizer.step()
            ours, state = adam.step(ours, jnp.asarray(slope, dtype), state, 0.003)
        expected = weight.detach().numpy()
        assert np.allclose(ours, expected, rtol=1e-4 if dtype == "float32" else 1e-12, atol=0)
        way, _ = adam.ADAM.update(jnp.ones(6, dtype), adam.init(ours))
        assert np.allclose(way, 1, rtol=1e-6)


def test_two_calls_are_one_and_the_given_weights_stay(data):
    begin = coding.log_codes(2, len(data.x_train), 6)
    batch = Batch(jnp.asarray(data.x_train), None, jnp.asarray(data.dictionary))
    one = training.advance(training.start(begin), batch, Numbers(), 6, fit=coding.CODES)
    two = training.advance(training.start(begin), batch, Numbers(), 2, fit=coding.CODES)
    two = training.advance(two, batch, Numbers(), 4, fit=coding.CODES)
    assert np.array_equal(one.weights["log_codes"], two.weights["log_codes"])
    assert float(begin["log_codes"].max()) == coding.LOG_START


def test_batches_are_drawn_anew_and_differ_between_seeds(data):
    fit = Fit(Encoder(), batch=8)
    batch = Batch(jnp.asarray(data.x_train), None, jnp.asarray(data.dictionary))
    weights = encoders.stacked([encoders.init(1, Encoder(), 6, 4, False)] * 2)
    state = training.advance(training.start(weights), batch, Numbers(), 3, fit=fit)
    assert not np.allclose(*state.weights["layers"][0][0])


def test_topk_keeps_the_largest_and_unit_atoms_have_norm_1(data):
    weights = encoders.init(1, Encoder(5), 6, 4, True)
    x = jnp.asarray(data.x_test)
    every, some = (np.asarray(encoders.encode(weights, x, Encoder(5, k=k))) for k in (0, 2))
    for full, kept in zip(every, some, strict=True):
        largest = np.sort(full)[-2:]
        assert np.array_equal(kept[kept > 0], full[(full >= largest[0]) & (full > 0)])
    norms = np.linalg.norm(encoders.unit_atoms(jnp.asarray(weights["atoms"])), axis=1)
    assert np.allclose(norms, 1, atol=1e-6)


def test_a_dead_latent_has_no_gradient_that_is_not_a_number():
    codes = jnp.ones((4, 2))
    slope = jax.grad(lambda z: training.cosine_loss(z, codes))(jnp.zeros((4, 2)))
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("m", [5, encoders._FEW + 1])
def test_the_largest_of_each_row(m):
    """Few latents and many, ties to the first, gradients to those that stay."""
    z = jnp.asarray(np.random.default_rng(0).integers(0, 4, (20, m)).astype(np.float32))
    for k in (1, 2, m - 1):
        found = np.asarray(encoders.largest(z, k))
        order = np.argsort(-np.asarray(z), axis=1, kind="stable")[:, :k]
        expected = np.zeros_like(found)
        np.put_along_axis(expected, order, np.take_along_axis(np.asarray(z), order, 1), 1)
        assert np.array_equal(found, expected)
        slope = jax.grad(lambda z, k=k: jnp.sum(encoders.largest(z, k) ** 2))(z)
        assert np.array_equal(np.asarray(slope), 2 * expected)
    assert encoders.largest(z, 0) is z and encoders.largest(z, m) is z
