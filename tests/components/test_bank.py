from dataclasses import replace
from pathlib import Path
from typing import Any

from unlearning.models.bundle import load_bundle, read_bundle, save_bundle
from unlearning.references import Reference, save
from unlearning_components.surroundings import fetch_manifest, further_references, store


def test_retrained_models_of_other_seeds_are_found_in_the_bank_and_no_others(place: Any, tmp_path: Path) -> None:
    data = fetch_manifest(place.source)
    network, card = load_bundle(place.original.folder)
    folders = []
    for number in range(6):
        with_bias = next(iter(network.parameters()))
        with_bias.data.view(-1)[0] += 1
        folders.append(tmp_path / f"made-{number}")
        save_bundle(network, replace(card, manifest_sha256=data.digest), folders[-1])
    wanted = Reference(
        manifest_sha256=data.digest,
        left_out_sha256="a" * 64,
        architecture=card.architecture,
        arguments=card.arguments,
        recipe={"epochs": 2},
        seed=0,
    )
    others = (
        wanted,
        replace(wanted, seed=1),
        replace(wanted, seed=2, left_out_sha256="b" * 64),
        replace(wanted, seed=3, recipe={"epochs": 3}),
        replace(wanted, seed=4),
    )
    for reference, folder in zip(others, folders, strict=False):
        save(store(), reference, folder)
    found = further_references(str(folders[0]), data, tmp_path / "into")
    assert list(found) == ["retrained_2", "retrained_3"]
    digests = {read_bundle(Path(folder)).digest for folder in found.values()}
    assert digests == {read_bundle(folders[number]).digest for number in (1, 4)}
    assert further_references(str(folders[5]), data, tmp_path / "into") == {}  # it is not of the bank
    assert further_references("", data, tmp_path / "into") == {}
