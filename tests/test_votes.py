"""Blind votes in a run folder: each once, from any process, none lost; and what they say together."""

import multiprocessing
from dataclasses import replace
from itertools import permutations

import pytest

from sft import votes
from sft.errors import RunError
from sft.run import Run
from sft.votes import Tally, Vote

VOTE = Vote(
    time=1.0, ballot="0", choice="tuned", first="base", messages=[{"role": "user", "content": "Wer?\n\ud800 \u2028"}],
    base="a", tuned="b", sampling={"temperature": 0.0, "seed": 7}, step=60, voter=votes.voter_of("secret"),
)  # fmt: skip


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def test_a_vote_is_read_as_it_was_written_and_holds_no_token(run):
    assert votes.read(run) == ([], 0)
    assert votes.append(run, VOTE)
    assert votes.read(run) == ([VOTE], 0)
    assert "secret" not in (run.folder / "votes.jsonl").read_text()
    assert votes.voter_of("secret") != votes.voter_of("other")


def test_a_ballot_is_cast_once(run):
    assert votes.append(run, VOTE)
    assert not votes.append(run, replace(VOTE, choice="base"))
    assert votes.read(run) == ([VOTE], 0)


@pytest.mark.parametrize(
    "torn", [b'{"time": 1.0, "ballot": "x', b"\xff\xfe", b"[]", b'{"time": 1}', b"null", b"[" * 200_000]
)
def test_a_line_that_is_no_vote_is_counted_and_hides_no_other(run, torn):
    votes.append(run, VOTE)
    with (run.folder / "votes.jsonl").open("ab") as file:
        file.write(torn)
    assert votes.read(run) == ([VOTE], 1)
    other = replace(VOTE, ballot="1", choice="tie")
    votes.append(run, other)  # begins on a line of its own
    assert votes.read(run) == ([VOTE, other], 1)


def test_a_vote_that_cannot_be_written_is_told(run):
    with pytest.raises(RunError, match=r"cannot be kept: .*No such file"):
        votes.append(Run(run.folder / "deleted"), VOTE)


def _cast(folder, name, together):
    for number in range(20):
        together.wait(60)
        votes.append(Run(folder), replace(VOTE, ballot=f"{name}-{number}", base="long " * 5000))
        votes.append(Run(folder), replace(VOTE, ballot=f"both-{number}"))


def test_two_processes_append_at_once(run):
    fresh = multiprocessing.get_context("spawn")  # what the test's own process has loaded is of no use here
    together = fresh.Barrier(2)
    processes = [fresh.Process(target=_cast, args=(run.folder, name, together)) for name in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    found, unreadable = votes.read(run)
    assert unreadable == 0
    wanted = [f"{name}-{number}" for name in ("a", "b", "both") for number in range(20)]
    assert sorted(vote.ballot for vote in found) == sorted(wanted)


# ---- the tally ----


def test_the_tally_counts_each_kind():
    cast = [replace(VOTE, choice=choice) for choice in ("tuned", "tuned", "base", "tie", "bad", "bad")]
    assert votes.tally(cast) == Tally(base=1, tuned=2, tie=1, bad=2)
    assert votes.tally([]) == Tally()
    assert votes.tally(cast).share == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 0, 0, 1), (0, 10, 0, 0.2775), (10, 10, 0.7225, 1), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)],
)
def test_wilsons_interval_is_that_of_the_books(successes, trials, low, high):
    assert votes.wilson(successes, trials) == pytest.approx((low, high), abs=5e-4)


def test_no_number_is_named_where_no_share_would_tell():
    assert Tally().needed is None
    assert Tally().share is None
    assert Tally().interval == (0, 1)
    assert Tally(tie=3, bad=2).needed is None
    assert Tally(base=7, tuned=7).needed is None


def test_all_for_the_same_tell_after_the_fewest():
    assert votes.FEWEST == 4
    assert Tally(tuned=3).needed == 1
    assert Tally(tuned=4).needed == 0
    assert Tally(base=1).needed == 3


def test_needed_is_the_first_number_at_which_the_interval_leaves_one_half():
    for base, tuned in permutations(range(20), 2):
        tally = Tally(base=base, tuned=tuned, tie=1)

        def leaves(decided, share=tally.share):
            low, high = votes.wilson(share * decided, decided)
            return low > 0.5 or high < 0.5

        assert leaves(tally.decided + tally.needed)
        assert tally.needed == 0 or not leaves(tally.decided + tally.needed - 1)
        assert (tally.needed == 0) == leaves(tally.decided)
