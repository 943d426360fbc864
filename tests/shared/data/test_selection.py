import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearning.data.manifest import DataCard, Manifest, number_texts
from unlearning.data.selection import (
    ForgetRequest,
    Selection,
    as_ranges,
    exact_duplicates,
    from_ranges,
    read_rows,
    read_selection,
    select,
    write_rows,
    write_selection,
)
from unlearning.errors import DataError, UsageError


def manifest(targets: list[int], splits: list[str], subjects: list[str | None], classes: int = 3) -> Manifest:
    card = DataCard(
        source="digits",
        task="classification",
        classes=tuple(f"kind {number}" for number in range(classes)),
        input_shape=(4,),
        mean=(0.0,) * 4,
        std=(1.0,) * 4,
    )
    columns = {
        "sample_id": [f"id-{row}" for row in range(len(targets))],
        "subject_id": pa.array(subjects, type=pa.string()),
        "target": [card.classes[target] for target in targets],
        "split": splits,
        "location": [str(row) for row in range(len(targets))],
    }
    return Manifest(card, pa.table(columns))


#                   0     1      2      3      4      5      6      7      8       9
TARGETS = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
SPLITS = ["train"] * 6 + ["test"] * 3 + ["validation"]
SUBJECTS = ["ann", "bob", None, "bob", "ann", "eve", "ann", None, "joe", "ann"]
SMALL = manifest(TARGETS, SPLITS, SUBJECTS)


def rows(selection: Selection) -> dict[str, list[int]]:
    parts = ("forget", "retain", "available", "holdout_forget", "holdout_retain")
    return {name: getattr(selection, name).tolist() for name in parts}


def test_a_class_request_picks_its_train_rows_and_its_test_rows() -> None:
    chosen = select(SMALL, ForgetRequest("class", ("kind 1",)), seed=0)
    assert rows(chosen) == {
        "forget": [1, 4],
        "retain": [0, 2, 3, 5],
        "available": [0, 2, 3, 5],
        "holdout_forget": [7],
        "holdout_retain": [6, 8],
    }
    assert chosen.forget_classes == (1,)
    assert chosen.manifest_digest == SMALL.digest


def test_a_subject_request_picks_the_rows_about_those_people_in_both_splits() -> None:
    chosen = select(SMALL, ForgetRequest("subject", ("ann", "eve")), seed=0)
    assert rows(chosen) == {
        "forget": [0, 4, 5],
        "retain": [1, 2, 3],
        "available": [1, 2, 3],
        "holdout_forget": [6],
        "holdout_retain": [7, 8],
    }
    assert chosen.forget_classes == ()


def test_a_sample_request_has_no_forget_rows_in_the_test_split() -> None:
    chosen = select(SMALL, ForgetRequest("sample", ("id-5", "id-0")), seed=0)
    assert rows(chosen) == {
        "forget": [0, 5],
        "retain": [1, 2, 3, 4],
        "available": [1, 2, 3, 4],
        "holdout_forget": [],
        "holdout_retain": [6, 7, 8],
    }


def test_calibration_is_the_validation_split_without_what_is_forgotten() -> None:
    assert select(SMALL, ForgetRequest("class", ("kind 1",)), seed=0).calibration.tolist() == [9]
    assert select(SMALL, ForgetRequest("subject", ("bob",)), seed=0).calibration.tolist() == [9]
    assert 9 not in select(SMALL, ForgetRequest("subject", ("ann",)), seed=0).calibration


def test_without_a_validation_split_a_quarter_of_the_test_rows_calibrates_a_request_for_rows() -> None:
    data = manifest([0, 1] * 10, ["train"] * 8 + ["test"] * 12, [None] * 20, 2)
    chosen = select(data, ForgetRequest("sample", ("id-0",)), seed=0)
    assert len(chosen.calibration) == 3
    assert sorted([*chosen.calibration, *chosen.holdout_retain]) == list(range(8, 20))
    assert select(data, ForgetRequest("class", ("kind 0",)), seed=0).calibration.tolist() == []


def test_a_name_and_its_index_are_one_class_and_repeats_count_once() -> None:
    once = select(SMALL, ForgetRequest("class", ("kind 1",)), seed=0)
    assert rows(select(SMALL, ForgetRequest("class", ("1", "kind 1", "1")), seed=0)) == rows(once)
    assert ForgetRequest("sample", ("a", "b", "a")).ids == ("a", "b")


