"""Held-out rows through three arms: the base model as it is, with the best prompt, and tuned → figures and a verdict.

Every arm answers the same rows, greedily: the last answer of a row is wanted, all before it is the prompt. The tuned
model reads the run's chat format; the base model, in both its arms, its own. Knows nothing about the page.
"""

import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from sft import chat, data, models
from sft.answers import Answer, losses
from sft.best_prompt import BestPrompt, best_prompt, ends_in_answer, some_of
from sft.chat_format import ChatFormat
from sft.contest import Contest
from sft.errors import DataError, RunError
from sft.evaluation import Report, Settings
from sft.messages import Conversation
from sft.prompts import opening
from sft.reply_format import ReplyFormat, wanted_format
from sft.run import Run
from sft.sandbox import guarded
from sft.scores import Arm, exact, loops, measure_for
from sft.tables import read_table
from sft.verdict import Verdict, verdict
from sft.weights import WEIGHTS, Voice

LONGEST = 512  # tokens of a reply to a short answer: a model that has not ended by then would ramble on
REPLYING = 0.85  # of an arm's time goes into its replies, about; the rest into the losses of the wanted answers


@dataclass(frozen=True)
class Evaluation:
    """The arms `base`, `prompted` and `tuned`, and which of them is worth its trouble."""

    arms: dict[str, Arm]
    verdict: Verdict
    rows: list[Conversation]
    settings: dict

    def as_json(self) -> dict:
        """What `evaluate --json` prints and the run folder keeps."""
        return {
            "arms": {name: arm.as_json(self.settings["seed"]) for name, arm in self.arms.items()},
            "verdict": asdict(self.verdict),
            "rows": [{"messages": row.messages[:-1], "wanted": row.messages[-1]["content"]} for row in self.rows],
            "settings": self.settings,
        }


@dataclass(frozen=True)
class Contender:
    """Who answers in an arm, and what it is asked, row by row: as messages, and as token ids; `rooms` are the tokens
    that each reply may have."""

    voice: Voice
    chat_format: ChatFormat
    asked: list[list[dict]]
    prompts: list[list[int]]
    rooms: list[int]


def rows_of(
    run: Run, path: str | None = None, limit: int | None = None, seed: int = 0
) -> tuple[list[Conversation], data.Conversations]:
    """The run's own held-out rows, or those of the data at `path`; and the rows that it trained on.

    With `limit` so many of them, drawn by seed: files are often sorted.
    """
    config = run.config()
    split = data.load_split(config)
    rows = data.usable(read_table(path), columns=config.columns)[0] if path else split.held_out
    rows = list(filter(ends_in_answer, rows))
    if not rows:
        raise DataError(
            f"The run {run.name} has no held-out rows that end in an answer.",
            "Name some with --data FILE; they must not be rows that it was trained on.",
        )
    places = random.Random(seed).sample(range(len(rows)), min(limit or len(rows), len(rows)))
    return [rows[at] for at in sorted(places)], split.train


def evaluate(
    run: Run,
    rows: list[Conversation],
    training: data.Conversations,
    settings: Settings = Settings(),  # noqa: B008 (it is frozen)
    report: Report = lambda stage, share: None,
) -> Evaluation:
    """All arms on those `rows` that the model can read. The prompted one takes its examples from `training`."""
    contest = Contest.of_run(run)
    written, given = contest.contestants[1].written, run.config().eval_format
    own = _own_format(contest, run)
    looked_at = some_of(training, settings.seed)
    answers = [row.messages[-1]["content"] for row in looked_at]
    reads_system = own.traits.ability("system message").verdict == "yes"
    prompt = best_prompt(
        looked_at, rows, wanted_format(given, answers), settings.system, settings.examples, reads_system
    )
    left_out, rows = len(rows), _readable(rows, contest, own, prompt)
    left_out -= len(rows)
    wanted = [row.messages[-1]["content"] for row in rows]
    judged = wanted_format(given, answers + wanted)
    contenders = _contenders(contest, own, rows, prompt)
    arms = _arms(contenders, rows, judged, report)
    report("verdict", 1.0)
    found = verdict(arms, measure_for(wanted, judged), settings.seed)
    remarks = _remarks(contenders, rows, training, left_out)
    found = replace(found, sentence=" ".join([found.sentence, *remarks]))
    shown = {"run": run.name, **asdict(settings), "check": judged and judged.description, "written": written}
    return Evaluation(arms, found, rows, shown)


def _arms(
    contenders: dict[str, Contender], rows: list[Conversation], judged: ReplyFormat | None, report: Report
) -> dict[str, Arm]:
    arms = {}
    before, whole = 0, sum(sum(map(len, each.prompts)) for each in contenders.values())
    for name, contender in contenders.items():
        size = sum(map(len, contender.prompts))

        def progress(share: float, name=name, before=before, size=size):
            report(f"{name} model", (before + share * size) / whole)

        arms[name] = _arm(contender, rows, judged, progress)
        before += size
    return arms


