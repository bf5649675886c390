"""votes.jsonl: which of two replies a person preferred without knowing whose it was. One vote a line, append-only.

Knows nothing about models and pages. Several processes may append at once, and one may be killed while it does.
"""

import fcntl
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from sft.errors import RunError
from sft.run import Run

CHOICES = ("base", "tuned", "tie", "bad")  # bad: both are
_Z = 1.959964  # of the normal distribution, for an interval that holds the truth 95 times in 100
FEWEST = math.floor(_Z**2) + 1  # decided votes, all for the same, that tell


@dataclass(frozen=True)
class Vote:
    """One vote. `first` says whose reply was shown as A, "base" or "tuned"; `ballot` makes sure that it counts once.

    `sampling` has the seed too, `step` is the training step of the tuned model, `time` is in seconds since 1970.
    """

    ballot: str
    messages: list[dict]
    base: str
    tuned: str
    first: str
    sampling: dict
    step: int
    voter: str
    choice: str = ""  # one of CHOICES, once it is cast
    time: float = 0.0


def voter_of(owner: str) -> str:
    """Tells voters apart without giving away the token by which the page knows them."""
    return hashlib.sha256(owner.encode()).hexdigest()[:16]


def append(run: Run, vote: Vote) -> bool:
    """Adds one line, in one write. False, and nothing is written, where its ballot has been cast before.

    Raises RunError where nothing can be written.
    """
    line = json.dumps(asdict(vote)).encode() + b"\n"
    try:
        with (run.folder / "votes.jsonl").open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
            file.seek(0)
            written = file.read()
            if any(known.ballot == vote.ballot for known in _parsed(written)[0]):
                return False
            file.write(line if written.endswith(b"\n") or not written else b"\n" + line)
    except OSError as error:
        raise RunError(f"The vote cannot be kept: {error}", "Make room in the run's folder, then vote again.") from None
    return True


def read(run: Run) -> tuple[list[Vote], int]:
    """The votes so far, and how many lines hold none: a process died, or the disk was full, while it wrote them."""
    try:
        with (run.folder / "votes.jsonl").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            return _parsed(file.read())
    except FileNotFoundError:
        return [], 0


def _parsed(written: bytes) -> tuple[list[Vote], int]:
    lines = [line for line in written.split(b"\n") if line.strip()]
    votes = [vote for vote in map(_vote, lines) if vote]
    return votes, len(lines) - len(votes)


def _vote(line: bytes) -> Vote | None:
    try:
        vote = Vote(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
    return vote if vote.choice in CHOICES else None


# ---- what they say together ----


@dataclass(frozen=True)
class Tally:
    """How many votes there are of each kind. Ties and pairs that were both bad decide nothing between the two."""

    base: int = 0
    tuned: int = 0
    tie: int = 0
    bad: int = 0

    @property
    def decided(self) -> int:
        return self.base + self.tuned

    @property
    def share(self) -> float | None:
        """Tuned's share of the decided votes."""
        return self.tuned / self.decided if self.decided else None

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of that share; all from 0 to 1 without a decided vote."""
        return wilson(self.tuned, self.decided)

    @property
    def needed(self) -> int | None:
        """How many more decided votes, divided as they are now, until the interval leaves one half; 0 where it has.

        None where that never happens: without a decided vote, and where both have as many.
        """
        if self.base == self.tuned:
            return None
        # Wilson's interval leaves one half as soon as n (2 share - 1)² > z²: it is the score test, turned round.
        enough = math.floor((_Z / (2 * self.share - 1)) ** 2) + 1
        return max(0, enough - self.decided)


def tally(votes: Iterable[Vote]) -> Tally:
    return Tally(**Counter(vote.choice for vote in votes))


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of a share, from 0 to 1, after E. B. Wilson (1927): honest for few trials and near 0 and 1."""
    if not trials:
        return 0.0, 1.0
    share, z2 = successes / trials, _Z**2
    middle = share + z2 / (2 * trials)
    half = _Z * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    return max(0.0, (middle - half) / (1 + z2 / trials)), min(1.0, (middle + half) / (1 + z2 / trials))
