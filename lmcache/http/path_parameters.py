"""Parameters of paths that take the whole rest of a path, an encoded slash included, so that the endpoint and not the
router says what is wrong with them. Knows no endpoint."""

from __future__ import annotations

from starlette.convertors import PathConvertor, register_url_convertor

_NAME = "rest"


class _RestConvertor(PathConvertor):
    """Unlike the framework's `path` never empty: a path that ends before the parameter is another path."""

    regex = "(?s:.+)"


register_url_convertor(_NAME, _RestConvertor())


def rest_of_path(name: str) -> str:
    """The parameter of that name, for the end of a route's path."""
    return f"{{{name}:{_NAME}}}"


def as_written(path: str) -> str:
    """A route's path as the documents and operators write it: what such a parameter takes is no part of it."""
    return path.replace(f":{_NAME}}}", "}")
