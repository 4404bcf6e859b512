"""The two errors a user can meet, and how a foreign one is told."""

# Environment variable with the command that started the workflow: messages repeat it.
COMMAND = "WSHARE_COMMAND"

# Characters of a foreign error that a message repeats: paths fit, listings of tensors do not.
MOST_REPEATED = 500


class UserError(Exception):
    """Input that cannot be used; the message is one line: what, where, what to do."""


class FormatError(UserError):
    """A file that is damaged, incomplete, or of another kind or version."""


def one_line(error: Exception) -> str:
    """First line of what an error says, for a message of our own; the name of its type where it says nothing."""
    first = str(error).strip().partition("\n")[0]
    return " ".join(first.split())[:MOST_REPEATED] or type(error).__name__
