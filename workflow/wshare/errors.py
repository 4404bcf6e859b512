"""The two errors a user can meet, and how a foreign one is told."""

# Environment variable with the command that started the workflow: messages repeat it.
COMMAND = "WSHARE_COMMAND"

# Characters of a foreign error that a message repeats: paths fit, listings of tensors do not.
MOST_REPEATED = 300


class UserError(Exception):
    """Input that cannot be used; the message is one line: what, where, what to do."""


class FormatError(UserError):
    """A file that is damaged, incomplete, or of another kind or version."""


def one_line(error: Exception) -> str:
    """What an error says, as one line of bounded length for a message of ours; its type where it says nothing."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= MOST_REPEATED else f"{text[:MOST_REPEATED]}..."
