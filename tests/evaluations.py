"""Evaluations of which every reply is known, without a model."""

from sft.evaluation import Settings
from sft.scores import Arm
from sft.verdict import verdict

RIGHT = {
    "base": (0, 1),
    "prompted": (0, 1, 2, 3),
    "tuned": tuple(range(1, 20)),
}  # which rows; all but those up to `rows`


def arm(name: str, rows: int, right: tuple[int, ...], prompt_tokens: int) -> Arm:
    exact = [at in right for at in range(rows)]
    return Arm(
        messages=[{"role": "system", "content": f"The prompt of <i>{name}</i>"}],
        replies=[f"answer {at}" if is_right else f"<b>{name}</b> errs" for at, is_right in enumerate(exact)],
        exact=exact, valid=exact, stopped=[True] * rows, looping=[False] * rows, prompt_tokens=[prompt_tokens] * rows,
        reply_tokens=[5] * rows, losses=[1.0] * rows, answer_tokens=[2] * rows, seconds=61.0,
    )  # fmt: skip


def evaluation(rows: int = 20, right: dict = RIGHT, measure: str = "exact_match") -> dict:
    """What `evaluate` keeps: row 0 only base and prompted get right, row 1 all, 2 and 3 prompted and tuned, later ones
    tuned alone."""
    arms = {name: arm(name, rows, right[name], tokens) for name, tokens in zip(right, (70, 482, 70), strict=True)}
    return {
        "arms": {name: each.as_json(0) for name, each in arms.items()},
        "verdict": vars(verdict(arms, measure)),
        "rows": [
            {"messages": [{"role": "user", "content": f"<b>question</b> {at}"}], "wanted": f"answer {at}"}
            for at in range(rows)
        ],
        "settings": {"run": "one", **vars(Settings()), "check": "one <of> the labels", "written": 0},
    }
