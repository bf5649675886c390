"""The Chat tab: base and tuned model side by side, one prompt for both."""

import random
from dataclasses import dataclass, field, replace

import gradio as gr

from sft import models
from sft.data import conversations, load_split
from sft.errors import UserError
from sft.tables import read_table
from sft.ui import paint
from sft.ui.inputs import guard_model
from sft.ui.visitors import run_of, runs_of

_QUIET = {"show_progress": "hidden", "api_visibility": "private"}
BASE_ALONE = "base alone: "


@dataclass
class Talk:
    """One visitor's conversation: a history for each pane, since their replies part.

    `asked` is a question whose reply has not begun; it joins the histories together with its reply.
    """

    base: list[dict] = field(default_factory=list)
    tuned: list[dict] = field(default_factory=list)
    prompts: list[list[int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=lambda: ["", ""])
    asked: str = ""


def build(owner_st: gr.State) -> dict:
    """Builds and wires the tab. Returns what the page's load and the Tune tab need."""
    talk_st = gr.State(Talk())
    with gr.Row(equal_height=True):
        run_dd = gr.Dropdown(
            [], label="Who answers", info="A run with an adapter, or a base model alone", scale=2, min_width=260
        )
        system_tb = gr.Textbox(
            label="System message (optional)", info="Sent to both, as in training", lines=1, scale=3, min_width=260
        )
    who_html = gr.HTML(paint.empty("Tune a model first, or choose a base model alone."))
    with gr.Row():
        panes = [_pane("Base model", "base-pane"), _pane("Tuned model", "tuned-pane")]
    with gr.Row():
        notes = [gr.HTML(elem_classes="pane-note"), gr.HTML(elem_classes="pane-note")]
    with gr.Row(equal_height=True):
        prompt_tb = gr.Textbox(
            show_label=False, placeholder="Write to both and press Enter", scale=8, lines=1, max_lines=8,
            elem_id="prompt", container=False,
        )  # fmt: skip
        send_btn = gr.Button("Send", variant="primary", min_width=90, scale=1, elem_id="send")
    with gr.Row():
        try_btn = gr.Button("Try a held-out row", size="sm", elem_id="try-held-out")
        stop_btn = gr.Button("Stop", size="sm", elem_id="stop-replies")
        retry_btn = gr.Button("Retry", size="sm", elem_id="retry")
        clear_btn = gr.Button("Clear", size="sm", elem_id="clear")
    with gr.Accordion("Sampling", open=False), gr.Row():
        temperature_sl = gr.Slider(0, 2, 0, step=0.05, label="Temperature", info="0: always the likeliest token")
        top_p_sl = gr.Slider(0.05, 1, 1, step=0.05, label="Top p", info="only the likeliest tokens up to this share")
        tokens_sl = gr.Slider(8, 512, 96, step=8, label="Max new tokens", info="a reply that has not ended is cut")
        seed_nb = gr.Number(0, label="Seed", precision=0, info="same seed, same reply")
    with gr.Accordion("The exact prompt", open=False):
        gr.Markdown("What each model read before its last reply, as text and as token ids.")
        with gr.Row():
            exact = [gr.HTML(), gr.HTML()]

    sampling = [temperature_sl, top_p_sl, tokens_sl, seed_nb]
    shown = [talk_st, *panes, *notes, *exact]
    asked = [owner_st, run_dd, system_tb, prompt_tb, talk_st, *sampling]

    def send(owner, who, system, prompt, talk, *sampling):
        if not (prompt or "").strip():
            yield (gr.skip(),) * (len(shown) + 1)
            return
        kept = replace(talk, asked=prompt)
        try:
            for values in answer(owner, who, system, prompt, talk, *sampling, kept=kept):
                yield *values, ""
        except Exception:
            yield *(gr.skip() for _ in shown), prompt  # what a person wrote is not lost
            raise

    def retry(owner, who, system, prompt, talk, *sampling):
        if not talk.base:
            yield (gr.skip(),) * len(shown)
            return
        last = max(at for at, message in enumerate(talk.base) if message["role"] == "user")
        question = talk.base[last]["content"]
        earlier = Talk(talk.base[:last], talk.tuned[:last])
        yield from answer(owner, who, system, question, earlier, *sampling, kept=talk)

    def stopped(talk):
        """What is kept after Stop; a question without a reply goes back to where it was written."""
        painted = paint_kept(replace(talk, asked=""))
        return *painted, talk.asked or gr.skip()

    def clear():
        return paint_talk(Talk(), None)

    sending = [
        trigger(
            send, asked, [*shown, prompt_tb], concurrency_limit=8, trigger_mode="once",
            show_progress="hidden", api_visibility="private",
        )
        for trigger in (send_btn.click, prompt_tb.submit)
    ]  # fmt: skip
    sending.append(retry_btn.click(retry, asked, shown, concurrency_limit=8, **_QUIET))
    # First the reply is cancelled, then the panes are painted: in one event, a last token could come after the paint.
    stop_btn.click(None, cancels=sending, **_QUIET).then(stopped, talk_st, [*shown, prompt_tb], **_QUIET)
    clear_btn.click(None, cancels=sending, **_QUIET).then(clear, None, shown, **_QUIET)
    try_btn.click(held_out_prompt, [owner_st, run_dd], prompt_tb, **_QUIET)
    run_dd.change(describe, [owner_st, run_dd], [who_html, *panes], **_QUIET)
    run_dd.change(suggested_system, [owner_st, run_dd], system_tb, **_QUIET)
    run_dd.change(None, cancels=sending, **_QUIET).then(clear, None, shown, **_QUIET)
    return {"run_dd": run_dd}


def _pane(label: str, elem_id: str) -> gr.Chatbot:
    return gr.Chatbot(
        label=label, elem_id=elem_id, height=360, render_markdown=False, sanitize_html=True, allow_tags=True,
        buttons=[], feedback_options=None, layout="bubble", min_width=280,
        placeholder="Replies appear here.",
    )  # fmt: skip


def choices(owner: str) -> list[tuple[str, str]]:
    """The visitor's runs that have an adapter, then the catalogue's models alone."""
    runs = [(run.name, run.name) for run in runs_of(owner) if run.has_result]
    alone = [(f"{BASE_ALONE}{models.title(entry.name)}", f"{BASE_ALONE}{entry.name}") for entry in models.CATALOGUE]
    return [*runs, *alone]


def describe(owner: str, who: str | None):
    """Which model and which adapter each pane shows; the second pane is hidden for a base model alone."""
    if not who:
        return paint.empty("Tune a model first, or choose a base model alone."), gr.update(), gr.update()
    if who.startswith(BASE_ALONE):
        name = who.removeprefix(BASE_ALONE)
        return "", gr.update(label=f"Base: {models.title(name)}, no adapter"), gr.update(visible=False)
    try:
        run = run_of(owner, who)
        model = models.title(run.config().model)
    except UserError as error:
        return paint.problem("This run cannot be used", error.message, error.hint), gr.update(), gr.update()
    tuned = gr.update(label=f"Tuned: the same + adapter of {run.name}", visible=True)
    return "", gr.update(label=f"Base: {model}, adapter off"), tuned


def held_out_prompt(owner: str, who: str | None) -> str:
    """A question from the rows that the run was never trained on."""
    if not who or who.startswith(BASE_ALONE):
        gr.Info("A base model alone has no held-out rows; choose a run.")
        return gr.skip()
    try:
        rows = load_split(run_of(owner, who).config()).held_out
    except UserError as error:
        raise gr.Error(paint.escape(str(error)), title="No held-out rows", print_exception=False) from None
    asked = [m.get("content") for row in rows for m in row.messages[:-1] if m["role"] == "user"]
    questions = [question for question in asked if question]
    return random.choice(questions) if questions else gr.skip()


def suggested_system(owner: str, who: str | None) -> str:
    """The system message that all of a run's rows share, if there is one; without it the tuned model is lost."""
    if not who or who.startswith(BASE_ALONE):
        return ""
    try:
        config = run_of(owner, who).config()
        table = read_table(config.dataset, config.dataset_config, config.train_split)
        found = set()
        for row, _ in zip(conversations(table, config.columns), range(50), strict=False):
            first = row.conversation.messages[0] if row.conversation else {}
            found.add(first.get("content") if first.get("role") == "system" else None)
        return found.pop() or "" if len(found) == 1 else ""
    except UserError:
        return ""  # the data may have gone since; a suggestion is all that is lost


def answer(owner, who, system, prompt, talk: Talk, temperature, top_p, max_new_tokens, seed, kept: Talk | None = None):
    """Streams both replies to `prompt`, asked after `talk`; yields what `shown` shows.

    Until a reply begins the visitor's talk stays `kept` (else `talk`), and so it is again where none comes: a
    question without a reply would be read as part of the next one.
    """
    kept = kept or talk
    question = {"role": "user", "content": prompt}
    asked = Talk([*talk.base, question], [*talk.tuned, question], notes=["loading the model …"] * 2)
    yield kept, *paint_kept(asked)[1:]
    from sft import chat  # takes seconds the first time, so the question is shown before

    try:
        contest = contest_of(owner, who)
        head = [{"role": "system", "content": system}] if (system or "").strip() else []
        histories = [asked.base, asked.tuned][: len(contest.adapters)]
        prompts = [contest.chat_format.prompt_ids([*head, *history]) for history in histories]
        sampling = chat.Sampling(temperature, top_p, int(max_new_tokens), int(seed or 0))
        for replies in chat.stream(contest, prompts, sampling):
            base, tuned = ({"role": "assistant", "content": replies[at].text} for at in (0, -1))
            notes = [_note(reply, sampling.max_new_tokens) for reply in replies]
            yield paint_talk(Talk([*asked.base, base], [*asked.tuned, tuned], prompts, notes), contest)
    except Exception as error:
        yield paint_kept(replace(kept, asked=""))
        if isinstance(error, UserError):
            words = paint.escape(str(error))
            raise gr.Error(words, duration=None, title="No reply", print_exception=False) from None
        raise


def contest_of(owner: str, who: str | None):
    from sft.chat import Contest

    if not who:
        raise UserError("Nobody is chosen to answer.", "Choose a run or a base model under Who answers.")
    if who.startswith(BASE_ALONE):
        name = who.removeprefix(BASE_ALONE)
        guard_model(name)
        return Contest.of_base(name)
    return Contest.of_run(run_of(owner, who))


def _note(reply, max_new_tokens: int) -> str:
    count = f"{len(reply.token_ids)} tokens"
    if reply.stopped:
        return f"{count}, ended by itself"
    return f"{count}, cut at the limit: it did not stop" if len(reply.token_ids) >= max_new_tokens else f"{count} …"


def paint_talk(talk: Talk, contest) -> tuple:
    """What `shown` shows of a talk; without a contest, no exact prompts."""
    exact = ["", ""]
    if contest:
        for at, prompt in enumerate(talk.prompts):
            text = contest.chat_format.tokenizer.decode(prompt)
            ids = " ".join(map(str, prompt))
            exact[at] = f'<div class="text-view">{paint.visible(text)}</div><pre class="ids">{ids}</pre>'
    return *paint_kept(talk)[:-2], *exact


def paint_kept(talk: Talk) -> tuple:
    """The same, with the exact prompts left as they are: those of the last reply."""
    notes = [f"<small>{paint.escape(note)}</small>" for note in (*talk.notes, "")[:2]]
    return talk, _bubbles(talk.base), _bubbles(talk.tuned), *notes, gr.skip(), gr.skip()


def _bubbles(history: list[dict]) -> list[dict]:
    """Content as a typed part: a plain string would be dedented and stripped by the component."""
    return [{"role": message["role"], "content": [{"type": "text", "text": message["content"]}]} for message in history]
