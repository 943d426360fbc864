import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unlearning.data.sources import make_manifest, open_samples
from unlearning.errors import DataError, UnlearningError

RANDOM = np.random.default_rng(0)


def har_arrays() -> dict[str, Any]:
    return {
        "X_train": RANDOM.normal(size=(6, 4)).astype(np.float32),
        "X_test": RANDOM.normal(size=(3, 4)).astype(np.float32),
        "y_train": np.array([1, 2, 3, 1, 2, 3]),
        "y_test": np.array([3, 2, 1]),
        "subject_train": np.array([1, 1, 1, 2, 2, 2]),
        "subject_test": np.array([9, 9, 9]),
        "activity_names": np.array(["WALK", "SIT", "LIE"]),
        "feature_names": np.array(["a", "b", "c", "d"]),
    }


def test_activities_keep_their_official_split_and_names(tmp_path: Path) -> None:
    arrays = har_arrays()
    np.savez(tmp_path / "uci_har_265.npz", **arrays)
    made = make_manifest(f"har:{tmp_path}")
    assert made.card.classes == ("WALK", "SIT", "LIE")
    assert made.card.features == ("a", "b", "c", "d")
    assert made.counts()["test"] == {"WALK": 1, "SIT": 1, "LIE": 1}
    assert made.table["subject_id"].to_pylist() == ["1"] * 3 + ["2"] * 3 + ["9"] * 3
    assert open_samples(made).targets.tolist() == [0, 1, 2, 0, 1, 2, 2, 1, 0]
    del arrays["subject_test"]
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(DataError, match="lacks the arrays subject_test"):
        make_manifest(f"har:{tmp_path / 'other.npz'}")


def test_seconds_of_a_recording_stay_together_and_each_class_is_tested(tmp_path: Path) -> None:
    recordings = [f"{letter}{number}" for letter in "SFNOZ" for number in range(5)]
    np.savez(
        tmp_path / "bonn_eeg_178.npz",
        X=RANDOM.integers(-2000, 2000, (100, 8)).astype(np.int16),
        y=np.repeat(np.arange(1, 6), 20),
        segment=np.repeat(recordings, 4),
        chunk=np.tile(np.arange(4), 25),
    )
    made = make_manifest(f"eeg:{tmp_path}")
    assert made.card.input_shape == (8, 1)
    assert len(made.card.mean) == 1
    assert made.counts()["test"] == dict.fromkeys(made.card.classes, 4)
    subjects = np.array(made.table["subject_id"].to_pylist())
    assert set(subjects[made.rows("train")]).isdisjoint(subjects[made.rows("test")])
    assert made.table["sample_id"][5].as_py() == "S1-01"
    inputs, _ = open_samples(made).batch(torch.from_numpy(made.rows("train")))
    assert float(inputs.mean()) == pytest.approx(0, abs=1e-5)
    assert float(inputs.std()) == pytest.approx(1, abs=1e-3)


def test_npz_sequences_keep_steps_and_values_and_may_predict_numbers(tmp_path: Path) -> None:
    inputs = RANDOM.normal(size=(10, 5, 3)) * [1, 10, 100] + [0, 5, 50]
    np.savez(tmp_path / "s.npz", inputs=inputs, targets=np.linspace(0, 1, 10), subject_id=np.arange(10) // 2)
    made = make_manifest(f"npz:{tmp_path / 's.npz'}?layout=sequence&task=regression&target_name=level&unit=m")
    assert (made.card.input_shape, made.card.task, made.card.target_unit) == ((5, 3), "regression", "m")
    train = made.rows("train")
    assert np.allclose(made.card.mean, inputs[train].astype(np.float32).mean(axis=(0, 1)), rtol=1e-4)
    scaled, targets = open_samples(made).batch(torch.from_numpy(train))
    assert torch.allclose(scaled.std((0, 1), correction=0), torch.ones(3), atol=1e-4)
    assert targets.dtype == torch.float32
    with pytest.raises(UnlearningError, match="task=regression"):
        make_manifest(f"npz:{tmp_path / 's.npz'}?layout=sequence")
    np.savez(tmp_path / "flat.npz", inputs=inputs[:, 0], targets=np.arange(10))
    with pytest.raises(DataError, match=r"\(N, steps, values\)"):
        make_manifest(f"npz:{tmp_path / 'flat.npz'}?layout=sequence")


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    rows = ["path,age,split,person"]
    for number in range(6):
        Image.new("RGB", (10 + number, 12), (number * 40, 0, 0)).save(tmp_path / "pictures" / f"{number}.png")
        rows.append(
            f"{number}.png,{20 + number},{['train', 'train', 'train', 'val', 'test', 'test'][number]},p{number}"
        )
    (tmp_path / "ages.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_faces_have_the_ages_and_splits_of_their_list(faces: Path) -> None:
    source = f"faces:{faces / 'ages.csv'}?images={faces / 'pictures'}&subject=person"
    made = make_manifest(source, image_size=8)
    assert (made.card.input_shape, made.card.target_name, made.card.target_unit) == ((3, 8, 8), "age", "years")
    assert [len(made.rows(split)) for split in ("train", "validation", "test")] == [3, 1, 2]
    assert made.targets().tolist() == [20, 21, 22, 23, 24, 25]
    assert made.table["subject_id"][2].as_py() == "p2"
    samples = open_samples(made, [5])
    assert samples.inputs[0, 0].unique().tolist() == [200]  # type: ignore[attr-defined]
    assert samples.targets.tolist() == [25]
    with pytest.raises(DataError, match="give image_size"):
        make_manifest(source)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("3.png", "../ages.csv", "names no image"),
        ("3.png", "/etc/passwd", "names no image"),
        ("3.png", "7.png", "names no image"),
        ("age", "years", "no column"),
        ("23", "old", "number to predict"),
    ],
)
def test_a_list_that_points_elsewhere_is_refused(faces: Path, old: str, new: str, message: str) -> None:
    listing = faces / "ages.csv"
    listing.write_text(listing.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        make_manifest(f"faces:{listing}?images={faces / 'pictures'}", image_size=8)


@pytest.mark.data
def test_the_published_recordings_and_activities_have_their_counts() -> None:
    root = Path(os.environ.get("UNLEARN_DATA", ""))
    if "UNLEARN_DATA" not in os.environ or not (root / "eeg").is_dir() or not (root / "har").is_dir():
        pytest.skip("UNLEARN_DATA points at no folder with har and eeg")
    har = make_manifest(f"har:{root / 'har'}")
    assert [len(har.rows(split)) for split in ("train", "test")] == [7352, 2947]
    assert har.card.input_shape == (265,)
    eeg = make_manifest(f"eeg:{root / 'eeg'}")
    assert eeg.counts()["test"] == dict.fromkeys(eeg.card.classes, 20 * 23)
    assert len(set(eeg.table["subject_id"].to_pylist())) == 500
