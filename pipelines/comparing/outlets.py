"""Where a comparison goes: the terminal, JSON, a page's marks, a report."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..console import show_blocks, write_json
from ..records.markdown import check_mark, escaped, filled, table_markdown, write_page
from ..records.report import Report, Table, write_report


@dataclass(frozen=True)
class Outlets:
    """The files that were named, none where none was. Raises ConfigError, DataError for a page without its marks."""

    report: Path | None = None
    markdown: Path | None = None
    mark: str | None = None
    json: Path | None = None

    def __post_init__(self) -> None:
        check_mark(self.markdown, self.mark)  # before the work, not after it

    def deliver(self, plain: Any, shown: Sequence[Table], markdown: str, report: Callable[[], Report]) -> None:
        """All of it; the terminal shows the tables unless it gets the JSON. Raises StoreError, DataError."""
        page = filled(self.markdown, self.mark, markdown) if self.markdown else ""
        write_json(plain, self.json)
        if self.markdown:
            write_page(self.markdown, page)
        if self.report:
            write_report(report(), self.report)
        if str(self.json) != "-":
            for table in shown:
                show_blocks(table.title, table.columns, table.rows, table.note)


def as_text(made: Sequence[Table], origins: Sequence[str]) -> str:
    """Tables as Markdown, then what made each of those that are compared."""
    return "".join([table_markdown(table) for table in made] + [f"* {escaped(one)}\n" for one in origins])
