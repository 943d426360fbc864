import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from unlearning.data.manifest import read_manifest, write_manifest
from unlearning.data.sources import fit_scaling, make_manifest, open_samples
from unlearning.errors import DataError, UnlearningError

PETS = """kind,weight,age,who,price,tax
dog,10,2,anna,100.5,1
cat,4,,anna,50,2
dog,12,4,bert,120,3
eel,1,6,carl,20.25,4
cat,5,8,dora,45,5
cat,6,NaN,eva,47,6
"""


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    (tmp_path / "pets.csv").write_text(PETS)
    return tmp_path / "pets.csv"


def test_the_diabetes_set_has_442_people_and_values_from_25_to_346() -> None:
    made = make_manifest("diabetes")
    assert (made.card.task, made.card.classes, made.card.input_shape) == ("regression", (), (10,))
    assert made.card.features[:3] == ("age", "sex", "bmi")
    assert made.counts() == {"train": {"progression": 354}, "test": {"progression": 88}}
    assert (made.targets().dtype, made.targets().min(), made.targets().max()) == (np.float32, 25, 346)
    samples = open_samples(made)
    inputs, targets = samples.batch(torch.from_numpy(made.rows("train")))
    assert targets.dtype == samples.targets.dtype == torch.float32
    assert torch.allclose(inputs.mean(0), torch.zeros(10), atol=1e-5)
    assert torch.allclose(inputs.std(0, correction=0), torch.ones(10), atol=1e-4)


def test_words_become_columns_and_gaps_get_a_flag_and_the_train_median(pets: Path) -> None:
    made = make_manifest(f"table:{pets}?target=price&subject=who&drop=tax&unit=euro", test_share=0.3, seed=1)
    card = made.card
    assert card.features == ("kind=cat", "kind=dog", "kind=eel", "weight", "age", "age missing")
    assert (card.target_name, card.target_unit, card.horizon) == ("price", "euro", 1)
    assert made.table["target"].to_pylist() == ["100.5", "50.0", "120.0", "20.25", "45.0", "47.0"]
    train = made.rows("train").tolist()
    ages = [age for row, age in enumerate([2, None, 4, 6, 8, None]) if row in train and age is not None]
    assert card.fill[4] == np.median(ages)
    inputs, targets = open_samples(made, [1, 3]).batch(torch.tensor([0, 1]))
    raw = inputs * torch.tensor(card.std) + torch.tensor(card.mean)
    expected = [[1, 0, 0, 4, card.fill[4], 1], [0, 0, 1, 1, 6, 0]]
    assert torch.allclose(raw, torch.tensor(expected), atol=1e-5)
    assert targets.tolist() == [50, 20.25]


def test_a_subject_is_never_on_both_sides_of_a_drawn_split(pets: Path) -> None:
    for seed in range(20):
        made = make_manifest(f"table:{pets}?target=price&subject=who", test_share=0.4, seed=seed)
        subjects = np.array(made.table["subject_id"].to_pylist())
        test = set(subjects[made.rows("test")])
        assert len(test) == 2
        assert test.isdisjoint(subjects[made.rows("train")])


def test_scaling_can_be_fitted_on_the_retained_rows_alone(pets: Path) -> None:
    made = make_manifest(f"table:{pets}?target=price&drop=kind,who,tax")
    scaling = fit_scaling(made, [0, 1, 3])
    assert scaling.mean == pytest.approx((5, (2 + 4 + 6) / 3, 1 / 3), abs=1e-6)  # the gap counts as the median of 2, 6
    assert scaling.fill == (pytest.approx(4), 4, 0)
    inputs, _ = open_samples(made, [0, 1, 3], scaling=scaling).batch(torch.arange(3))
    assert torch.allclose(inputs.mean(0), torch.zeros(3), atol=1e-6)
    assert made.card.scaling != scaling


def test_a_manifest_of_numbers_survives_its_file(pets: Path, tmp_path: Path) -> None:
    made = make_manifest(f"table:{pets}?target=price&divide=10")
    write_manifest(made, tmp_path / "m.parquet")
    again = read_manifest(tmp_path / "m.parquet")
    assert again.digest == made.digest
    assert again.card == made.card
    assert again.targets().tolist() == pytest.approx([10.05, 5, 12, 2.025, 4.5, 4.7])


def test_parquet_and_csv_of_the_same_table_give_the_same_inputs(pets: Path, tmp_path: Path) -> None:
    from pyarrow import csv

    pq.write_table(csv.read_csv(pets), tmp_path / "pets.parquet")
    first, second = (
        open_samples(make_manifest(f"table:{path}?target=price")) for path in (pets, tmp_path / "pets.parquet")
    )
    rows = torch.arange(6)
    assert torch.equal(first.batch(rows)[0], second.batch(rows)[0])


