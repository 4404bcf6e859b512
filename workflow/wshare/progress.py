"""How long jobs tell how far they are."""

# Keywords for tqdm: a bar on a terminal, and nothing in a file, where a log tells instead. Use a bar by `with`: it ends
# its line when an error passes, whose message starts on a line of its own then.
PROGRESS = {"disable": None, "maxinterval": 60, "ascii": True}
