"""Pages that people look at: one file each, with nothing beside it."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render(template: Path, path: Path, **values: Any) -> None:  # noqa: ANN401 - a template's
    """Fill a template and put the page in place whole."""
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(environment.get_template(template.name).render(**values), encoding="utf-8")
    temporary.replace(path)
