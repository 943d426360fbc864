from __future__ import annotations

import io
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest
from PIL import Image

from unlearning.errors import DataError
from unlearning.reporting import figures

HOSTILE = ["<script>", "$x^2$ & co", "x" * 10_000, "שלום", "a\x00\ud800b", "猫", "\u202egnp"]


def _texts(svg: bytes) -> list[str]:
    root = ET.fromstring(svg)
    return ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]


def _names(count: int) -> list[str]:
    return [f"class {number}" for number in range(count)]


@pytest.mark.parametrize("count", [1, 2, 10, 100])
def test_class_charts_draw_any_number_of_classes(count: int) -> None:
    rng = np.random.default_rng(count)
    names, before, after = _names(count), rng.uniform(0, 1, count).tolist(), rng.uniform(0, 1, count).tolist()
    forgotten = [names[-1]]
    counts = rng.integers(0, 50, (count, count))
    shares = (np.ones(count) / count).tolist()
    for svg in (
        figures.per_class_accuracy(names, before, after, forgotten),
        figures.prediction_distribution(names, shares, shares, forgotten),
    ):
        shown = [text for text in _texts(svg) if text.startswith("class ")]
        assert len(shown) == min(count, 30)
        assert f"class {count - 1} (forgotten)" in shown
    shown = [text for text in _texts(figures.confusion_matrices(names, counts, counts, forgotten)) if "class " in text]
    assert len([text for text in shown if text.startswith("class ")]) == 3 * min(count, 30)


def test_beyond_thirty_classes_the_forgotten_and_the_most_changed_are_shown_and_it_says_so() -> None:
    names = _names(100)
    before = [0.9] * 100
    after = [0.9 - (0.005 * number if number >= 60 else 0.0) for number in range(100)]
    texts = _texts(figures.per_class_accuracy(names, before, after, ["class 4", "class 7"]))
    shown = {text for text in texts if text.startswith("class ")}
    assert shown == {"class 4 (forgotten)", "class 7 (forgotten)"} | {f"class {number}" for number in range(72, 100)}
    assert any("30 of 100 classes" in text for text in texts)


def test_many_forgotten_classes_leave_room_for_the_others() -> None:
    names = _names(100)
    texts = _texts(figures.per_class_accuracy(names, [0.9] * 100, [0.0] * 50 + [0.8] * 50, names[:50]))
    assert sum("(forgotten)" in text for text in texts) == 20
    assert any("20 of 50 forgotten" in text for text in texts)


def test_confusion_cells_are_shares_of_the_true_class() -> None:
    svg = figures.confusion_matrices(["cat", "dog"], [[8, 2], [5, 15]], [[0, 10], [0, 0]])
    texts = _texts(svg)
    assert [text for text in texts if text in ("80", "20", "25", "75", "100")].count("80") == 1
    # 25 and 75 stand in a cell each, and on the colour scale.
    assert texts.count("20") == 1
    assert texts.count("75") == 2
    assert texts.count("no samples") == 1


def test_a_class_without_samples_is_said_to_have_none() -> None:
    assert "no samples" in _texts(figures.per_class_accuracy(["a", "b"], [0.5, None], [0.4, None], []))


def test_roc_legends_carry_the_area_and_long_curves_are_thinned() -> None:
    x = np.linspace(0, 1, 100_001)
    svg = figures.roc_curves({"original": (x, x**0.5, 2 / 3), "unlearned": (x, x, 0.5)})
    assert {"original, AUC 0.667", "unlearned, AUC 0.500", "chance, AUC 0.5"} <= set(_texts(svg))
    assert len(svg) < 150_000


def test_a_curve_of_unequal_lists_is_refused() -> None:
    with pytest.raises(DataError, match="two equally long lists"):
        figures.roc_curves({"broken": ([0, 1], [0, 0.5, 1], 0.5)})


def test_training_curves_say_what_is_not_finite_and_what_was_averaged() -> None:
    svg = figures.training_curves({"noise": [1.0, float("nan"), 2.0], "repair": [1.0] * 2000, "own <name>": []})
    texts = _texts(svg)
    assert {"Noise: objective", "Repair: loss", "own <name>", "1 of 3 steps are not finite", "no steps"} <= set(texts)
    assert "step, mean of every 4" in texts


def test_stage_times_carry_their_number() -> None:
    texts = _texts(figures.stage_times({"synthesize": 9.8, "impair": 200}))
    assert {"synthesize", "9.80 s", "3 min 20 s"} <= set(texts)


