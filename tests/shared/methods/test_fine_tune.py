import copy
from dataclasses import replace

import pytest
import torch
from support.digits import case

from unlearning.methods import Facts
from unlearning.methods.fine_tune import FineTuneConfig, configure, distill
from unlearning.training import generator, optimise

FACTS = Facts(retain_rows=9000, retain_per_class=1000, input_size=64, forget_classes=1)


def test_it_is_adam_on_the_retain_rows_from_the_originals_weights() -> None:
    digits = case("class")
    config = FineTuneConfig(epochs=1, batch_size=64, learning_rate=1e-3)
    student, record = distill(
        digits.original, replace(digits.task, forget=None), config=config, generator=generator(0, "distill")
    )
    expected = copy.deepcopy(digits.original)
    assert digits.task.retain is not None
    losses = optimise(
        expected,
        digits.task.retain,
        optimiser=torch.optim.Adam(expected.parameters(), lr=1e-3),
        epochs=1,
        batch_size=64,
        generator=generator(0, "distill"),
    )
    assert record.histories == {"loss": losses}
    assert all(torch.equal(a, b) for a, b in zip(expected.parameters(), student.parameters(), strict=True))


@pytest.mark.parametrize(
    # Five epochs of 9,000 rows take 175 updates of 256; of 1,000 rows 156 of 32; 200 rows need eight epochs of 16.
    ("rows", "expected"),
    [(9000, (256, 5)), (1000, (32, 5)), (200, (16, 8))],
)
def test_batch_and_epochs_follow_the_number_of_retain_rows(rows: int, expected: tuple[int, int]) -> None:
    config = configure({}, replace(FACTS, retain_rows=rows))
    assert (config.batch_size, config.epochs) == expected
