import math

import pytest
import torch

from unlearning.errors import UsageError
from unlearning.losses import loss_of
from unlearning.methods import Facts
from unlearning.methods.negative_gradient_plus import configure, negative_gradient_plus_loss

FACTS = Facts(retain_rows=9000, retain_per_class=1000, input_size=64, forget_classes=1)


def test_the_loss_weighs_the_mean_of_retain_rows_against_that_of_forget_rows_by_hand() -> None:
    # Two retain rows: losses ln 2 and ln 4. Two forget rows: ln(4/3), twice. 3/4 (3/2 ln 2) - 1/4 ln(4/3).
    three, even = [math.log(3), 0.0], [0.0, 0.0]
    logits = torch.tensor([even, three, three, three])
    targets = torch.tensor([0, 1, 0, 0])
    loss = negative_gradient_plus_loss(logits, targets, alpha=0.75)
    assert loss.item() == pytest.approx(0.75 * 1.5 * math.log(2) - 0.25 * math.log(4 / 3))


def test_values_are_weighed_by_their_own_loss() -> None:
    outputs, targets = torch.tensor([[1.0], [5.0], [2.0], [2.0]]), torch.tensor([0.0, 2.0, 2.0, 6.0])
    loss = negative_gradient_plus_loss(outputs, targets, alpha=0.75, loss=loss_of("l1"))
    assert loss.item() == pytest.approx(0.75 * 2 - 0.25 * 2)


def test_at_the_ends_of_alpha_only_one_kind_of_row_has_a_gradient() -> None:
    for alpha, still in ((1.0, slice(2, 4)), (0.0, slice(0, 2))):
        logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
        negative_gradient_plus_loss(logits, torch.tensor([0, 1, 2, 0]), alpha=alpha).backward()
        assert logits.grad is not None
        assert logits.grad[still].abs().max() == 0
        assert logits.grad.abs().max() > 0


def test_alpha_is_a_share_and_the_batch_follows_the_retain_rows() -> None:
    with pytest.raises(UsageError, match=r"alpha must be in \[0, 1\], got 1.5"):
        configure({"alpha": 1.5}, FACTS)
    assert (configure({}, FACTS).batch_size, configure({}, FACTS).epochs) == (64, 1)