def test_hostile_names_stay_text_in_valid_files() -> None:
    half = [0.5] * len(HOSTILE)
    svg = figures.per_class_accuracy(HOSTILE, half, half, HOSTILE[:1])
    texts = _texts(svg)
    assert "<script> (forgotten)" in texts
    assert "$x^2$ & co" in texts
    assert all(len(text) < 60 for text in texts)
    assert b"<script" not in svg


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_noise_pictures_take_any_channel_count(channels: int) -> None:
    noise = np.random.default_rng(0).normal(size=(2, 12, channels, 8, 8))
    png = figures.noise_pictures(noise, [0.5] * channels, [0.2] * channels, ["cat", HOSTILE[2]])
    picture = Image.open(io.BytesIO(png))
    assert picture.format == "PNG"
    # Eight of twelve pictures a row, each pixel twelve wide, and the margins.
    assert picture.width >= 8 * 96 + 7 * 6
    assert picture.height >= 2 * 96 + 6


def test_small_noise_pictures_are_enlarged_without_blur_from_black_to_white() -> None:
    board = np.indices((8, 8)).sum(0) % 2 * 40.0 - 3.0
    png = figures.noise_pictures(board[None, None, None], [0.0], [1.0], ["board"])
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("L")).astype(int)
    tile = pixels[6 : 6 + 96, 170 : 170 + 96]
    values, counts = np.unique(tile, return_counts=True)
    assert counts[np.isin(values, (0, 255))].sum() == tile.size
    assert (tile == 0).sum() == tile.size // 2


def test_normalisation_is_undone_by_channel() -> None:
    # Every channel becomes 0.5 x 0 + its mean: one grey would follow from one mean for all.
    ramp = np.zeros((1, 1, 3, 8, 8))
    png = figures.noise_pictures(ramp, [0.0, 0.5, 1.0], [0.5] * 3, ["flat"])
    red, green, blue = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))[48, 200].tolist()
    assert (red, blue) == (0, 255)
    assert 120 <= green <= 135


def test_inputs_that_are_not_images_become_heat_strips() -> None:
    noise = np.random.default_rng(0).normal(size=(3, 5, 40))
    picture = Image.open(io.BytesIO(figures.noise_pictures(noise, [0.0], [1.0], ["a", "b", "c"])))
    assert picture.width == 900


def test_more_than_thirty_classes_of_noise_are_cut() -> None:
    noise = np.zeros((40, 1, 1, 8, 8))
    picture = Image.open(io.BytesIO(figures.noise_pictures(noise, [0.0], [1.0], _names(40))))
    assert picture.height < 31 * 102 + 60


@pytest.mark.parametrize("shape", [(0, 4, 1, 8, 8), (2, 4), (3, 4, 1, 8, 8)])
def test_noise_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="noise pictures: wanted"):
        figures.noise_pictures(np.zeros(shape), [0.0], [1.0], ["a", "b"])


def test_the_same_data_give_the_same_bytes_whatever_the_users_settings() -> None:
    def draw() -> list[bytes]:
        noise = np.random.default_rng(0).normal(size=(1, 2, 1, 8, 8))
        return [
            figures.per_class_accuracy(["a", "b"], [1.0, 0.9], [0.0, 0.9], ["a"]),
            figures.confusion_matrices(["a", "b"], [[1, 2], [3, 4]], [[4, 3], [2, 1]]),
            figures.roc_curves({"x": ([0, 0.5, 1], [0, 0.7, 1], 0.6)}),
            figures.noise_pictures(noise, [0.5], [0.5], ["a"]),
        ]

    first = draw()
    with matplotlib.rc_context({"font.size": 30, "savefig.dpi": 7, "axes.facecolor": "red"}):
        assert draw() == first
        assert matplotlib.rcParams["font.size"] == 30


def test_a_comparison_names_every_method_where_many_coincide() -> None:
    names = ["original", "retrained", *(f"method {number}" for number in range(10))]
    svg = figures.method_comparison([(name, 0.0, 0.97, 3.0 if name.startswith("m") else 0.0) for name in names])
    shown = _texts(svg)
    assert set(names) <= set(shown)
    assert "3.00 s" in shown
    nodes = ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    places = {"".join(node.itertext()): node.get("transform", node.get("y")) for node in nodes}
    assert len({places[name] for name in names}) == len(names)


def test_a_comparison_of_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="at least one method"):
        figures.method_comparison([])
