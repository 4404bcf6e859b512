"""The two errors a user can meet."""

# Environment variable with the command that started the workflow: messages repeat it.
COMMAND = "WSHARE_COMMAND"


class UserError(Exception):
    """Input that cannot be used; the message is one line: what, where, what to do."""


class FormatError(UserError):
    """A file that is damaged, incomplete, or of another kind or version."""
