import os
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

from unlearning.data.selection import ForgetRequest, select
from unlearning.data.sources import fit_scaling, make_manifest, open_samples, read_contents
from unlearning.errors import UnlearningError, UsageError

STEPS, ENCODER, HORIZON = 200, 6, 3
START = datetime(2017, 1, 30, 5)
OPTIONS = f"encoder={ENCODER}&horizon={HORIZON}"


def series() -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    steps = np.arange(STEPS)
    return np.stack([steps * 1.0, np.cos(steps) * 10 + 5], axis=1).round(3)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    times = [START + timedelta(hours=step) for step in range(STEPS)]
    rows = [f"{time},{a},{b}" for time, (a, b) in zip(times, series().tolist(), strict=True)]
    (tmp_path / "s.csv").write_text("\n".join(["date,load,heat", *rows]) + "\n")
    return tmp_path / "s.csv"


def test_a_window_has_the_past_the_calendar_and_no_future_values(file: Path) -> None:
    made = make_manifest(f"windows:{file}?target=heat&{OPTIONS}&unit=C")
    card = made.card
    assert (card.input_shape, card.horizon, card.features) == ((9, 7), 3, ("load", "heat"))
    assert (card.target_name, card.target_unit) == ("heat", "C")
    samples = open_samples(made)
    inputs, targets = samples.batch(torch.tensor([4]))
    first = ENCODER + 4
    raw = inputs[0, :, :2] * torch.tensor(card.std) + torch.tensor(card.mean)
    assert np.allclose(raw[:ENCODER], series()[4:first], atol=1e-4)
    assert inputs[0, ENCODER:, :2].tolist() == [[0, 0]] * HORIZON
    ahead = series()[first : first + HORIZON, 1]
    assert np.allclose(targets[0] * card.std[1] + card.mean[1], ahead, atol=1e-4)
    assert torch.equal(samples.targets[4], targets[0])
    assert made.targets()[4] == pytest.approx(ahead.mean(), abs=1e-4)
    moment = START + timedelta(hours=first)
    assert made.table["sample_id"][4].as_py() == moment.isoformat(timespec="hours")
    assert made.table["subject_id"][4].as_py() == "2017-01"
    hour, weekday, day, month, elapsed = inputs[0, ENCODER, 2:].tolist()
    wanted = (moment.hour / 23 - 0.5, moment.weekday() / 6 - 0.5, (moment.day - 1) / 30 - 0.5, -0.5, first / 140)
    assert (hour, weekday, day, month, elapsed) == pytest.approx(wanted, abs=1e-6)


def test_no_value_to_predict_is_in_two_splits_and_time_goes_on(file: Path) -> None:
    made = make_manifest(f"windows:{file}?target=heat&{OPTIONS}")
    places = np.array([int(text) for text in made.table["location"].to_pylist()])
    ahead = {
        split: {int(first) + step for first in places[made.rows(split)] for step in range(HORIZON)}
        for split in ("train", "validation", "test")
    }
    assert max(ahead["train"]) == 139
    assert (min(ahead["validation"]), max(ahead["validation"]), min(ahead["test"])) == (140, 159, 160)
    assert max(ahead["test"]) == STEPS - 1
    assert len(made) == STEPS - ENCODER - HORIZON + 1 - 2 * (HORIZON - 1)


def test_the_scaling_knows_the_training_time_only(file: Path) -> None:
    made = make_manifest(f"windows:{file}?target=heat&{OPTIONS}")
    assert np.allclose(made.card.mean, series()[:140].mean(axis=0), rtol=1e-5)
    assert np.allclose(made.card.std, series()[:140].std(axis=0), rtol=1e-5)
    some = fit_scaling(made, [0, 1])  # steps 0 to 9
    assert np.allclose(some.mean, series()[:10].mean(axis=0), rtol=1e-5)


def test_each_column_can_be_a_series_of_its_own(file: Path) -> None:
    made = make_manifest(f"windows:{file}?target=*&{OPTIONS}&stride=5")
    assert made.card.input_shape == (9, 7)  # one value, five of calendar, the number of the series
    assert set(made.table["subject_id"].to_pylist()) == {"load", "heat"}
    row = made.table["sample_id"].to_pylist().index("heat@2017-01-30T11")
    inputs, targets = open_samples(made, [row]).batch(torch.tensor([0]))
    assert inputs[0, :, -1].tolist() == [1] * 9
    assert np.allclose(inputs[0, :ENCODER, 0] * made.card.std[1] + made.card.mean[1], series()[:6, 1], atol=1e-4)
    assert np.allclose(targets[0] * made.card.std[1] + made.card.mean[1], series()[6:9, 1], atol=1e-4)
    chosen = select(made, ForgetRequest("subject", ("heat",)), seed=0)
    assert set(np.array(made.table["subject_id"].to_pylist())[chosen.forget]) == {"heat"}


