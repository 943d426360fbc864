import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support import shared_work
from torch import nn

from unlearning.processes import (
    Team,
    add_up,
    alone,
    batchnorm_over_all,
    by_each,
    copies,
    joined,
    put_together,
    share,
    team,
)

ROOT = Path(__file__).parents[2]
Found = dict[str, Any]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Found, Found]:
    """What one process makes, and what each of two makes that work together."""
    folder = tmp_path_factory.mktemp("processes")
    path = ":".join(str(ROOT / name) for name in ("shared", "components", "pipelines", "tests"))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    command = [*torchrun, sys.executable, "-m", "support.shared_work", str(folder / "two")]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as two:
        try:
            one = shared_work.run()
            _, said = two.communicate(timeout=120)
        except BaseException:
            two.terminate()
            raise
    assert two.returncode == 0, said
    first, second = (torch.load(folder / f"two.{rank}", weights_only=True) for rank in range(2))
    return one, first, second


def gap(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[key].double() - other[key].double()).abs().max()) for key in one)


def test_both_processes_end_with_the_same_bytes(results: tuple[Found, Found, Found]) -> None:
    _, first, second = results
    for name in ("plain", "in parts", "model"):
        assert gap(first[name], second[name]) == 0
    for name in ("noise", "predicted", "unsir", "student"):
        assert torch.equal(first[name], second[name])
    assert (first["team"], second["team"]) == ((0, 2), (1, 2))


def test_two_processes_train_to_the_weights_of_one(results: tuple[Found, Found, Found]) -> None:
    one, first, _ = results
    assert one["team"] == (0, 1)
    assert gap(one["plain"], first["plain"]) < 1e-5
    assert first["plain.losses"] == pytest.approx(one["plain.losses"], abs=1e-5)


def test_batches_in_parts_on_two_processes_train_to_the_weights_of_one(results: tuple[Found, Found, Found]) -> None:
    one, first, _ = results
    assert gap(one["in parts"], first["in parts"]) < 1e-5
    assert gap(one["in parts"], one["plain"]) < 1e-5


def test_batchnorm_sees_the_rows_of_both_processes(results: tuple[Found, Found, Found]) -> None:
    one, first, _ = results
    assert gap(one["one step"], first["one step"]) < 1e-5
    assert first["model.losses"] == pytest.approx(one["model.losses"], abs=0.01)
    torch.testing.assert_close(first["predicted"], one["predicted"], atol=0.02, rtol=0.02)


def test_a_lone_row_is_predicted_by_all(results: tuple[Found, Found, Found]) -> None:
    one, first, second = results
    assert one["lone"].shape == first["lone"].shape == second["lone"].shape == (1, 4)
    assert torch.equal(first["lone"], second["lone"])


def test_noise_of_two_classes_is_learned_in_shares_to_that_of_one_process(results: tuple[Found, Found, Found]) -> None:
    one, first, _ = results
    assert one["noise"].shape == first["noise"].shape == (2, 9, 3, 16, 16)
    assert first["objective"] == pytest.approx(one["objective"], rel=1e-2)
    assert (first["noise"] - one["noise"]).abs().mean() < 0.02


def test_methods_forget_and_keep_alike_on_one_process_and_on_two(results: tuple[Found, Found, Found]) -> None:
    one, first, _ = results
    forget = torch.arange(96) % 4 == 0
    for found in (one, first):
        assert found["original"].mean() > 0.9
        for method in ("unsir", "student"):
            right = found[method]
            assert right[forget].mean() < 0.35, method
            assert right[~forget].mean() > 0.85, method


def test_jobs_are_done_alone_and_come_back_in_their_order(results: tuple[Found, Found, Found]) -> None:
    one, first, second = results
    assert first["jobs"] == second["jobs"] == one["jobs"]
    assert [job for job, *_ in one["jobs"]] == list(range(5))
    assert {size for _, size, _ in first["jobs"]} == {1}


def test_without_torchrun_there_is_a_team_of_one_and_nothing_to_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    rows = torch.arange(7)
    with joined() as here, alone():
        assert here == team() == Team(0, 1)
        assert [part.tolist() for part in share(rows, 3)] == [[0, 1, 2], [3, 4], [5, 6]]
        assert [len(part) for part in share(rows, 99)] == [1] * 7
        assert copies(7) == 1
        total = torch.ones(3)
        add_up([total])
        assert total.tolist() == [1, 1, 1]
        assert put_together(torch.ones(7, 2), rows, 7).tolist() == [[1, 1]] * 7
        assert by_each("ab", str.upper) == ["A", "B"]
        norm = nn.BatchNorm1d(2)
        with batchnorm_over_all(norm):
            assert "forward" not in vars(norm)