@pytest.mark.parametrize(
    ("kind", "ids", "message"),
    [
        ("class", ("kind 9",), 'did you mean "kind'),
        ("class", ("kind 0", "1", "2"), "all 3 classes"),
        ("subject", ("ann", "bob", "eve", "secret"), "1 of the 4 subject ids match no train row"),
        ("subject", ("joe",), "1 of the 1 subject ids match no train row"),
        ("subject", ("Ann", "ann ", "secret"), "3 of the 3 subject ids"),
        ("sample", ("id-0", "secret", "id-7"), "2 of the 3 sample ids match no train row"),
        ("sample", ("id-0\n", ""), "2 of the 2 sample ids"),
        ("sample", tuple(f"id-{row}" for row in range(6)), "all 6 train rows"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_without_showing_an_id(
    kind: str, ids: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        select(SMALL, ForgetRequest(kind, ids), seed=0)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "ids"), [("class", ()), ("sample", "id-0"), ("row", ("1",)), ("sample", (1,)), ("sample", ("\ud800",))]
)
def test_a_malformed_request_is_refused(kind: str, ids: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        ForgetRequest(kind, ids)


@pytest.mark.parametrize("numbers", [{"retain_per_class": -1, "seed": 0}, {"seed": -1}])
def test_numbers_below_zero_are_refused(numbers: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="0 or more"):
        select(SMALL, ForgetRequest("class", ("0",)), **numbers)


def test_a_class_without_train_rows_is_nothing_to_forget() -> None:
    few = manifest([0, 1, 2, 0], ["train", "train", "test", "test"], [None] * 4)
    with pytest.raises(UsageError, match="nothing to forget"):
        select(few, ForgetRequest("class", ("2",)), seed=0)


def test_a_manifest_that_cannot_measure_the_result_is_refused() -> None:
    only_train = manifest([0, 1, 2], ["train"] * 3, ["ann", "bob", "eve"])
    with pytest.raises(DataError, match="no test rows of what is retained"):
        select(only_train, ForgetRequest("subject", ("ann",)), seed=0)
    class_untested = manifest([0, 1, 2], ["train", "train", "test"], [None] * 3)
    with pytest.raises(DataError, match="no test rows of the classes to forget"):
        select(class_untested, ForgetRequest("class", ("0",)), seed=0)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Manifest, ForgetRequest, int, int]:
    size = draw(st.integers(8, 60))
    targets = [0, 1, 2, 0, 1, 2, *draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))]
    splits = ["train"] * 3 + ["test"] * 3
    splits += draw(st.lists(st.sampled_from(["train", "test", "validation"]), min_size=size, max_size=size))
    people = ["ann", "bob", "eve", None]
    subjects = ["ann", "bob", "eve", None, None, None]
    subjects += draw(st.lists(st.sampled_from(people), min_size=size, max_size=size))
    kind = draw(st.sampled_from(["class", "subject", "sample"]))
    if kind == "sample":
        train = [f"id-{row}" for row, split in enumerate(splits) if split == "train"]
        ids = draw(st.lists(st.sampled_from(train), min_size=1, max_size=len(train) - 1, unique=True))
    else:
        choices = ["kind 0", "1", "kind 2"] if kind == "class" else people[:3]
        ids = draw(st.lists(st.sampled_from(choices), min_size=1, max_size=2, unique=True))
    request = ForgetRequest(kind, tuple(ids))
    return manifest(targets, splits, subjects), request, draw(st.integers(0, 6)), draw(st.integers(0, 2**32))


@settings(max_examples=150, deadline=None)
@given(cases())
def test_forget_and_retain_share_out_the_train_split_and_available_keeps_to_its_cap(
    case: tuple[Manifest, ForgetRequest, int, int],
) -> None:
    data, request, cap, seed = case
    chosen = select(data, request, retain_per_class=cap, seed=seed)
    assert sorted([*chosen.forget, *chosen.retain]) == data.rows("train").tolist()
    held_out = [*chosen.holdout_forget, *chosen.holdout_retain]
    assert sorted({*held_out, *chosen.calibration} & {*data.rows("test")}) == data.rows("test").tolist()
    assert not {*held_out} & {*chosen.calibration}
    targets = data.targets()
    available = np.bincount(targets[chosen.available], minlength=3)
    retained = np.bincount(targets[chosen.retain], minlength=3)
    assert available.tolist() == (np.minimum(retained, cap) if cap else retained).tolist()
    assert set(chosen.available) <= set(chosen.retain)
    assert all((np.diff(values) > 0).all() for values in map(np.array, rows(chosen).values()))
    assert rows(select(data, request, retain_per_class=cap, seed=seed)) == rows(chosen)


