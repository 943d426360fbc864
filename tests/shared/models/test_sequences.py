from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from unlearning.errors import ModelError
from unlearning.models.architectures import build

torch.set_num_threads(1)
LENGTH, WORDS = 7, 11


def pair_network(*, length: int = LENGTH, **arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    settings = {"vocabulary": WORDS, "embedding": 5, "hidden": 4, **arguments}
    return build("pair_lstm", settings, input_shape=(2, length), outputs=1).eval()


def padded(texts: list[list[int]], length: int) -> Tensor:
    """Texts of ids with their padding before them, (1, len(texts), length)."""
    return torch.tensor([[[0] * (length - len(text)) + text for text in texts]])


def slow_pair(model: nn.Module, texts: list[list[int]], *, compare: bool, mean: bool) -> Tensor:
    """The output for two texts, read word by word by an LSTM cell that sees no padding at all."""
    w = model.state_dict()
    states = []
    for text in texts:
        h = c = torch.zeros(4)
        seen = []
        for word in text:
            gates = w["lstm.weight_ih_l0"] @ w["embedding.weight"][word] + w["lstm.bias_ih_l0"]
            i, f, g, o = (gates + w["lstm.weight_hh_l0"] @ h + w["lstm.bias_hh_l0"]).split(4)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            seen.append(h)
        states.append(torch.stack(seen).mean(0) if mean and seen else h)
    first, second = states
    joined = torch.cat([first, second, (first - second).abs(), first * second] if compare else [first, second])
    for name in ("linear1", "linear2", "linear3"):
        joined = (w[f"{name}.weight"] @ joined + w[f"{name}.bias"]).relu()
    return w["linear4.weight"] @ joined + w["linear4.bias"]


TEXT = st.lists(st.integers(1, WORDS - 1), max_size=LENGTH)


@settings(max_examples=40, deadline=None)
@given(first=TEXT, second=TEXT, joined=st.sampled_from(["both", "compared"]), read=st.sampled_from(["last", "mean"]))
def test_a_pair_is_read_word_by_word_and_padding_is_not_there(
    first: list[int], second: list[int], joined: str, read: str
) -> None:
    model = pair_network(joined=joined, read=read)
    expected = slow_pair(model, [first, second], compare=joined == "compared", mean=read == "mean")
    with torch.no_grad():
        torch.testing.assert_close(model(padded([first, second], LENGTH))[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("read", ["last", "mean"])
def test_padding_changes_nothing_wherever_it_stands_and_however_long_it_is(read: str) -> None:
    model = pair_network(read=read)
    texts = [[3, 9, 4], [1, 2, 5, 7]]
    with torch.no_grad():
        plain = model(padded(texts, 4))
        torch.testing.assert_close(model(padded(texts, 30)), plain)
        after = torch.tensor([[text + [0] * (9 - len(text)) for text in texts]])
        torch.testing.assert_close(model(after), plain)
        assert not torch.allclose(model(padded([texts[0][::-1], texts[1]], 4)), plain)


@pytest.mark.parametrize("read", ["last", "mean"])
def test_a_text_without_words_has_a_finite_answer_and_gradient(read: str) -> None:
    model = pair_network(read=read, joined="compared")
    output = model(padded([[], [4, 2]], LENGTH))
    output.sum().backward()
    assert bool(output.isfinite().all())
    assert all(weight.grad is not None and bool(weight.grad.isfinite().all()) for weight in model.parameters())


def test_the_embedding_of_padding_stays_zero_while_it_trains() -> None:
    model = pair_network()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.1)
    model(padded([[3, 4], [5]], LENGTH)).sum().backward()
    optimiser.step()
    assert not bool(model.get_parameter("embedding.weight")[0].any())
    assert bool(model.get_parameter("embedding.weight")[3].any())


def test_compared_texts_have_the_same_score_in_either_order_of_the_comparison() -> None:
    model = pair_network(joined="compared")
    with torch.no_grad():
        model.get_parameter("linear1.weight")[:, :8] = 0  # what remains is |a - b| and a * b
        torch.testing.assert_close(
            model(padded([[3, 9, 4], [1, 2]], LENGTH)), model(padded([[1, 2], [3, 9, 4]], LENGTH))
        )


def test_the_recurrent_network_reads_in_order_and_puts_out_what_its_last_step_says() -> None:
    torch.manual_seed(0)
    model = build("lstm", {"hidden": 4}, input_shape=(6, 3), outputs=2).eval()
    w, sequence = model.state_dict(), torch.randn(6, 3)
    h = c = torch.zeros(4)
    for x in sequence:
        gates = w["lstm.weight_ih_l0"] @ x + w["lstm.bias_ih_l0"] + w["lstm.weight_hh_l0"] @ h + w["lstm.bias_hh_l0"]
        i, f, g, o = gates.split(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    with torch.no_grad():
        expected = w["linear.weight"] @ h + w["linear.bias"]
        torch.testing.assert_close(model(sequence[None])[0], expected)
        assert not torch.allclose(model(sequence.flip(0)[None])[0], expected)


def test_convolutions_take_a_row_of_features_as_one_value_a_step() -> None:
    torch.manual_seed(0)
    steps = build("cnn1d", {"width": 0.1}, input_shape=(24, 1), outputs=2).eval()
    features = build("cnn1d", {"width": 0.1}, input_shape=(24,), outputs=2).eval()
    features.load_state_dict(steps.state_dict())
    rows = torch.randn(5, 24)
    with torch.no_grad():
        assert torch.equal(features(rows), steps(rows[:, :, None]))


def test_convolutions_are_those_of_a_loop_over_time() -> None:
    torch.manual_seed(0)
    model = build("cnn1d", {"width": 0.05}, input_shape=(16, 2), outputs=3).eval()
    w, maps = model.state_dict(), torch.randn(16, 2)
    with torch.no_grad():
        expected = maps
        for block, stride in enumerate((2, 2, 1)):
            kernel = w[f"features.{block}.0.weight"]  # (out, in, size)
            around = kernel.shape[2] // 2
            wide = torch.cat([torch.zeros(around, expected.shape[1]), expected, torch.zeros(around, expected.shape[1])])
            rows = [
                (kernel * wide[t : t + kernel.shape[2]].T[None]).sum((1, 2)) for t in range(0, len(expected), stride)
            ]
            # fresh batch normalisation in eval mode divides by sqrt(1 + 1e-5)
            expected = (torch.stack(rows) / (1 + 1e-5) ** 0.5).relu()
        expected = w["linear.weight"] @ expected.mean(0) + w["linear.bias"]
        torch.testing.assert_close(model(maps[None].expand(1, -1, -1))[0], expected)


@pytest.mark.parametrize(
    ("name", "arguments", "shape", "says"),
    [
        ("lstm", {}, (9,), "it takes (steps, values)"),
        ("lstm", {"layers": 0}, (9, 3), "layers: Input should be greater than or equal to 1"),
        ("lstm", {"hiden": 4}, (9, 3), '"hiden"; did you mean "hidden"'),
        ("lstm", {"hidden": True}, (9, 3), "hidden: Input should be a valid integer"),
        ("cnn1d", {}, (3, 32, 32), "it takes (steps, values) or (features,)"),
        ("cnn1d", {}, (7, 3), "8 steps or features or more"),
        ("pair_lstm", {"vocabulary": 9}, (3, 7), "two rows of token ids: (2, length)"),
        ("pair_lstm", {}, (2, 7), "vocabulary: Missing"),
        ("pair_lstm", {"vocabulary": 1}, (2, 7), "vocabulary: Input should be greater"),
        ("pair_lstm", {"vocabulary": 9, "read": "first"}, (2, 7), "'last' or 'mean'"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    name: str, arguments: dict[str, Any], shape: tuple[int, ...], says: str
) -> None:
    with pytest.raises(ModelError) as caught:
        build(name, arguments, input_shape=shape, outputs=1)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
