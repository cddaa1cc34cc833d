import inspect

import pytest

from embedl_deploy import errors
from embedl_deploy.cli.exit_codes import ExitCode, exit_code_of

FAMILY = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.EmbedlDeployError)
]


@pytest.mark.parametrize("kind", FAMILY)
def test_every_error_of_the_family_has_a_code_of_its_own_kind(
    kind: type[errors.EmbedlDeployError],
) -> None:
    assert exit_code_of(kind("why")) not in (ExitCode.DONE, ExitCode.BUG, ExitCode.USAGE)


def test_the_narrow_kind_decides() -> None:
    assert exit_code_of(errors.CalibrationError("why")) is ExitCode.QUANTIZATION
    assert exit_code_of(errors.BuildError("why")) is ExitCode.LOWERING
    assert exit_code_of(errors.PlanError("why")) is ExitCode.REWRITING
