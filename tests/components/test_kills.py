"""Stages that are killed in the middle, and run again as a scheduler would run them again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.chain import COMPONENTS, Chain
from support.forked import AT_PROMOTION

from unlearning.models.bundle import read_bundle
from unlearning.storage import download_folder, open_store
from unlearning.tracking import promote_bundle

KILLED = -9
Call = Callable[..., int]


def _whole_bundles(store: Path, scratch: Path) -> set[str]:
    """The digests of the bundles that a reader finds in the store; a broken one fails the test."""
    found = set()
    for card in (store / "models").glob("*/card.json"):
        digest = card.parent.name
        into = download_folder(open_store(str(store)), f"models/{digest}", scratch / digest)
        assert read_bundle(into).digest == digest
        found.add(digest)
    return found


def test_every_stage_may_be_killed_once_and_the_run_still_ends_as_one_run(
    place: Any, call: Call, tmp_path: Path
) -> None:
    chain = place.chain("killed", register_as="tiny-killed")
    for stage in COMPONENTS:
        assert call(chain, stage, die="in_the_middle_of_a_stage") == KILLED, stage
        assert call(chain, stage) == 0, stage
    chain = Chain(chain.folder, **chain.parameters)
    pipelines = [
        run
        for run in place.runs("tags.`unlearning.kind` = 'pipeline'")
        if run.data.tags["unlearning.pipeline"] == "delete_class"
    ]
    assert [(run.info.run_id, run.info.status) for run in pipelines] == [(chain.run, "FINISHED")]
    assert place.children(chain.run) == {stage: ["FAILED", "FINISHED"] for stage in COMPONENTS}
    champion = place.registry.version("tiny-killed", "champion")
    assert champion.digest == read_bundle(Path(chain.artifacts["unlearned"].path)).digest
    assert _whole_bundles(place.home / "store", tmp_path) == {place.original.digest, champion.digest}


@pytest.fixture(scope="module")
def judged(place: Any) -> Chain:
    """A run that has come as far as its verdict."""
    chain: Chain = place.chain("judged", model="models:/tiny/1")
    for stage in list(COMPONENTS)[:-1]:
        chain.call(stage)
    return chain


@pytest.mark.parametrize("where", AT_PROMOTION)
def test_promotion_killed_anywhere_leaves_a_whole_champion_and_is_completed_when_repeated(
    place: Any, call: Call, judged: Chain, where: str, tmp_path: Path
) -> None:
    name, store = f"tiny-{where}", tmp_path / "store"
    promote_bundle(place.tracker, open_store(str(store)), place.original, name=name, run_id="", outcome="pass")
    judged.call("load_model")  # the run is open again, as it is while a pipeline runs
    unlearned = read_bundle(Path(judged.artifacts["unlearned"].path)).digest

    assert call(judged, "promote", die=where, store=store, register_as=name) == KILLED
    assert place.tracker.client.get_run(judged.run).info.status == "RUNNING"
    moved = where == "after_the_champion_was_named"
    champion = place.registry.version(name, "champion")
    assert champion.digest == (unlearned if moved else place.original.digest)
    served = place.registry.fetch(f"models:/{name}@champion", tmp_path / "served", str(store))
    assert read_bundle(served).digest == champion.digest
    assert _whole_bundles(store, tmp_path / "first") >= {champion.digest}

    assert call(judged, "promote", store=store, register_as=name) == 0
    champion = place.registry.version(name, "champion")
    assert (champion.version, champion.digest) == (2, unlearned)
    assert champion.aliases == ("candidate", "champion")
    assert place.registry.version(name, "1").aliases == ()
    assert len(place.tracker.client.search_model_versions(f"name = '{name}'")) == 2
    assert _whole_bundles(store, tmp_path / "second") == {place.original.digest, unlearned}
    statuses = [status for attempts in place.children(judged.run).values() for status in attempts]
    assert "RUNNING" not in statuses
    assert place.tracker.client.get_run(judged.run).info.status == "FINISHED"
