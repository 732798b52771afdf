import pytest

from penlight.errors import PenlightError, UnknownName, near_names
from penlight.registry import Registry
from penlight.techniques.contract import methods


def test_entries_are_found_by_name_and_duplicates_refused():
    registry: Registry[int] = Registry("number", "penlight.test-numbers")
    registry.add("one", 1)
    assert registry["one"] == 1
    assert list(registry) == ["one"]
    assert "one" in registry
    with pytest.raises(PenlightError, match="'one' is registered already"):
        registry.add("one", 2)
    registry.remove("one")
    assert len(registry) == 0


def test_an_unknown_name_offers_near_ones():
    with pytest.raises(UnknownName, match="did you mean 'penlight'"):
        methods["visualize"]["penligth"]


def test_a_third_party_registers_as_we_do():
    technique = methods["visualize"]["penlight"]
    methods["visualize"].add("mine", technique)
    try:
        assert methods["visualize"]["mine"] is technique
        with pytest.raises(PenlightError, match="registered already"):
            methods["visualize"].add("penlight", technique)
    finally:
        methods["visualize"].remove("mine")


def test_near_names():
    assert near_names("conv", ["conv1", "fc", "conv2"])[0] in {"conv1", "conv2"}
    assert near_names("TABBY", ["tabby", "tiger"]) == ["tabby"]
    assert near_names("zzz", ["tabby"]) == []
