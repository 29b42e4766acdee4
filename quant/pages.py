"""Pages of this package: one file each, from a template beside this module."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render(template: str, path: Path, **values: Any) -> None:  # noqa: ANN401 - a template's
    """Fill a template and put the page in place whole."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(environment.get_template(template).render(**values), encoding="utf-8")
    temporary.replace(path)
