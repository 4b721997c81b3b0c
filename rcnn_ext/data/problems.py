"""Problems of a data set: every broken file with its line, in one report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rcnn_ext.errors import UserError, one_line

_MAX_SHOWN = 3


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        severity: ``error``: the image, or the entry, cannot be used; ``warning``: it was corrected
            or left out; ``note``: how the data were understood where that could be otherwise.
        file: The file to look at.
        line: Its line, from 1; None where the file has no lines, or all of it is meant.
        message: What is wrong.
    """

    severity: Literal["error", "warning", "note"]
    file: Path
    line: int | None
    message: str

    @property
    def where(self) -> str:
        """``file:line``, as editors and terminals understand it."""
        return str(self.file) if self.line is None else f"{self.file}:{self.line}"

    def __str__(self) -> str:
        """Return one line, in the manner of compilers."""
        return one_line(f"{self.where}: {self.severity}: {self.message}")


@dataclass
class Report:
    """Problems in the order in which they were found.

    Readers add to it and leave out what is broken; what to do about it is for their caller.
    """

    problems: list[Problem] = field(default_factory=list)

    def error(self, file: Path, line: int | None, message: str) -> None:
        """Add something that cannot be used."""
        self.problems.append(Problem("error", file, line, message))

    def warning(self, file: Path, line: int | None, message: str) -> None:
        """Add something that was corrected."""
        self.problems.append(Problem("warning", file, line, message))

    def note(self, file: Path, line: int | None, message: str) -> None:
        """Add how something was understood, which is no problem."""
        self.problems.append(Problem("note", file, line, message))

    def errors(self) -> list[Problem]:
        """Return the problems that were not corrected."""
        return [problem for problem in self.problems if problem.severity == "error"]

    def warnings(self) -> list[Problem]:
        """Return the problems that were corrected."""
        return [problem for problem in self.problems if problem.severity == "warning"]

    def raise_if_errors(self, source: Path, advice: str = "") -> None:
        """Stop for errors, naming the first.

        Args:
            source: The data.
            advice: What else one could do.

        Raises:
            UserError: There are errors.
        """
        errors = self.errors()
        if errors:
            raise UserError(f"{summary_of(errors, source)}{advice}")

    def text(self) -> str:
        """Return all problems, one per line."""
        return "\n".join(str(problem) for problem in self.problems)


def summary_of(problems: Iterable[Problem], source: Path) -> str:
    """Return the first problems on one line, and how many more there are."""
    problems = list(problems)
    parts = []
    for problem in problems[:_MAX_SHOWN]:
        same = problem.file == source
        if same:
            place = "" if problem.line is None else f"line {problem.line}: "
        else:
            place = f"{problem.where}: "
        parts.append(f"{place}{problem.message}")
    more = len(problems) - _MAX_SHOWN
    rest = f"; and {more} more (rcnn-ext check lists all)" if more > 0 else ""
    return f"{source}: {'; '.join(parts)}{rest}"
