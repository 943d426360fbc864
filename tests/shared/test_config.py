import json
import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from unlearning.config import About, Setting, as_plain, build, nearest, settings_of
from unlearning.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    size: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Oven:
    name: str
    shelves: int = 3
    heat: float = 180.0
    fan: bool = False
    mode: Literal["bake", "grill"] = "bake"
    pans: tuple[int, ...] = ()
    inner: Inner = field(default_factory=Inner)
    note: str | None = None

    def __post_init__(self) -> None:
        wrong = [f"{name} must be > 0" for name in ("shelves", "heat") if not getattr(self, name) > 0]
        if wrong:
            raise ValueError("; ".join(wrong))


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(UsageError) as caught:
        build(Oven, values, what="oven settings")
    return str(caught.value)


def test_what_is_left_out_takes_its_default() -> None:
    assert build(Oven, {"name": "a", "heat": 200}, what="oven") == Oven(name="a", heat=200.0)


def test_a_record_goes_through_json_and_back_even_when_all_its_numbers_became_floats() -> None:
    oven = Oven(name="ö", shelves=2, fan=True, mode="grill", pans=(1, 2), inner=Inner(size=4), note="x")
    assert build(Oven, json.loads(json.dumps(as_plain(oven))), what="oven") == oven
    floats = {**as_plain(oven), "shelves": 2.0, "pans": [1.0, 2.0], "inner": {"size": 4.0}}
    again = build(Oven, floats, what="oven")
    assert again == oven
    assert [type(number) for number in (again.shelves, *again.pans, again.inner.size)] == [int] * 4


def test_a_plain_record_holds_json_types_alone() -> None:
    assert as_plain(Oven(name="a", pans=(1, 2))) == {
        "name": "a",
        "shelves": 3,
        "heat": 180.0,
        "fan": False,
        "mode": "bake",
        "pans": [1, 2],
        "inner": {"size": 1},
        "note": None,
    }


def test_every_unknown_key_and_every_misfit_is_named_in_one_line() -> None:
    message = refusal({"nam": "a", "shelves": 1.5, "heat": "hot", "mode": "boil", "zzzzz": 1})
    assert message.startswith("oven settings: ")
    assert "\n" not in message
    assert 'unknown setting "nam"; did you mean "name"?' in message
    assert 'unknown setting "zzzzz"' in message
    for name in ("name", "shelves", "heat", "mode"):
        assert f"; {name}: " in message
    assert message.endswith("(valid: name, shelves, heat, fan, mode, pans, inner, note)")


def test_values_out_of_range_are_named_all_at_once_next_to_unknown_keys() -> None:
    message = refusal({"name": "a", "shelves": 0, "heat": -1, "fans": True})
    assert "shelves must be > 0; heat must be > 0" in message
    assert 'unknown setting "fans"; did you mean "fan"?' in message


def test_an_unknown_key_alone_is_refused() -> None:
    assert refusal({"name": "a", "fans": True}).startswith('oven settings: unknown setting "fans"; did you mean "fan"?')


def test_a_nested_mistake_says_where_it_is() -> None:
    assert "inner.size: " in refusal({"name": "a", "inner": {"size": "big"}})


@pytest.mark.parametrize("value", [math.nan, "2.5", None, [3], {}])
def test_what_is_no_whole_number_is_refused_for_one(value: Any) -> None:
    assert "shelves: " in refusal({"name": "a", "shelves": value})


def test_the_record_must_be_a_dataclass() -> None:
    with pytest.raises(TypeError, match="not a dataclass"):
        build(dict, {}, what="settings")


@pytest.mark.parametrize(
    ("word", "ending"),
    [("sead", '; did you mean "seed"?'), ("seed", '; did you mean "seed"?'), ("wholly else", ""), ("", "")],
)
def test_the_nearest_choice_is_suggested_when_there_is_a_near_one(word: str, ending: str) -> None:
    assert nearest(word, iter(["seed", "model"])) == ending


def test_nothing_is_suggested_among_no_choices() -> None:
    assert nearest("seed", []) == ""


def test_the_settings_of_a_record_say_what_each_is_and_where_its_default_comes_from() -> None:
    @dataclass(frozen=True)
    class Kiln:
        heat: Annotated[float, About("in degrees", "paper")] = 900.0
        mode: Annotated[Literal["oxidise", "reduce"], About("of the gas")] = "reduce"

    assert settings_of(Kiln) == [
        Setting(name="heat", kind="float", default=900.0, text="in degrees", origin="paper"),
        Setting(name="mode", kind="oxidise | reduce", default="reduce", text="of the gas", origin="ours"),
    ]
    assert build(Kiln, {"heat": 1000}, what="kiln") == Kiln(heat=1000.0)


def test_a_setting_that_nobody_explained_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Oven\.name has no About"):
        settings_of(Oven)
