"""A command takes groups of options, each as one parameter, and shows their options as its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_type_hints


def flattened(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one parameter for each field of the groups that it takes; it is called with the groups."""
    kinds: dict[str, Any] = get_type_hints(command, include_extras=True)
    kinds.pop("return", None)
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if _is_group(kinds[name]):
            parameters += _fields(kinds[name])
        else:
            parameters.append(parameter.replace(annotation=kinds[name], kind=inspect.Parameter.KEYWORD_ONLY))

    def flat(**values: object) -> None:
        groups = {
            name: kind(**{field.name: values.pop(field.name) for field in fields(kind)})
            for name, kind in kinds.items()
            if _is_group(kind)
        }
        command(**groups, **values)

    flat.__name__, flat.__doc__ = command.__name__, command.__doc__
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return flat


def _is_group(kind: object) -> bool:
    return isinstance(kind, type) and is_dataclass(kind)


def _fields(kind: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=hints[field.name],
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
        )
        for field in fields(kind)
    ]
