import pytest
from hypothesis import given
from hypothesis import strategies as st

from penlight.errors import BadUnit
from penlight.units import Unit

paths = st.from_regex(r"[a-z_][a-z0-9_]*(\.[a-z0-9_]+){0,3}(#[2-9])?", fullmatch=True).filter(lambda p: p != "class")


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("features.12:42", Unit("features.12", 42)),
        ("features.12:42@7,7", Unit("features.12", 42, (7, 7))),
        ("conv:3@5", Unit("conv", 3, (5,))),
        ("fc:2", Unit("fc", 2)),
        ("features.12:*", Unit("features.12")),
        ("relu#2:1", Unit("relu#2", 1)),
        ("class:tabby", Unit("class", label="tabby")),
        ("class:a:b@c", Unit("class", label="a:b@c")),
        ("(logits):0", Unit("(logits)", 0)),
    ],
)
def test_text_and_value(text, unit):
    assert Unit.parse(text) == unit
    assert str(unit) == text


@given(paths, st.integers(0, 10**6), st.none() | st.lists(st.integers(0, 999), min_size=1, max_size=3).map(tuple))
def test_any_address_survives_the_round_trip(layer, index, position):
    unit = Unit(layer, index, position)
    assert Unit.parse(str(unit)) == unit


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("conv1", "is no unit"),
        ("conv1:", "is no unit"),
        (":3", "is no unit"),
        ("class:", "is no unit"),
        ("conv1:-1", "'-1'"),
        ("conv1:two", "'two'"),
        ("conv1:²", "'²'"),
        ("conv1:3@", "is no position"),
        ("conv1:3@1,", "'1,'"),
        ("conv1:*@1,2", "all units at one position"),
    ],
)
def test_what_is_wrong_is_said(text, says):
    with pytest.raises(BadUnit, match="write|name one") as error:
        Unit.parse(text)
    assert says in str(error.value)


def test_units_are_values():
    assert len({Unit("a", 1), Unit.parse("a:1"), Unit("a", 2)}) == 2
    with pytest.raises(BadUnit, match="negative"):
        Unit("a", -1)
