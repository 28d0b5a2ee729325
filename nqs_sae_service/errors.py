"""The few exceptions that cross rooms. Each one's text is a plain line the user can act on."""


def plain(text: str) -> str:
    """The text on one line: what is not printable (line breaks, terminal codes) is written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class UserError(Exception):
    """Something the user did or can mend: printed as one plain line, without a traceback, exit code 1 or 2."""


class NumericalError(UserError):
    """The computation left the realm of finite numbers. The last good checkpoint is kept; the text says what to change."""


class Stopped(Exception):
    """A stop was asked for (SIGTERM, SIGINT, SIGUSR1) and the checkpoint is on disk: exit code 75, run again to continue."""


class CompilationStopped(BaseException):
    """A stop was asked for in the middle of a compilation. No ``Exception``: the compiler would take it for one of its own."""