def test_windows_share_the_memory_of_the_series(file: Path) -> None:
    samples = open_samples(make_manifest(f"windows:{file}?target=heat&{OPTIONS}"))
    held = [value for value in vars(samples).values() if isinstance(value, torch.Tensor)]
    assert sum(tensor.numel() for tensor in held) < STEPS * (2 + 5) + 2 * STEPS + 20


def test_forgetting_a_period_takes_every_window_that_touches_it(file: Path) -> None:
    made = make_manifest(f"windows:{file}?target=heat&{OPTIONS}")
    chosen = select(made, ForgetRequest("period", ("2017-02-01",)), seed=0)
    places = np.array([int(text) for text in made.table["location"].to_pylist()])
    day = {step for step in range(STEPS) if (START + timedelta(hours=step)).date().isoformat() == "2017-02-01"}
    touching = [
        row for row in made.rows("train") if day & set(range(int(places[row]) - ENCODER, int(places[row]) + HORIZON))
    ]
    assert chosen.forget.tolist() == touching
    ranged = select(made, ForgetRequest("period", ("2017-02-01T00/2017-02-02T00",)), seed=0)
    assert ranged.forget.tolist() == touching
    month = select(made, ForgetRequest("subject", ("2017-01",)), seed=0)
    assert len(month.forget) == sum(text == "2017-01" for text in made.table["subject_id"].to_pylist())


@pytest.mark.parametrize("period", ["2019", "2017-02-01/2017-01-01", "spring", "2017-2", "2017-02-01:2017-02-02"])
def test_periods_that_are_none_or_not_there_are_refused(file: Path, period: str) -> None:
    made = make_manifest(f"windows:{file}?target=heat&{OPTIONS}")
    with pytest.raises(UsageError, match="period"):
        select(made, ForgetRequest("period", (period,)), seed=0)


def test_a_few_windows_can_be_looked_at_unscaled(file: Path) -> None:
    made = make_manifest(f"windows:{file}?target=heat&{OPTIONS}")
    looked = read_contents(made).load([made.table["location"][2].as_py()], None)
    assert np.allclose(looked[0], series()[2:11])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("target=heet", 'did you mean "heat"'),
        ("target=heat&time=when", "column of times"),
        ("target=heat&encoder=150", "no train or no test window"),
        ("target=heat&validation=60&test=40", "hundredths"),
        ("target=heat&period=week", "no period"),
    ],
)
def test_windows_that_cannot_be_cut_are_refused(file: Path, options: str, message: str) -> None:
    with pytest.raises(UnlearningError, match=message):
        make_manifest(f"windows:{file}?{options}")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("2017-02-07 14:00:00,1,2", "does not follow"),
        ("tomorrow,1,2", "must be like"),
        ("2017-02-07 13:00:00,1,", "missing or infinite"),
        ("2017-02-07 13:00:00,1,warm", "must hold numbers"),
    ],
)
def test_a_gap_or_a_word_in_the_series_is_refused(file: Path, row: str, message: str) -> None:
    with file.open("a") as stream:
        stream.write(row + "\n")
    with pytest.raises(UnlearningError, match=message):
        make_manifest(f"windows:{file}?target=heat&{OPTIONS}")


@pytest.mark.data
def test_etth1_has_every_hour_of_two_years() -> None:
    place = Path(os.environ.get("UNLEARN_DATA", "")) / "regression" / "ett" / "ETTh1.csv"
    if "UNLEARN_DATA" not in os.environ or not place.is_file():
        pytest.skip("UNLEARN_DATA points at no folder with regression/ett")
    made = make_manifest(f"windows:{place}?target=OT")
    assert made.card.input_shape == (192, 12)
    assert len(made) == 17420 - 192 + 1 - 2 * 23
    assert made.table["sample_id"][0].as_py() == "2016-07-08T00"
    assert open_samples(made).targets.shape == (len(made), 24)
