"""The ``retort`` command: one word picks a package's own commands, and only those are loaded."""

import importlib
import sys
from collections.abc import Sequence

from capture.errors import CaptureError, ConfigError

COMMANDS = {
    "demo": ("gateway.demo.commands:app", "the whole loop on this machine, with a report"),
    "serve": ("gateway.serve:app", "the gateway, and the engines it manages"),
    "key": ("gateway.key_commands:key_app", "who may ask the gateway, and how much"),
    "log": ("capture.commands:log_app", "the capture log"),
    "distill": ("trainer.commands:distill_app", "from a snapshot of the log to a checkpoint"),
    "quantize": ("quant.commands:quantize_app", "from a checkpoint to a bundle"),
    "compare": ("quant.compare.commands:app", "is a student as good as its teacher"),
    "advise": ("quant.advise.commands:app", "which path to cheaper answers pays for this traffic"),
    "doctor": ("gateway.doctor:app", "what is wrong with this installation, and what to do"),
    "rollout": ("gateway.commands:rollout_app", "try a bundle on real traffic"),
}
PACKAGE_ERRORS = {
    "trainer.errors": "TrainerError",
    "quant.errors": "QuantError",
    "gateway.errors": "GatewayError",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 done, 1 our error, 2 usage or configuration, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in {"--help", "-h", "help"}:
        print(overview())
        return 0 if words else 2
    if words[0] not in COMMANDS:
        print(f"retort: no command {words[0]!r}\n\n{overview()}", file=sys.stderr)
        return 2
    return run(words[0], words[1:])


def overview() -> str:
    """What ``retort --help`` prints."""
    lines = [f"  {name:10}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(["usage: retort COMMAND ...  (retort COMMAND --help)", "", *lines])


def run(name: str, words: list[str]) -> int:
    """Run one command and turn its errors into one line and an exit code."""
    module, _, attribute = COMMANDS[name][0].partition(":")
    try:
        app = getattr(importlib.import_module(module), attribute)
        app(words, prog_name=f"retort {name}")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except KeyboardInterrupt:
        print("retort: interrupted", file=sys.stderr)
        return 130
    except ConfigError as error:
        print(f"retort: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if not isinstance(error, known_errors()):
            raise
        print(f"retort: {error}", file=sys.stderr)
        return 1
    return 0


def known_errors() -> tuple[type[Exception], ...]:
    """Base errors of the packages that the command has imported, and the system's own."""
    loaded = (
        getattr(sys.modules[module], base)
        for module, base in PACKAGE_ERRORS.items()
        if module in sys.modules
    )
    return (CaptureError, OSError, *loaded)


if __name__ == "__main__":
    sys.exit(main())
