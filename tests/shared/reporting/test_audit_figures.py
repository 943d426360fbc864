from xml.etree import ElementTree

import pytest

from unlearning.attacks.relearning import RelearningAttack
from unlearning.metrics.distance import LayerDistance
from unlearning.metrics.relearning import RelearnCurve
from unlearning.reporting.audit_figures import (
    MOST_LAYERS,
    confidence_histograms,
    layer_distances,
    relearning_curves,
)


def words(svg: bytes) -> str:
    return " ".join(text.strip() for text in ElementTree.fromstring(svg).itertext() if text.strip())


def curve(*accuracies: float) -> RelearnCurve:
    looks = tuple(range(0, 5 * len(accuracies), 5))
    return RelearnCurve(updates=looks, accuracies=accuracies, losses=(1.0,) * len(accuracies))


def layers(count: int, relative: float = 0.5) -> list[LayerDistance]:
    return [LayerDistance(layer=f"layer{n}", distance=1.0, relative=relative, values=3) for n in range(count)]


def test_relearning_shows_both_models_under_both_attacks_and_the_same_bytes_again() -> None:
    attack = RelearningAttack(
        unlearned=(curve(0, 0.5, 1), curve(0, 0.6, 1)),
        reference=(curve(0, 0, 0.9), curve(0, 0.1, 0.8)),
        area=0.3,
        area_spread=0.1,
        final=0.1,
    )
    attacks = {"few_shots": attack, "retain_only": attack}
    shown = words(relearning_curves(attacks))
    for wanted in (
        "unlearned",
        "retrained, never saw it",
        "on a few forgotten rows",
        "on retained rows alone",
        "updates",
    ):
        assert wanted in shown
    assert relearning_curves(attacks) == relearning_curves(attacks)


@pytest.mark.parametrize("count", [1, 5, MOST_LAYERS + 3])
def test_layers_are_named_and_too_many_are_counted(count: int) -> None:
    shown = words(layer_distances(layers(count), layers(count, 1.5)))
    assert "layer0" in shown
    assert "retrained" in shown
    assert (f"the first {MOST_LAYERS} of {count} layers" in shown) == (count > MOST_LAYERS)
    assert "retrained" not in words(layer_distances(layers(count)))


def test_a_layer_without_a_norm_or_with_a_hostile_name_does_no_harm() -> None:
    odd = [
        LayerDistance(layer="<script>" + "x" * 9000, distance=1, relative=0.1, values=1),
        LayerDistance(layer="new", distance=1, relative=float("inf"), values=1),
    ]
    picture = layer_distances(odd)
    assert b"<script" not in picture
    assert "new" not in words(picture).split()


def test_confidence_is_shown_for_every_model_there_is() -> None:
    shown = words(confidence_histograms({"original": [0, 0, 1], "unlearned": [0.5, 0.5, 0]}))
    assert "original" in shown
    assert "unlearned" in shown
    assert "retrained" not in shown
