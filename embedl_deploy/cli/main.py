"""The entry point: ``embedl-deploy``."""

import json
import sys

import typer

from embedl_deploy.cli.commands.bench import bench_command
from embedl_deploy.cli.commands.compile import compile_command
from embedl_deploy.cli.commands.demo import demo_command
from embedl_deploy.cli.commands.explain import explain_command
from embedl_deploy.cli.commands.manifest import manifest_commands
from embedl_deploy.cli.commands.quantize import quantize_command
from embedl_deploy.cli.commands.search import search_command
from embedl_deploy.cli.commands.transform import transform_command
from embedl_deploy.cli.console import Screen, quiet_libraries
from embedl_deploy.cli.exit_codes import exit_code_of
from embedl_deploy.errors import EmbedlDeployError

_HELP = """Takes trained PyTorch models to their targets, every step visible.

Exit codes: 0 done; 1 an unforeseen error (with traceback); 2 wrong command line; 3 the model
cannot be loaded; 4 it cannot be traced; 5 or rewritten; 6 or quantized; 7 or lowered; 8 a file
cannot be written or read; 9 an optional library is missing; 10 a model lost rewrites that its
manifest expects.
"""

app = typer.Typer(
    name="embedl-deploy",
    help=_HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("demo")(demo_command)
app.command("transform")(transform_command)
app.command("quantize")(quantize_command)
app.command("search")(search_command)
app.command("compile")(compile_command)
app.command("bench")(bench_command)
app.command("explain")(explain_command)
app.add_typer(manifest_commands, name="manifest")


def main() -> None:
    """Runs the command line; ends the process with one of ``ExitCode``."""
    quiet_libraries()
    try:
        app()
    except EmbedlDeployError as error:
        sys.exit(report_error(error, as_json="--json" in sys.argv))


def report_error(error: EmbedlDeployError, *, as_json: bool) -> int:
    """Prints an error of the family, without a traceback, and returns the exit code."""
    code = exit_code_of(error)
    Screen(as_json=as_json).error(str(error))
    if as_json:
        document = {
            "error": {"kind": type(error).__name__, "message": str(error), "exit_code": int(code)}
        }
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    return int(code)
