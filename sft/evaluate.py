"""Held-out rows through three arms: the base model as it is, with the best prompt, and tuned → figures and a verdict.

Every arm answers the same rows, greedily: the last answer of a row is wanted, all before it is the prompt. The tuned
model reads the run's chat format; the base model, in both its arms, its own. Knows nothing about the page.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from sft import chat, data, models
from sft.answers import Answer, losses
from sft.best_prompt import best_prompt, ends_in_answer, some_of
from sft.chat_format import ChatFormat
from sft.contest import Contest
from sft.errors import DataError, RunError
from sft.evaluation import Report, Settings
from sft.messages import Conversation
from sft.reply_format import ReplyFormat, found_in, named
from sft.run import Run
from sft.sandbox import guarded
from sft.scores import Arm, exact, loops, measure_for
from sft.tables import read_table
from sft.verdict import Verdict, verdict
from sft.weights import WEIGHTS, Voice

LONGEST = 512  # tokens of a reply: a model that has not ended by then would ramble on


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
    """Who answers in an arm, and what it is asked, row by row: as messages, and as token ids."""

    voice: Voice
    chat_format: ChatFormat
    asked: list[list[dict]]
    prompts: list[list[int]]


def rows_of(
    run: Run, path: str | None = None, limit: int | None = None
) -> tuple[list[Conversation], data.Conversations]:
    """The run's own held-out rows, or those of the data at `path`; and the rows that it trained on."""
    config = run.config()
    split = data.load_split(config)
    rows = data.usable(read_table(path), columns=config.columns)[0] if path else split.held_out
    rows = list(filter(ends_in_answer, rows))[:limit]
    if not rows:
        raise DataError(
            f"The run {run.name} has no held-out rows that end in an answer.",
            "Name some with --data FILE; they must not be rows that it was trained on.",
        )
    return rows, split.train


def evaluate(
    run: Run,
    rows: list[Conversation],
    training: data.Conversations,
    settings: Settings = Settings(),  # noqa: B008 (it is frozen)
    report: Report = lambda stage, share: None,
) -> Evaluation:
    """All arms on `rows`. The prompted one takes its examples from `training`."""
    wanted = [row.messages[-1]["content"] for row in rows]
    looked_at = some_of(training, settings.seed)
    answers = [row.messages[-1]["content"] for row in looked_at]
    given = run.config().eval_format
    told, judged = (named(given),) * 2 if given else (found_in(answers), found_in(answers + wanted))
    arms = {}
    contenders = _contenders(run, rows, wanted, looked_at, told, settings)
    before, whole = 0, sum(sum(map(len, each.prompts)) for each in contenders.values())
    for name, contender in contenders.items():
        own = sum(map(len, contender.prompts))

        def progress(share: float, name=name, before=before, own=own):
            report(f"{name} model", (before + share * own) / whole)

        arms[name] = _arm(contender, rows, wanted, judged, progress)
        before += own
    report("verdict", 1.0)
    found = verdict(arms, measure_for(wanted, judged), settings.seed)
    found = replace(found, sentence=" ".join([found.sentence, *_remarks(contenders, rows, training)]))
    shown = {"run": run.name, **asdict(settings), "check": judged and judged.description}
    return Evaluation(arms, found, rows, shown)


def _remarks(contenders: dict[str, Contender], rows: list[Conversation], training: data.Conversations) -> list[str]:
    """What the reader of the verdict has to know beside it."""
    known = set(training.digests)
    seen = sum(data.digest(row) in known for row in rows)
    remarks = [f"Careful: {seen} of the {len(rows)} rows were trained on."] if seen else []
    if contenders["prompted"].prompts == contenders["base"].prompts:
        remarks.append(
            "The prompted model was asked the same as the base: there is neither an instruction nor an example for it."
        )
    return remarks


def _contenders(
    run: Run,
    rows: list[Conversation],
    wanted: list[str],
    looked_at: list[Conversation],
    reply_format: ReplyFormat | None,
    settings: Settings,
) -> dict[str, Contender]:
    contest = Contest.of_run(run)
    with WEIGHTS.lock:
        base, tuned = WEIGHTS.load(contest)
    own = _own_format(contest, run)
    room = _room(own, wanted)
    context = models.context_length(contest.folder)
    reads_system = own.traits.ability("system message").verdict == "yes"
    prompt = best_prompt(looked_at, rows, reply_format, settings.system, settings.examples, reads_system)
    prompt = prompt.fitting(rows, own, context and context - room)
    as_it_is = [row.messages[:-1] for row in rows]

    def contender(voice: Voice, chat_format: ChatFormat, asked: list[list[dict]]) -> Contender:
        prompts = [chat_format.prompt_ids(each, row.tools) for each, row in zip(asked, rows, strict=True)]
        _check_room(rows, prompts, room, context)
        return Contender(voice, chat_format, asked, prompts)

    return {
        "base": contender(base, own, as_it_is),
        "prompted": contender(base, own, list(map(prompt.messages, as_it_is))),
        "tuned": contender(tuned, contest.chat_format, as_it_is),
    }


def _check_room(rows: list[Conversation], prompts: list[list[int]], room: int, context: int | None) -> None:
    longest, row = max(zip(map(len, prompts), rows, strict=True), key=lambda pair: pair[0])
    if context and longest + room > context:
        raise RunError(
            f"The held-out row in {row.place} has {longest} tokens; with {room} for an answer that is more than the "
            f"{context} that the model can read.",
            "Name shorter rows with --data FILE.",
        )


def _own_format(contest: Contest, run: Run) -> ChatFormat:
    """The base model's own chat format: the run's, unless that was given another template."""
    if run.config().chat_template is None:
        return contest.chat_format
    return guarded(ChatFormat.of(models.load_tokenizer(contest.folder)))


def _arm(
    contender: Contender,
    rows: list[Conversation],
    wanted: list[str],
    reply_format: ReplyFormat | None,
    progress: Callable[[float], None],
) -> Arm:
    began = time.perf_counter()
    stops, room = contender.chat_format.stop_token_ids, _room(contender.chat_format, wanted)
    replies = chat.complete(contender.voice, contender.prompts, stops, room, progress)
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
        losses=losses(contender.voice, answers),
        answer_tokens=[answer.labelled for answer in answers],
        seconds=seconds,
    )


def _room(chat_format: ChatFormat, wanted: list[str]) -> int:
    """How many tokens a reply may have: half as many again as the longest wanted answer, LONGEST at most."""
    longest = max(len(ids) for ids in chat_format.tokenize(wanted)[0])
    return min(longest + longest // 2 + 8, LONGEST)
