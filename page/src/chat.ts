// The conversation: what was asked and answered, and what may be done with each answer.

import { card, warning } from "./card";
import { at, h } from "./dom";
import type { Exchange, Update } from "./server";
import { percent, t } from "./words";

export class Chat {
  exchanges: Exchange[] = [];
  selected = -1;
  pending = "";
  /** Called when another answer's evidence is to be seen. */
  onSelect: () => void = () => {};
  onAgain: () => void = () => {};
  explains = false;

  get current(): Exchange | null {
    return this.exchanges[this.selected] ?? null;
  }

  /** Take in what the server says; return whether another answer's evidence is to be seen. */
  take(update: Update): void {
    if (update.exchanges !== undefined) this.exchanges.length = Math.min(update.exchanges, this.exchanges.length);
    if (update.exchange) {
      const { number } = update.exchange;
      const blank = { warnings: [], answer: "", evidence: null, routing: null, confidence: null, picture: null };
      this.exchanges[number] = { ...(this.exchanges[number] ?? blank), ...update.exchange } as Exchange;
      this.selected = number;
    }
    this.pending = update.pending;
    this.selected = Math.min(this.selected, this.exchanges.length - 1);
    this.draw();
    this.onSelect();
  }

  draw(): void {
    const log = at("chat");
    const nearEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
    log.replaceChildren(...this.exchanges.flatMap((exchange, place) => this.shown(exchange, place)));
    if (nearEnd || this.pending) log.scrollTop = log.scrollHeight;
    at("card").replaceChildren(
      ...card(this.current, this.explains, this.selected === this.exchanges.length - 1 ? this.pending : ""),
    );
  }

  private shown(exchange: Exchange, place: number): HTMLElement[] {
    const last = place === this.exchanges.length - 1;
    const waiting = last && this.pending !== "";
    const button = (name: string, does: () => void, pressed: boolean | null = null) => {
      const made = h("button", { type: "button", class: "small", "aria-pressed": pressed === null ? null : String(pressed) }, t(name));
      made.addEventListener("click", does);
      return made;
    };
    const confidence = exchange.confidence === null ? "" : t("confidence {0}, not calibrated", percent(exchange.confidence));
    const bot = h(
      "div",
      { class: "bot" },
      h("p", { "data-testid": "bot", class: "said-by-model" }, exchange.answer.trim() || (waiting ? t("Answering …") : t("(empty)"))),
      ...exchange.warnings.map((each) => h("p", { class: "warn" }, warning(each))),
      h(
        "div",
        { class: "row under" },
        h("span", { class: "soft" }, confidence),
        button("Evidence", () => this.select(place), place === this.selected),
        button("Copy", () => void copyText(exchange.answer.trim()).then(() => said(t("Copied.")))),
        last && !waiting ? button("Ask again", this.onAgain) : null,
      ),
    );
    const begun = exchange.answer || waiting || exchange.complete === false;
    return [h("p", { class: "user", "data-testid": "user" }, exchange.question), ...(begun ? [bot] : [])];
  }

  private select(place: number): void {
    this.selected = place;
    this.draw();
    this.onSelect();
  }
}

/** Say something about the picture or the case, or what is wrong with it. */
export function said(text: string, wrong = false): void {
  tell("page-said", text, wrong);
}

export function tell(place: string, text: string, wrong = true): void {
  const line = at(place);
  line.setAttribute("role", text && wrong ? "alert" : "status");
  line.className = text && wrong ? "said warn" : "said soft";
  if (line.textContent !== text) line.textContent = text;
}

export async function copyText(text: string): Promise<void> {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // Without HTTPS a browser has no clipboard interface; the old way still works.
  const box = h("textarea", {});
  box.value = text;
  document.body.append(box);
  box.select();
  document.execCommand("copy");
  box.remove();
}
