import pytest
from torch import nn

from embedl_deploy.quantization.skipping import ModulesToSkip, describe_rule, rule_that_names

CONV = nn.Conv2d(3, 4, 1)


def test_finds_a_module_by_identity_type_and_name_pattern() -> None:
    for rule in (CONV, nn.Conv2d, "encoder.*.fc1"):
        assert rule_that_names({rule}, [CONV], ["encoder.layer.0.fc1"]) is rule


def test_another_module_of_the_same_shape_is_not_meant() -> None:
    assert rule_that_names({nn.Conv2d(3, 4, 1)}, [CONV], ["conv"]) is None


def test_a_name_pattern_is_for_the_whole_name() -> None:
    assert rule_that_names({"fc1"}, [CONV], ["encoder.fc1"]) is None


def test_a_type_means_its_subclasses() -> None:
    assert rule_that_names({nn.Module}, [CONV], []) is nn.Module


def test_accepts_sets_lists_and_tuples() -> None:
    skip = ModulesToSkip(stub={CONV}, weight=[CONV], smooth=(nn.LayerNorm,))

    assert skip.stub == skip.weight == {CONV}
    assert skip.smooth == {nn.LayerNorm}


def test_refuses_a_single_rule_in_place_of_a_set() -> None:
    with pytest.raises(ValueError, match="stub must be a set of rules"):
        ModulesToSkip(stub="fc1")


def test_refuses_what_is_no_rule() -> None:
    with pytest.raises(ValueError, match="weight takes modules, module types and name patterns"):
        ModulesToSkip(weight={3})  # pyright: ignore[reportArgumentType]


def test_describes_each_kind_of_rule() -> None:
    assert describe_rule("fc*") == "name pattern 'fc*'"
    assert describe_rule(nn.Linear) == "type Linear"
    assert "Conv2d(3, 4" in describe_rule(CONV)
