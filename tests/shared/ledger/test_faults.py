"""The short form of the failure matrix: `make faults` runs all of it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.faults import World
from support.matrix import ROWS, Bench, copied, prepared, run_row

from unlearning.storage import FolderStore


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with prepared(seed=0, short=True) as found:
        yield found


@pytest.mark.parametrize("row", list(ROWS))
def test_no_fault_of_this_row_violates_an_invariant(bench: Bench, row: str) -> None:
    folder: Path = next(iter(bench.templates.values())).parent
    result = run_row(bench, row, folder)
    assert result.trials > 0
    assert result.violations == []


def test_the_harness_sees_what_it_looks_for(bench: Bench, tmp_path: Path) -> None:
    accepted = bench.accepted["first"]

    def seen(name: str, harm: Callable[[World], object]) -> set[str]:
        world = copied(bench.templates["first"], tmp_path / name)
        world.recover()
        assert world.violations(accepted) == []
        harm(world)
        return {one[:2] for one in world.violations(accepted)}

    def point_at_base(world: World) -> None:
        (world.folder / "registry" / "alias").write_text((world.folder / "base").read_text())

    def note_a_move_to_base(world: World) -> None:
        with (world.folder / "registry" / "moves").open("a") as file:
            file.write(f"1000 {(world.folder / 'base').read_text()}\n")

    def change_the_certificate(world: World) -> None:
        (path,) = (world.folder / "store" / "evidence" / "certificates").iterdir()
        key = FolderStore(world.folder / "store")
        key.put(f"evidence/certificates/{path.name}", path.read_bytes().replace(b'"sig":"', b'"sig":"AAAA'))

    assert seen("lost", lambda world: world.file("one-more", ["row-CANARY-5"])) == {"I1"}
    assert seen("alias", point_at_base) == {"I4", "I5"}
    assert seen("history", note_a_move_to_base) == {"I5"}
    assert "I3" in seen("certificate", change_the_certificate)
    assert seen("leak", lambda world: (world.folder / "log").write_text("id row-CANARY-3")) == {"I7"}
    assert seen("left", lambda world: FolderStore(world.folder / "store").put("work/x/y", b"z")) == {"I8"}
    assert seen("orphan", lambda world: FolderStore(world.folder / "store").put(f"models/{'0' * 64}/m", b"z")) == {"I8"}