def test_another_seed_draws_other_rows_and_another_request_does_not() -> None:
    size = 3000
    data = manifest(
        [row % 3 for row in range(size)], ["train" if row % 2 else "test" for row in range(size)], [None] * size
    )
    one, two = (select(data, ForgetRequest("class", ("0",)), retain_per_class=50, seed=seed) for seed in (1, 2))
    assert len(one.available) == 100
    assert one.available.tolist() != two.available.tolist()
    other = select(data, ForgetRequest("class", ("1",)), retain_per_class=50, seed=1)
    of_class_two = [row for row in one.available if row % 3 == 2]
    assert [row for row in other.available if row % 3 == 2] == of_class_two


def test_a_selection_reads_back_and_holds_no_ids(tmp_path: Path) -> None:
    chosen = select(SMALL, ForgetRequest("subject", ("ann",)), retain_per_class=1, seed=3)
    write_selection(chosen, tmp_path / "selection")
    back = read_selection(tmp_path / "selection", SMALL)
    assert rows(back) == rows(chosen)
    assert (back.forget_classes, back.manifest_digest) == (chosen.forget_classes, SMALL.digest)
    everything = b"".join(path.read_bytes() for path in (tmp_path / "selection").iterdir())
    assert b"ann" not in everything
    assert b"id-" not in everything
    write_selection(chosen, tmp_path / "again")
    for path in (tmp_path / "selection").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_a_selection_is_refused_with_another_manifest(tmp_path: Path) -> None:
    write_selection(select(SMALL, ForgetRequest("class", ("1",)), seed=3), tmp_path)
    with pytest.raises(DataError, match="another manifest"):
        read_selection(tmp_path, manifest(TARGETS, SPLITS, ["bob", *SUBJECTS[1:]]))


def test_rows_that_do_not_fit_the_manifest_are_refused(tmp_path: Path) -> None:
    parts = {"forget": [1], "retain": [0, 2, 3, 4], "available": [], "holdout_forget": [7], "holdout_retain": [6, 8]}
    arrays = {name: np.array(values, dtype=np.int64) for name, values in parts.items()}
    write_rows(tmp_path, meta={"manifest": SMALL.digest, "forget_classes": []}, **arrays)
    with pytest.raises(DataError, match="do not fit"):
        read_selection(tmp_path, SMALL)


def test_named_rows_and_their_meta_read_back(tmp_path: Path) -> None:
    write_rows(tmp_path, meta={"seed": 3, "of": ["a"]}, forget=np.array([5, 1]), retain=np.array([], dtype=np.int64))
    arrays, meta = read_rows(tmp_path)
    assert {name: values.tolist() for name, values in arrays.items()} == {"forget": [5, 1], "retain": []}
    assert arrays["forget"].dtype == np.int64
    assert meta == {"seed": 3, "of": ["a"]}


def damage_number(folder: Path) -> None:
    content = bytearray((folder / "forget.npy").read_bytes())
    content[-8] ^= 1
    (folder / "forget.npy").write_bytes(content)


def name_a_path(folder: Path) -> None:
    record = json.loads((folder / "rows.json").read_text())
    record["sha256"]["../forget"] = record["sha256"].pop("forget")
    (folder / "rows.json").write_text(json.dumps(record))


