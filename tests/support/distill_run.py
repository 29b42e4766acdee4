"""A log of a tiny teacher's answers, and ``retort distill`` on it in this process."""

from pathlib import Path

from typer.testing import CliRunner, Result

from tests.support.answered_rows import answer, write_log
from tests.support.tiny_model import make_tiny_model
from trainer.commands import distill_app

SETTINGS = """\
[trainer]
log = "log"
teacher = "teacher"
out = "out"
steps = 12
batch_tokens = 256
heldout_fraction = 0.3
"""


def make_home(folder: Path) -> Path:
    """A teacher and the log of 40 of its answers."""
    teacher = make_tiny_model(folder / "teacher", hidden_size=128)
    write_log(answer(teacher, 40), folder / "log", folder / "spool")
    return folder


def write_config(home: Path, **replaced: str) -> Path:
    """The settings above, some replaced, others added; a file of its own each time."""
    lines = dict(line.split(" = ") for line in SETTINGS.splitlines()[1:])
    lines |= replaced
    path = home / f"run-{len(list(home.glob('run-*')))}.toml"
    path.write_text("[trainer]\n" + "\n".join(f"{key} = {value}" for key, value in lines.items()))
    return path


def distill(path: Path, *words: str) -> Result:
    """Run it; ``words`` come first, such as a command's name."""
    return CliRunner().invoke(
        distill_app, [*words, "-c", str(path), "--json"], catch_exceptions=False
    )
