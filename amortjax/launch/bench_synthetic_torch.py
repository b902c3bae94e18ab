"""The training loops of the synthetic scenarios in PyTorch, timed beside ours: same data, sizes, loss and precision.

Five seeds on 1 024 samples, known dictionary, 16 sources in 8 dimensions. Both take turns in one run, after a first
call that compiles or warms up; a time is the median of the repeats. PyTorch gets the better of one thread and all.
"""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

SEEDS = 5
METHODS = {"sae": 400, "mlp32": 200, "mlp256": 30, "mlp1024": 6, "codes": 400}  # and steps of a timed call


def beside(repeats: int) -> str:
    """The table as text."""
    lines = ["loop      ours, us/step  PyTorch, us/step  factor  compiling, s"]
    for method, n_steps in METHODS.items():
        ours, compiling = _ours(method, n_steps)
        theirs = _torch(method, n_steps)
        calls = {"ours": ours, "one": functools.partial(theirs, 1), "all": functools.partial(theirs, 0)}
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(repeats):
            for name, timed_call in calls.items():
                times[name].append(_timed(timed_call))
        micro = {name: 1e6 * statistics.median(found) / n_steps for name, found in times.items()}
        best = min(micro["one"], micro["all"])
        numbers = f"{micro['ours']:13.0f}  {best:16.0f}  {best / micro['ours']:6.1f}  {compiling:12.1f}"
        lines.append(f"{method:8}  {numbers}")
    head = f"Five seeds, a step of all of them, float32; medians of {repeats} calls in turn."
    return "\n".join([head, *lines])


def _timed(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _ours(method: str, n_steps: int) -> tuple[Callable[[], Any], float]:
    """A call of so many steps, and the seconds of the first one beyond a later one's."""
    import jax

    from amortjax.synthetic import coding, scenarios, training

    setup = scenarios.Setup("known_dictionary", seeds=SEEDS)
    data = setup.data()
    if method == "codes":
        fit, weights = coding.CODES, coding.log_codes(SEEDS, len(data.x_train), setup.sources)
    else:
        fit, weights = scenarios.fit_of(setup.scenario, method), scenarios.first_weights(setup, method)
    batch = scenarios.batch_of(data, fit)
    numbers = training.Numbers(setup.lam, setup.lr)

    def call() -> None:
        jax.block_until_ready(training.advance(training.start(weights), batch, numbers, n_steps, fit=fit))

    first = _timed(call)
    return call, max(first - _timed(call), 0.0)


def _torch(method: str, n_steps: int) -> Callable[[int], Any]:
    """A call of so many steps of each seed on that many threads (0: as many as PyTorch takes by itself)."""
    import torch

    from amortjax.synthetic import scenarios

    setup = scenarios.Setup("known_dictionary", seeds=SEEDS)
    data = setup.data()
    x, dictionary = torch.tensor(data.x_train), torch.tensor(data.dictionary)
    default = torch.get_num_threads()

    def one_seed(seed: int) -> None:
        torch.manual_seed(seed)
        net, weights = _model(torch, method, setup, len(x))
        optimizer = torch.optim.Adam(weights, lr=setup.lr)
        for _ in range(n_steps):
            z = torch.exp(weights[0]) if net is None else net(x)
            loss = torch.mean((z @ dictionary - x) ** 2) + setup.lam * torch.mean(torch.abs(z))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def call(threads: int) -> None:
        torch.set_num_threads(threads or default)
        for seed in range(SEEDS):
            one_seed(setup.seed + seed)
        torch.set_num_threads(default)

    call(0)
    return call


def _model(torch: Any, method: str, setup: Any, n: int) -> tuple[Any, list[Any]]:
    """The network, None for free log codes, and what is trained."""
    from amortjax.synthetic import scenarios

    if method == "codes":
        return None, [torch.full((n, setup.sources), -10.0, requires_grad=True)]
    hidden = scenarios.hidden_of(method)
    widths = (setup.dimensions, hidden, setup.sources) if hidden else (setup.dimensions, setup.sources)
    layers: list[Any] = []
    for i in range(len(widths) - 1):
        layers += [torch.nn.Linear(widths[i], widths[i + 1], bias=False), torch.nn.ReLU()]
    net = torch.nn.Sequential(*layers)
    return net, list(net.parameters())
