"""Exceptions that the command line shows as one line."""

import re

# No file or folder has a longer name, and few paths are longer, so that those are shown whole.
_TOO_LONG = re.compile(r"[^\s/\\]{256,}|\S{1000,}")
_SHOWN = 60
# Characters of a line, and of its two ends if it has more: tables of thousands of columns and
# documents in place of texts make such.
_LONGEST = 3000
_ENDS = (2000, 500)


class UserError(Exception):
    """A mistake that the user can fix: a wrong path, option, file or value.

    The command line prints its message without a traceback and exits with code 2.
    """


def one_line(text: str) -> str:
    """Return text as one line that a terminal can show.

    Line ends and other control characters of names and values are escaped, and values that are
    longer than any name of a file are cut; so is the middle of what is too long altogether.
    """
    text = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )
    text = _TOO_LONG.sub(lambda match: f"{match[0][:_SHOWN]}... ({len(match[0])} characters)", text)
    if len(text) <= _LONGEST:
        return text
    first, last = _ENDS
    return f"{text[:first]} ... ({len(text) - first - last} characters) ... {text[-last:]}"
