"""The page's controls and where they stand, in Gradio, and the action that each starts.

No component of Gradio that takes or gives a file is used: they keep files, and clients' names of
them, in a folder on disk. Pictures come in as bytes (see ``assets/script.js``) and go out as data.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from html import escape
from typing import Any
from weakref import WeakValueDictionary

import gradio as gr
from fastapi import FastAPI
from gradio.state_holder import SessionState, StateHolder
from starlette.routing import Mount

from medmoe.data.intake.display import WINDOW_PRESETS
from medmoe.serving.page.actions import EXAMPLES, PageActions, PageUpdate
from medmoe.serving.page.cases import OpenCase

AS_FILE, OWN = "as the file says", "own"
#: Center and width that the sliders reach for CT, in Hounsfield units.
CT_CENTER, CT_WIDTH = (-1200, 3000), (1, 4000)
#: What a call may carry; what a slider reaches is set when a picture is opened.
_ANY = 2.0**31 - 1

_DROP = """
<div class="drop">
<label for="picture-file"><b>Open a picture</b>: PNG, JPEG, DICOM or NIfTI. Drop it anywhere on
this page, or choose it:</label>
<input type="file" id="picture-file" aria-describedby="picture-note">
<span id="picture-note" class="soft">It is held in memory until you leave; its name is not sent.
</span>
</div>
<p id="page-said" class="said" role="status"></p>
"""
_EXPORTS = """
<div class="exports" role="group" aria-label="This case">
<button type="button" data-export="copy">Copy case</button>
<button type="button" data-export="json">Save JSON</button>
<button type="button" data-export="html">Save HTML</button>
</div>
"""
_NOTHING_YET = '<p class="soft">What is behind an answer will stand here.</p>'
_NO_EVIDENCE = (
    '<p class="soft">How sure the model is of an answer will stand here. This server shows no '
    "evidence: neither experts nor regions.</p>"
)
_NO_PICTURE = (
    '<p class="soft">No picture yet. Without one, questions are answered in words alone.</p>'
)


def theme() -> gr.themes.Base:
    """Return a theme with the fonts of the reader's own system: nothing is fetched."""
    system = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Arial", "sans-serif"]
    mono = ["ui-monospace", "Menlo", "Consolas", "monospace"]
    return gr.themes.Base(
        primary_hue="blue", neutral_hue="slate", font=system, font_mono=mono, text_size="md"
    ).set(  # grey that can be read: 4.5 to 1 at least
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
    )


def _html(content: str = "", elem_id: str | None = None, visible: bool = True) -> gr.Markdown:
    """Return a place for HTML of our own.

    Not `gr.HTML`: its templates are JavaScript made of text, which the content security policy
    forbids. Markdown leaves a block of HTML in one line as it is.
    """
    return gr.Markdown(
        _line(content),
        elem_id=elem_id,
        visible=visible,
        sanitize_html=False,
        latex_delimiters=[],
        padding=False,
    )


