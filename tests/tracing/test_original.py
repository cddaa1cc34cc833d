import threading

import torch
from torch import Tensor, nn

from embedl_deploy.tracing import trace
from embedl_deploy.tracing.light_copy import light_copy
from embedl_deploy.tracing.program import modules_of

ROWS = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def doubled(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    del module, inputs
    return output * 2


class Hooked(nn.Module):
    """Has a hook, a list of bound methods, a lock that refuses to be copied, and state."""

    def __init__(self, lock: object | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.calls = [self.linear.forward]
        self.lock = lock
        self.register_forward_hook(doubled)

    def forward(self, x: Tensor) -> Tensor:
        return self.calls[0](self.norm(self.linear(x)))


def snapshot(model: nn.Module) -> tuple[object, ...]:
    return (
        {name: id(module) for name, module in modules_of(model)},
        {name: id(tensor) for name, tensor in model.named_parameters()},
        {name: tensor.tolist() for name, tensor in model.state_dict().items()},
        {name: module.training for name, module in modules_of(model)},
        len(vars(model)["_forward_hooks"]),
        type(model),
    )


def test_tracing_leaves_the_model_as_it_was_and_respects_hooks() -> None:
    for lock in (None, threading.Lock()):
        model = Hooked(lock).eval()
        before = snapshot(model)

        graph = trace(model, (ROWS,))

        assert snapshot(model) == before
        assert torch.equal(graph(ROWS), model(ROWS))


def test_a_train_mode_trace_does_not_move_the_norms_of_the_model() -> None:
    model = Hooked()
    before = snapshot(model)

    trace(model, (ROWS,))(ROWS)

    assert snapshot(model) == before


def test_train_first_makes_the_parameters_of_the_result_its_own() -> None:
    model = Hooked().eval()
    graph = trace(model, (ROWS,))
    assert graph.get_submodule("linear").weight is model.linear.weight

    graph.train()
    torch.optim.SGD(graph.parameters(), lr=1.0).zero_grad()
    graph(ROWS).sum().backward()

    assert model.linear.weight.grad is None
    assert graph.get_submodule("linear").weight is not model.linear.weight


def test_copy_gives_the_result_tensors_of_its_own() -> None:
    model = Hooked().eval()

    graph = trace(model, (ROWS,), copy=True)

    assert graph.get_submodule("linear").weight is not model.linear.weight
    assert torch.equal(graph(ROWS), model(ROWS))


def test_a_light_copy_shares_tensors_and_no_modules() -> None:
    for lock in (None, threading.Lock()):
        model = Hooked(lock)

        copied = light_copy(model)

        assert isinstance(copied, Hooked)
        assert copied.linear is not model.linear
        assert copied.linear.weight is model.linear.weight
        assert getattr(copied.calls[0], "__self__", None) is copied.linear


def test_another_thread_may_use_the_model_meanwhile() -> None:
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(20)]).eval()
    expected = model(ROWS)
    failures: list[object] = []
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            if not torch.equal(model(ROWS), expected):
                failures.append("another value")

    server = threading.Thread(target=serve)
    server.start()
    tracers = [threading.Thread(target=trace, args=(model, (ROWS,))) for _ in range(2)]
    for tracer in tracers:
        tracer.start()
    for tracer in tracers:
        tracer.join()
    stop.set()
    server.join()

    assert failures == []


class Stochastic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


def test_notes_name_what_an_eval_mode_trace_cannot_hold() -> None:
    graph = trace(Stochastic().eval(), (ROWS[None],))

    assert "dropout inside attention of 1 modules" in graph.meta["embedl_deploy"].notes[0]
