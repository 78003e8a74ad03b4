"""A command whose options are plain text or flags, which Typer would otherwise send through pydantic (80 ms)."""

from __future__ import annotations

from typing import Any

import typer.core


class _Text:
    @staticmethod
    def coerce(value: Any, param: Any, ctx: Any) -> Any:
        return value


class _Light:
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for param in self.get_params(ctx):  # with --help
            param.get_runtime_param = _Text
        return super().parse_args(ctx, args)


class LightCommand(_Light, typer.core.TyperCommand):
    """For commands that must start fast. Every parameter is `str`, `str | None` or a flag; nothing is converted."""


class LightGroup(_Light, typer.core.TyperGroup):
    """The same for the options of a group."""