def put_objects(folder: Path) -> None:
    np.save(folder / "forget.npy", np.array([print]), allow_pickle=True)
    from hashlib import sha256

    digest = sha256((folder / "forget.npy").read_bytes()).hexdigest()
    record = json.loads((folder / "rows.json").read_text())
    record["sha256"]["forget"] = digest
    (folder / "rows.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    "damage",
    [
        damage_number,
        name_a_path,
        put_objects,
        lambda folder: (folder / "forget.npy").unlink(),
        lambda folder: (folder / "rows.json").write_text("[]"),
        lambda folder: (folder / "rows.json").write_text("[" * 100_000),
        lambda folder: (folder / "rows.json").write_bytes(b" " * (2 << 20)),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(tmp_path: Path, damage: object) -> None:
    write_rows(tmp_path, meta={}, forget=np.array([1, 2]))
    damage(tmp_path)
    with pytest.raises(DataError) as caught:
        read_rows(tmp_path)
    assert "\n" not in str(caught.value)


def test_exact_duplicates_counts_rows_of_the_second_set_that_occur_in_the_first() -> None:
    inputs = np.array([[1, 2], [3, 4], [1, 2], [3, 5], [1, 2]], dtype=np.uint8)
    assert exact_duplicates(inputs, np.array([0, 1]), np.array([2, 3, 4])) == 2
    assert exact_duplicates(inputs.astype(np.float32), np.array([3]), np.array([0, 1, 2])) == 0
    assert exact_duplicates(inputs[::-1][:, ::-1], np.array([0]), np.array([2, 4])) == 2


def test_the_torch_free_rooms_do_not_import_torch() -> None:
    code = "import sys, unlearning.data.selection, unlearning.data.sources; sys.exit('torch' in sys.modules)"
    path = str(Path(sys.modules[Manifest.__module__].__file__ or "").parents[2])
    assert subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {path!r}); {code}"]).returncode == 0


def test_row_numbers_go_through_text_and_back() -> None:
    assert as_ranges(np.array([9, 3, 7, 8, 8])) == "3,7-9"
    assert as_ranges(np.array([], dtype=np.int64)) == ""
    assert from_ranges("3,7-9", most=10).tolist() == [3, 7, 8, 9]
    assert from_ranges("", most=10).tolist() == []
    rows = np.unique(np.random.default_rng(0).integers(0, 500, 200))
    assert from_ranges(as_ranges(rows), most=500).tolist() == rows.tolist()


@pytest.mark.parametrize("text", ["9-3", "10", "x", "3--5", "-1"])
def test_row_numbers_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(DataError, match="wanted 3,7-9 below 10"):
        from_ranges(text, most=10)


# Numbers to predict


def numbers(values: list[float], splits: list[str]) -> Manifest:
    card = DataCard("x", "regression", (), (4,), (0.0,) * 4, (1.0,) * 4, target_name="age", target_unit="years")
    columns = {
        "sample_id": [f"id-{row}" for row in range(len(values))],
        "subject_id": pa.array([None] * len(values), type=pa.string()),
        "target": number_texts(values),
        "split": splits,
        "location": [str(row) for row in range(len(values))],
    }
    return Manifest(card, pa.table(columns))


AGES = numbers([0, 1.5, 2, 30, 0.1, 2, 1, 9], ["train"] * 5 + ["test"] * 3)


@pytest.mark.parametrize(
    ("ranges", "forget", "tested"),
    [
        (("0:2",), [0, 1, 4], [6]),
        ((":2",), [0, 1, 4], [6]),
        (("2:",), [2, 3], [5, 7]),
        (("0.1:1.5",), [4], [6]),  # 0.1 as the float32 that it is
        (("0:1", "30:31"), [0, 3, 4], []),
    ],
)
def test_a_target_request_picks_half_open_ranges_in_both_splits(
    ranges: tuple[str, ...], forget: list[int], tested: list[int]
) -> None:
    chosen = select(AGES, ForgetRequest("target", ranges), seed=0)
    assert chosen.forget.tolist() == forget
    assert chosen.holdout_forget.tolist() == tested
    assert chosen.forget_classes == ()
    assert sorted([*chosen.forget, *chosen.retain]) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("text", ["2", "2:0", "a:b", "0:2:3", "1:1", "nan:2", ":nan"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="0:2"):
        select(AGES, ForgetRequest("target", (text,)), seed=0)


def test_ranges_need_numbers_classes_need_names_and_periods_need_windows() -> None:
    with pytest.raises(UsageError, match="has classes"):
        select(SMALL, ForgetRequest("target", ("0:2",)), seed=0)
    with pytest.raises(UsageError, match="a range of targets instead"):
        select(AGES, ForgetRequest("class", ("0",)), seed=0)
    with pytest.raises(UsageError, match="needs windows"):
        select(AGES, ForgetRequest("period", ("2017",)), seed=0)


def test_available_rows_of_numbers_come_from_all_tenths_of_their_range() -> None:
    values = np.random.default_rng(0).normal(size=500).round(3).tolist()
    made = numbers([float(value) for value in values], ["train"] * 450 + ["test"] * 50)
    chosen = select(made, ForgetRequest("sample", ("id-0",)), retain_per_class=6, seed=0)
    assert len(chosen.available) == 60
    tenths = np.searchsorted(np.quantile(made.targets()[:450], np.arange(1, 10) / 10), made.targets(), side="right")
    assert np.bincount(tenths[chosen.available]).tolist() == [6] * 10


def test_a_selection_of_numbers_survives_its_folder(tmp_path: Path) -> None:
    chosen = select(AGES, ForgetRequest("target", ("0:2",)), seed=0)
    write_selection(chosen, tmp_path)
    again = read_selection(tmp_path, AGES)
    assert rows(again) == rows(chosen)