def _as_text(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    # The chatbot takes every message for HTML, also without Markdown.
    return [each | {"content": escape(each["content"], quote=False)} for each in messages]


def _card(known: str, explains: bool) -> str:
    # Confidence and warnings are there with any engine; it is no evidence card without evidence.
    title, nothing = ("Evidence", _NOTHING_YET) if explains else ("The answer", _NO_EVIDENCE)
    return f'<section aria-label="{title}"><h2>{title}</h2>{known or nothing}</section>'


def _line(content: str) -> str:
    """Return HTML in one line, which Markdown takes for one block."""
    # Not `str.split`: it would part numbers and their units at the spaces that keep them together.
    line = re.sub(r"[ \t\r\n]+", " ", content)
    return f'<div class="ours">{line}</div>' if line else ""


class _NoSessions(StateHolder):
    """Gives every call of a control a state of its own, and keeps none.

    Gradio's keeps the last value of every control of some 10,000 pages, pictures and questions
    among them, for its deep links, also after a page is closed. Ours are kept by `CaseStore`.
    """

    def __getitem__(self, session_id: str) -> SessionState:
        return SessionState(self.blocks)

    def __contains__(self, session_id: str) -> bool:
        return False


def forget_sessions(app: FastAPI, blocks: gr.Blocks) -> None:
    """Keep the mounted page from holding what was typed and shown."""
    (mounted,) = (
        route.app
        for route in app.routes
        if isinstance(route, Mount) and isinstance(route.app, gr.routes.App)
    )
    mounted.state_holder = _NoSessions()  # type: ignore[no-untyped-call]
    mounted.state_holder.set_blocks(blocks)
    # Gradio forgets a call when it has ended, but not one whose client leaves at that moment.
    blocks._queue.event_ids_to_events = WeakValueDictionary()  # type: ignore[assignment]


class Layout:
    """All controls, and their wiring to the actions of the page."""

    def __init__(self, actions: PageActions, model: str) -> None:
        self._actions = actions
        with gr.Blocks(analytics_enabled=False, title="medmoe", fill_width=True) as self.blocks:
            _html(
                f'<header class="head"><h1>Ask about a medical picture</h1><p class="soft">Model: '
                f"{escape(model)}. Answers can be wrong, also when they sound sure. Type no names "
                "of patients.</p></header>"
            )
            self.handle = gr.Textbox(label="Case", elem_id="case-handle", container=False)
            with gr.Row(equal_height=False):
                with gr.Column(scale=4, min_width=280):
                    self._picture_part()
                with gr.Column(scale=4, min_width=280):
                    self._talk_part()
                with gr.Column(scale=4, min_width=280):
                    self.evidence = _html(_card("", actions.explains), elem_id="evidence")
            self._wire()

    def _picture_part(self) -> None:
        _html(_DROP)
        self.picture_notice = _html(elem_id="picture-said", visible=False)
        with gr.Row():
            self.examples = {
                name: gr.Button(f"Example: {label}", size="sm", min_width=130)
                for name, (label, _) in EXAMPLES.items()
            }
        self.picture = _html(_NO_PICTURE, elem_id="picture")
        with gr.Group(visible=False) as self.view:
            self.preset = gr.Dropdown(
                [AS_FILE, *sorted(WINDOW_PRESETS), OWN],
                value=AS_FILE,
                label="Window",
                filterable=False,
                interactive=True,
            )
            self.center = gr.Slider(-_ANY, _ANY, 0, label="Center", interactive=True, buttons=[])
            self.width = gr.Slider(0, _ANY, 1, label="Width", interactive=True, buttons=[])
        self.frame = gr.Slider(
            1, _ANY, 1, step=1, label="Frame", visible=False, interactive=True, buttons=[]
        )

    def _talk_part(self) -> None:
        self.chat = gr.Chatbot(
            label="Conversation",
            height=380,
            buttons=[],
            feedback_options=None,
            render_markdown=False,
            allow_tags=False,
            latex_delimiters=[],
            group_consecutive_messages=False,
            placeholder="Open a picture and ask; then follow up.",
        )
        self.question = gr.Textbox(
            label="Question",
            placeholder="Is there any nodule?",
            info="Enter sends",
            max_lines=4,
            elem_id="question",
        )
        self.notice = _html(elem_id="said", visible=False)
        with gr.Row():
            self.ask = gr.Button("Ask", variant="primary", elem_id="ask", min_width=100)
            self.stop = gr.Button(
                "Stop", variant="stop", visible=False, elem_id="stop", min_width=100
            )
        self.explain = gr.Checkbox(
            self._actions.explains,
            label="Show regions and alternatives of each answer (takes longer)",
            visible=self._actions.explains,
        )
        _html(_EXPORTS)
        self.with_picture = gr.Checkbox(
            False,
            label="Save with the picture (look for burned-in names first)",
            elem_id="with-picture",
        )

    def _wire(self) -> None:
        plain: dict[str, Any] = {
            "queue": True, "show_progress": "hidden", "api_visibility": "private",
        }  # fmt: skip
        shown = self._outputs()
        asked = gr.on(
            [self.ask.click, self.question.submit],
            self._ask,
            [self.question, self.handle, self.explain],
            shown,
            trigger_mode="once",
            concurrency_limit=None,
            **plain,
        )
        # Whatever shows another case, or none, ends an answer that still comes.
        ends = plain | {"cancels": [asked]}
        self.handle.submit(self._show, [self.handle], shown, **ends)
        for name, button in self.examples.items():
            button.click(self._example_of(name), None, shown, **ends)
        self.stop.click(self._stop, [self.handle], shown, **ends)
        self.chat.clear(self._anew, [self.handle], shown, **ends)
        latest = plain | {"trigger_mode": "always_last"}
        self.preset.input(self._preset, [self.handle, self.preset], shown, **latest)
        for slider in (self.center, self.width):
            slider.input(self._own_window, [self.handle, self.center, self.width], shown, **latest)
        self.frame.input(self._frame, [self.handle, self.frame], shown, **latest)
        self.blocks.unload(self._left)

    def _outputs(self) -> list[Any]:
        return [
            self.notice, self.picture_notice, self.handle, self.picture, self.evidence, self.chat,
            self.question, self.ask, self.stop, self.view, self.preset, self.center, self.width,
            self.frame,
        ]  # fmt: skip

    async def _show(self, handle: str, request: gr.Request) -> dict[Any, Any]:
        case, update = await self._actions.show(handle, request.session_hash)
        return self._updates(update) | self._controls(case)

    def _example_of(self, name: str) -> Any:
        async def opened(request: gr.Request) -> dict[Any, Any]:
            case, update = await self._actions.example(name, request.session_hash)
            return self._updates(update) | self._controls(case)

        return opened

    async def _preset(self, handle: str, preset: str, request: gr.Request) -> dict[Any, Any]:
        window = None if preset == AS_FILE else preset
        case, update = await self._actions.window(handle, window, request.session_hash)
        updates = self._updates(update)
        if case is not None and case.picture is not None and case.picture.facts.window is not None:
            now = case.picture.facts.window
            updates |= {
                self.center: gr.update(value=now.center), self.width: gr.update(value=now.width),
            }  # fmt: skip
        return updates

    async def _own_window(
        self, handle: str, center: float, width: float, request: gr.Request
    ) -> dict[Any, Any]:
        _, update = await self._actions.window(handle, (center, width), request.session_hash)
        return self._updates(update) | {self.preset: gr.update(value=OWN)}

    async def _frame(self, handle: str, frame: float, request: gr.Request) -> dict[Any, Any]:
        return self._updates(await self._actions.frame(handle, int(frame), request.session_hash))

    async def _ask(
        self, question: str, handle: str, explain: bool, request: gr.Request
    ) -> AsyncIterator[dict[Any, Any]]:
        async for update in self._actions.ask(question, handle, explain, request.session_hash):
            yield self._updates(update)

    async def _stop(self, handle: str) -> dict[Any, Any]:
        return self._updates(self._actions.stopped(handle))

    async def _anew(self, handle: str, request: gr.Request) -> dict[Any, Any]:
        return self._updates(await self._actions.anew(handle, request.session_hash))

    async def _left(self, request: gr.Request) -> None:
        self._actions.cases.leave(request.session_hash)

    def _updates(self, update: PageUpdate) -> dict[Any, Any]:
        """Return what changes on the page."""
        updates: dict[Any, Any] = {
            place: gr.update(
                value=_line(f'<p class="warn" role="alert">{escape(line)}</p>'), visible=bool(line)
            )
            for place, line in (
                (self.notice, update.notice),
                (self.picture_notice, update.picture_notice),
            )
        }
        card = None if update.evidence is None else _card(update.evidence, self._actions.explains)
        for part, value in (
            (self.handle, update.handle),
            (self.picture, update.picture if update.picture != "" else _NO_PICTURE),
            (self.evidence, card),
            (self.chat, None if update.messages is None else _as_text(update.messages)),
            (self.question, update.question),
        ):
            if value is not None:
                updates[part] = _line(str(value)) if isinstance(part, gr.Markdown) else value
        if update.busy is not None:
            updates[self.ask] = gr.update(visible=not update.busy)
            updates[self.stop] = gr.update(visible=update.busy)
        return updates

    def _controls(self, case: OpenCase | None) -> dict[Any, Any]:
        """Return the controls of a picture that was just opened: its windows and frames."""
        facts = case.picture.facts if case is not None and case.picture is not None else None
        updates: dict[Any, Any] = {
            self.view: gr.update(visible=False),
            self.frame: gr.update(visible=False, value=facts.frame if facts else 1),
        }
        if facts is None or case is None or case.data is None:
            return updates
        if facts.frames > 1:
            label = f"Frame, 1 to {facts.frames}" if facts.format == "dicom" else (
                f"Slice, 1 to {facts.frames}"
            )  # fmt: skip
            updates[self.frame] = gr.update(
                visible=True, maximum=facts.frames, value=facts.frame, label=label
            )
        if facts.window is None:
            return updates
        ct = facts.modality == "ct"
        presets = sorted(WINDOW_PRESETS) if facts.modality in (None, "ct") else []
        centers, widths = _ranges(facts.window.center, facts.window.width, ct)
        return updates | {
            self.view: gr.update(visible=True),
            self.preset: gr.update(choices=[AS_FILE, *presets, OWN], value=AS_FILE),
            self.center: _slider(centers, facts.window.center),
            self.width: _slider(widths, facts.window.width),
        }


def _ranges(
    center: float, width: float, ct: bool
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return what the sliders reach: all of CT, else around the first window."""
    centers: tuple[float, float] = (center - width, center + width)
    widths: tuple[float, float] = (width / 100, 4 * width)
    if ct:
        centers = (min(CT_CENTER[0], center), max(CT_CENTER[1], center))
        widths = (min(CT_WIDTH[0], width), max(CT_WIDTH[1], width))
    return centers, widths


def _slider(reach: tuple[float, float], value: float) -> dict[str, Any]:
    step = 1.0 if reach[1] - reach[0] >= 200 else (reach[1] - reach[0]) / 200
    return dict(gr.update(minimum=reach[0], maximum=reach[1], value=value, step=step))
