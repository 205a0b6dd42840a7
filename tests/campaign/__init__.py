"""Runs that are killed, damaged and starved: `python -m tests.campaign`.

The long form prints a table and writes every trial to a JSON file as it comes; the
short form is `tests/test_campaign.py`.
"""

import sys
from pathlib import Path

# As pytest does it, for what the tests share.
if (_TESTS := str(Path(__file__).parents[1])) not in sys.path:
    sys.path.append(_TESTS)
