"""The commands under headings, in the order in which an operator meets them."""

from __future__ import annotations

from typing import Final

import click

SECTIONS: Final = {
    "Run": ("run",),
    "Look": ("topology", "status"),
    "Decide": ("check-config", "plan", "account", "advise"),
    "Act": ("release",),
    "Beside Nova and libvirt": ("provider-yaml", "admit"),
    "Explore, away from the guests": ("demo", "simulate", "collect"),
}
"""Names by heading; one that is no command is passed over."""
REST: Final = "Others"


class Sections(click.Group):
    """A group whose help has its commands under headings."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the headings."""
        return [name for names in self._sections(ctx).values() for name in names]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the headings, with the texts of all commands in one column."""
        longest = max(map(len, self.list_commands(ctx)))
        room = formatter.width - longest - 4
        for heading, names in self._sections(ctx).items():
            texts = (self.commands[name].get_short_help_str(room) for name in names)
            with formatter.section(heading):
                formatter.write_dl(list(zip((n.ljust(longest) for n in names), texts, strict=True)))

    def _sections(self, ctx: click.Context) -> dict[str, list[str]]:
        known = [name for name in super().list_commands(ctx) if not self.commands[name].hidden]
        placed = {name for names in SECTIONS.values() for name in names}
        rest = tuple(name for name in known if name not in placed)
        sections = {**SECTIONS, REST: rest}.items()
        found = {heading: [name for name in names if name in known] for heading, names in sections}
        return {heading: names for heading, names in found.items() if names}