def test_files_without_header_take_names_or_are_numbered(tmp_path: Path) -> None:
    (tmp_path / "t.data").write_text("1\t2\n3\t4\n5\t7\n")
    named = make_manifest(f"table:{tmp_path / 't.data'}?sep=tab&names=a,b&target=b")
    assert (named.card.features, named.card.target_name) == (("a",), "b")
    assert named.targets().tolist() == [2, 4, 7]
    numbered = make_manifest(f"table:{tmp_path / 't.data'}?sep=tab&header=no&target=f0")
    assert (numbered.card.features, numbered.targets().tolist()) == (("f1",), [1, 3, 5])


def test_a_table_may_hold_classes(pets: Path) -> None:
    made = make_manifest(f"table:{pets}?target=kind&task=classification&drop=who")
    assert (made.card.task, made.card.classes) == ("classification", ("cat", "dog", "eel"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", 'write "target=NAME"'),
        ("?target=prize", 'did you mean "price"'),
        ("?target=kind", "text"),
        ("?target=age", "missing or no finite number in row 1"),
        ("?target=price&subject=age", "every row"),
        ("?target=price&drop=kinds", "no feature column"),
        ("?target=price&drop=kind,weight,age,who,tax", "no feature columns"),
        ("?target=price&divide=0", "divide must be"),
        ("?target=price&sep=pipe", "no sep"),
        ("?target=price&sap=tab", 'did you mean "sep"'),
        ("?target=price&names=a,b", "no table|options"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(pets: Path, options: str, message: str) -> None:
    with pytest.raises(UnlearningError, match=message) as caught:
        make_manifest(f"table:{pets}{options}")
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_feature_without_any_train_value_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="give the path"):
        make_manifest(f"table:{tmp_path / 'none.csv'}?target=a")
    (tmp_path / "t.csv").write_text("a,b,y\n1,,1\n2,,2\n3,,3\n")
    with pytest.raises(DataError, match="missing in every train row"):
        make_manifest(f"table:{tmp_path / 't.csv'}?target=y")


def test_numbers_beyond_float32_are_refused_whatever_their_spelling() -> None:
    from unlearning.data.manifest import DataCard, Manifest

    card = DataCard("x", "regression", (), (1,), (0.0,), (1.0,))
    columns = {"sample_id": ["a"], "subject_id": [None], "split": ["train"], "location": ["0"]}
    for text in ("1e99", "nan", "inf", "1", "0x1p0", "1.00", " 1.0", "one"):
        table = pa.table({**{k: pa.array(v, pa.string()) for k, v in columns.items()}, "target": [text]})
        with pytest.raises(DataError, match="row 0: target"):
            Manifest(card, table)


# Real data


def real(name: str) -> Path:
    folder = os.environ.get("UNLEARN_DATA", "")
    if not folder or not (Path(folder) / name).exists():
        pytest.skip(f"UNLEARN_DATA points at no folder with {name}")
    return Path(folder) / name


ABALONE = "names=sex,length,diameter,height,whole,shucked,viscera,shell,rings&target=rings"


@pytest.mark.data
@pytest.mark.parametrize(
    ("file", "options", "rows", "features", "bounds"),
    [
        ("uci/abalone.csv", ABALONE, 4177, 10, (1, 29)),
        ("uci/winequality-white.csv", "header=no&target=f11", 4898, 11, (3, 9)),
        (
            "uci/parkinsons_updrs.data",
            "sep=tab&target=total_UPDRS&subject=subject#&drop=motor_UPDRS",
            5875,
            19,
            (7, 55),
        ),
        # eight numbers, one of them with gaps and so a flag, and five kinds of place
        ("california_housing/housing.csv", "target=median_house_value&divide=100000", 20640, 14, (0.14999, 5.00001)),
    ],
)
def test_the_published_tables_have_their_rows_and_ranges(
    file: str, options: str, rows: int, features: int, bounds: tuple[float, float]
) -> None:
    made = make_manifest(f"table:{real('regression') / file}?{options}")
    assert (len(made), made.card.input_shape) == (rows, (features,))
    assert (made.targets().min(), made.targets().max()) == pytest.approx(bounds, abs=0.01)
    inputs, _ = open_samples(made).batch(torch.arange(rows))
    assert bool(inputs.isfinite().all())
    subjects = np.array(made.table["subject_id"].to_pylist())
    if "subject" in options:
        assert len(set(subjects)) == 42
        assert set(subjects[made.rows("train")]).isdisjoint(subjects[made.rows("test")])
