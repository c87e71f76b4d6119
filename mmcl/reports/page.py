"""What every page has in common: its templates, images within the file, and text that is safe to show."""

from __future__ import annotations

import jinja2
from markupsafe import Markup

from mmcl.reports.images import data_uri
from mmcl.runtime.printable import printable


def page_environment() -> jinja2.Environment:
    """The templates; what is put into them is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mmcl.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    environment.globals |= {"data_uri": data_uri}
    return environment


def _visible(value: object) -> object:
    """Text of others as a page shows it: nothing in it turns the direction of what follows."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
