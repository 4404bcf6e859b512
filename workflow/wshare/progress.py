"""How long jobs tell how far they are."""

import sys

# Keywords for tqdm: in a log file one line a while is enough, on a terminal the bar moves. Use a bar by `with`: it ends
# its line when an error passes, whose message starts on a line of its own then.
PROGRESS = {"mininterval": 0.1 if sys.stderr.isatty() else 30, "maxinterval": 60, "ascii": True}
