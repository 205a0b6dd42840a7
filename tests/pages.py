"""The pages of the documentation, and what stands in them."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")))
}
_FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.S | re.M)


def blocks(page, language):
    """Returns the code blocks of a language in a page."""
    return [text for name, text in _FENCE.findall(PAGES[page]) if name == language]


def commands(page):
    """Returns the commands of a page's bash blocks, each as its words."""
    found = []
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while "&&" in words:
                end = words.index("&&")
                found.append(words[:end])
                words = words[end + 1 :]
            if words:
                found.append(words)
    # Variables of the environment come before a command.
    return [words[_variables(words) :] for words in found]


def _variables(words):
    return next(i for i, word in enumerate(words) if not re.match(r"[A-Z_]+=", word))


def without_code(text):
    """Returns a page without its code blocks and inline code."""
    return re.sub(r"`[^`\n]+`", "", _FENCE.sub("", text))


def anchors(page):
    """Returns the anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", PAGES[page]), re.M)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in headings
    }