def _remarks(
    contenders: dict[str, Contender], rows: list[Conversation], training: data.Conversations, left_out: int
) -> list[str]:
    """What the reader of the verdict has to know beside it."""
    known = set(training.digests)
    seen = sum(data.digest(row) in known for row in rows)
    remarks = [f"Careful: {seen} of the {len(rows)} rows were trained on."] if seen else []
    if left_out:
        remarks.append(
            f"{left_out} of {left_out + len(rows)} rows are left out: with an answer they are longer than the model "
            "can read."
        )
    if contenders["prompted"].prompts == contenders["base"].prompts:
        remarks.append(
            "The prompted model was asked the same as the base: there is neither an instruction nor an example for it."
        )
    return remarks


def _readable(rows: list[Conversation], contest: Contest, own: ChatFormat, prompt: BestPrompt) -> list[Conversation]:
    """Those rows that leave room for an answer in every arm, the prompted one without its examples."""
    context = models.context_length(contest.folder)
    if context is None:
        return rows
    as_it_is = [row.messages[:-1] for row in rows]
    told = list(map(replace(prompt, examples=[]).messages, as_it_is))
    asked = [(own, as_it_is), (own, told)] + [(contest.chat_format, as_it_is)] * (own is not contest.chat_format)
    prompts = zip(*(_prompts(*each, rows) for each in asked), strict=True)
    lengths = [max(map(len, each)) + room for each, room in zip(prompts, _rooms(own, rows, context), strict=True)]
    if min(lengths) > context:
        raise RunError(
            f"Every held-out row has, with its instruction and an answer, more than the {context:,} tokens that the "
            f"model can read; the shortest has {min(lengths):,}.",
            "Write a shorter instruction, or take shorter rows.",
        )
    return [row for row, length in zip(rows, lengths, strict=True) if length <= context]


def _contenders(
    contest: Contest, own: ChatFormat, rows: list[Conversation], prompt: BestPrompt
) -> dict[str, Contender]:
    with WEIGHTS.lock:
        base, tuned = WEIGHTS.load(contest)
    context = models.context_length(contest.folder)
    rooms = _rooms(own, rows, context)
    prompt = prompt.fitting(rows, own, context and context - max(rooms))
    as_it_is = [row.messages[:-1] for row in rows]

    def contender(voice: Voice, chat_format: ChatFormat, asked: list[list[dict]]) -> Contender:
        return Contender(voice, chat_format, asked, _prompts(chat_format, asked, rows), rooms)

    return {
        "base": contender(base, own, as_it_is),
        "prompted": contender(base, own, list(map(prompt.messages, as_it_is))),
        "tuned": contender(tuned, contest.chat_format, as_it_is),
    }


def _prompts(chat_format: ChatFormat, asked: list[list[dict]], rows: list[Conversation]) -> list[list[int]]:
    """What an arm reads before its reply to each row, up to where the answer itself begins."""
    first = opening(chat_format, asked[0], rows[0].tools)
    return [chat_format.prompt_ids(each, row.tools) + first for each, row in zip(asked, rows, strict=True)]


def _own_format(contest: Contest, run: Run) -> ChatFormat:
    """The base model's own chat format: the run's, unless that was given another template."""
    if run.config().chat_template is None:
        return contest.chat_format
    return guarded(ChatFormat.of(models.load_tokenizer(contest.folder)))


def _arm(
    contender: Contender,
    rows: list[Conversation],
    reply_format: ReplyFormat | None,
    progress: Callable[[float], None],
) -> Arm:
    began = time.perf_counter()
    wanted, stops = [row.messages[-1]["content"] for row in rows], contender.chat_format.stop_token_ids
    replies = chat.complete(
        contender.voice, contender.prompts, stops, contender.rooms, lambda share: progress(REPLYING * share)
    )
    seconds = time.perf_counter() - began
    texts = [chat.reply_text(reply, contender.chat_format) for reply in replies]
    stopped = [reply[-1] in stops for reply in replies]
    answers = [
        Answer.of(contender.chat_format, asked, prompt, row)
        for asked, prompt, row in zip(contender.asked, contender.prompts, rows, strict=True)
    ]
    return Arm(
        messages=contender.asked[0],
        replies=texts,
        exact=list(map(exact, texts, wanted)),
        valid=list(map(reply_format.valid, texts)) if reply_format else None,
        stopped=stopped,
        looping=list(map(loops, replies, stopped)),
        prompt_tokens=list(map(len, contender.prompts)),
        reply_tokens=list(map(len, replies)),
        losses=losses(contender.voice, answers, lambda share: progress(REPLYING + (1 - REPLYING) * share)),
        answer_tokens=[answer.labelled for answer in answers],
        seconds=seconds,
    )


def _rooms(chat_format: ChatFormat, rows: list[Conversation], context: int | None) -> list[int]:
    """How many tokens the reply to each row may have: half as many again as the longest wanted answer, but no more than
    LONGEST, and than a quarter of what the model can read, where the row's own answer is shorter."""
    lengths = [len(ids) for ids in chat_format.tokenize([row.messages[-1]["content"] for row in rows])[0]]
    usual = min(max(lengths) + max(lengths) // 2 + 8, LONGEST, (context or 4 * LONGEST) // 4)
    return [max(usual, length + 8) for length in lengths]
