import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unlearning.config import build as build_settings
from unlearning.data.card import DataCard
from unlearning.data.samples import Rows
from unlearning.data.sources import make_manifest, open_samples
from unlearning.errors import UsageError
from unlearning.losses import loss_of
from unlearning.models.architectures import build
from unlearning.models.starting_points import starting_point
from unlearning.training import Recipe

torch.set_num_threads(1)


def series(folder: Path) -> str:
    rows = [f"2020-01-{1 + t // 24:02d} {t % 24:02d}:00:00,{t % 7},{t % 24}" for t in range(24 * 12)]
    (folder / "series.csv").write_text("\n".join(["date,load,heat", *rows]) + "\n")
    return f"windows:{folder / 'series.csv'}?encoder=24&horizon=6&target="


def pairs(folder: Path) -> str:
    for split in ("train", "test"):
        lines = [f"{split}\tfile\tyear\t{n}\t{n % 5}\ta cat sat\tthe cat ran {n % 3}" for n in range(12)]
        (folder / f"sts-{split}.csv").write_text("\n".join(lines) + "\n")
    return f"pairs:{folder}"


def archive(folder: Path, shape: tuple[int, ...], options: str = "") -> str:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(40, *shape)).astype(np.float32)
    np.savez(folder / "set.npz", inputs=inputs, targets=np.arange(40) % 4)
    return f"npz:{folder / 'set.npz'}{options}"


SOURCES: list[tuple[str, str, Any]] = [
    ("table", "mlp", lambda folder: "diabetes"),
    ("table", "mlp", lambda folder: archive(folder, (7,))),
    ("image", "allcnn", lambda folder: "digits"),
    ("image", "allcnn", lambda folder: archive(folder, (3, 32, 32))),
    ("image", "allcnn", lambda folder: archive(folder, (1, 8, 8), "?task=regression")),
    ("sequence", "cnn1d", lambda folder: archive(folder, (30, 2), "?layout=sequence")),
    ("pairs", "pair_lstm", pairs),
    ("windows", "tft", lambda folder: series(folder) + "load"),
    ("windows", "tft", lambda folder: series(folder) + "*"),
]


@pytest.mark.parametrize(("kind", "architecture", "source"), SOURCES)
def test_every_kind_of_source_gets_a_network_and_a_recipe_that_fit_its_samples(
    kind: str, architecture: str, source: Any, tmp_path: Path
) -> None:
    made = make_manifest(source(tmp_path))
    point = starting_point(made.card, len(made.rows("train")))
    assert (point.kind, point.architecture) == (kind, architecture)
    assert json.loads(json.dumps([point.arguments, point.recipe])) == [point.arguments, point.recipe]
    recipe = build_settings(Recipe, point.recipe, what="recipe")
    network = build(point.architecture, point.arguments, input_shape=made.card.input_shape, outputs=point.outputs)
    inputs, targets = Rows(open_samples(made), torch.from_numpy(made.rows("train"))).batch(torch.arange(4))
    loss = loss_of(recipe.loss, recipe.quantiles)(network(inputs), targets)
    assert loss.isfinite()


def test_many_series_are_told_apart_and_a_single_one_reads_all_columns(tmp_path: Path) -> None:
    single = starting_point(make_manifest(series(tmp_path) + "load").card, 100)
    assert (single.arguments["observed"], single.arguments.get("series"), single.outputs) == (2, None, 6 * 3)
    each = starting_point(make_manifest(series(tmp_path) + "*").card, 100)
    assert (each.arguments["observed"], each.arguments["series"], each.outputs) == (1, 2, 6 * 3)


@pytest.mark.parametrize(
    ("rows", "epochs"),
    [
        (16_384, 16),  # 128 updates an epoch: 2000 / 128 = 15.6
        (1_000_000, 10),  # at least ten
        (354, 200),  # 3 updates an epoch would take 667, at most 200
    ],
)
def test_a_table_gets_about_the_same_number_of_updates_whatever_its_size(rows: int, epochs: int) -> None:
    card = DataCard("table:t.csv?target=y", "regression", (), (3,), (0.0,) * 3, (1.0,) * 3)
    assert starting_point(card, rows).recipe["epochs"] == epochs


def test_no_rows_are_refused() -> None:
    with pytest.raises(UsageError, match="needs rows to train on, got 0"):
        starting_point(DataCard("diabetes", "regression", (), (3,), (0.0,) * 3, (1.0,) * 3), 0)


def test_a_starting_point_is_found_without_torch() -> None:
    code = f"import sys; sys.path[:0] = {sys.path!r}; import unlearning.models.starting_points\n"
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
