"""Holds a page's figures against the files that they come from.

A table or paragraph between `<!-- name -->` and `<!-- end -->` must be what benchmarks/tables.py makes of the files. In
all other prose each number, and each word that compares, must stand in a *claim*, whose numbers are worked out from the
files, or in a phrase that states no measurement. Code and the targets of links are left out.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# A number that is no part of a word: of "top-1", "float32", "H200" and "int4" none is.
NUMBER = re.compile(r"(?<![\w.-])[-+]?\d[\d,]*(?:\.\d+)*")
COMPARISON = re.compile(
    r"\b(?:smaller|larger|bigger|faster|slower|better|worse|narrower|wider|shorter|fewer|twice|half|halves|"
    r"times(?! our)|short of|over \d|above|below|meets?|met|missed|undecided|reach(?:es|ed)?|beats?|outlier|gains?)\b"
)
BLOCK = re.compile(r"<!-- (\w+) -->\n(.*?)<!-- end -->", re.DOTALL)
# Fenced code, code in a line, targets of links and pictures, comments.
LEFT_OUT = re.compile(r"^```.*?^```$|`[^`\n]+`|\]\([^)]*\)|<!--.*?-->", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Claim:
    """A passage with a pair of braces for each number, the numbers from the files, and whether its words are true."""

    passage: str
    numbers: Callable[..., Sequence[object]] = lambda files: ()
    holds: Callable[..., bool] = lambda files: True

    def text(self, files) -> str:
        """The passage as the page should have it, without line breaks."""
        return flat(self.passage.format(*self.numbers(files)))


def flat(text: str) -> str:
    """The text with all white space as single spaces, and code and links blanked as in `prose`."""
    return re.sub(r"\s+", " ", LEFT_OUT.sub(lambda found: "]" if found[0][0] == "]" else "`", text)).strip()


def prose(page: str) -> str:
    """What a page says outside its blocks, code and links."""
    return flat(BLOCK.sub("", page))


def problems(page: str, blocks: dict[str, str], claims: Sequence[Claim], stated: Sequence[str], files) -> list[str]:
    """What is wrong with a page's figures, a line each; none if all of them stand in the files.

    `blocks` are the texts of its blocks as made from the files, `stated` phrases that state no measurement.
    """
    found = dict(BLOCK.findall(page))
    wrong = [f"block {name} differs from the files" for name, text in blocks.items() if found.get(name) != text]
    wrong += [f"block {name} is made from no file" for name in found if name not in blocks]
    text = prose(page)
    covered = [False] * len(text)
    for claim in claims:
        if not claim.holds(files):
            wrong.append(f"not so: {claim.text(files)}")
        wrong += _cover(text, claim.text(files), covered)
    for phrase in stated:
        wrong += _cover(text, flat(phrase), covered)
    for pattern in (NUMBER, COMPARISON):
        for match in pattern.finditer(text):
            if not all(covered[match.start() : match.end()]):
                wrong.append(f"no file tells: ...{text[max(0, match.start() - 50) : match.end() + 30]}...")
    return wrong


def _cover(text: str, passage: str, covered: list[bool]) -> list[str]:
    places = [match.start() for match in re.finditer(re.escape(passage), text)]
    for start in places:
        covered[start : start + len(passage)] = [True] * len(passage)
    return [] if places else [f"the page should read: {passage}"]
