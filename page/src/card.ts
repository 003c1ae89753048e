// The evidence card: what is behind an answer. It says what `evidence.html.j2` says in an export.

import { h, s } from "./dom";
import type { Evidence, Exchange, Routing } from "./server";
import { number, percent, t } from "./words";

type Part = HTMLElement | null;

const bar = (share: number): HTMLElement =>
  h(
    "td",
    { class: "bars" },
    s(
      "svg",
      { class: "bar", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
      s("rect", { class: "rail", width: 100, height: 8 }),
      s("rect", { class: "fill", width: 100 * share, height: 8 }),
    ),
  );

const words = (text: string): string => text || t("(empty)");
const sentence = (text: string): string =>
  `${text[0].toUpperCase()}${text.slice(1)}${/[\u4e00-\u9fff]/.test(text) ? "。" : "."}`;

export function card(exchange: Exchange | null, explains: boolean, pending: string): HTMLElement[] {
  if (!exchange) {
    const none = explains
      ? t("What is behind an answer will stand here.")
      : t(
          "How sure the model is of an answer will stand here. This server shows no evidence: neither experts nor regions.",
        );
    return [h("p", { class: "soft" }, none)];
  }
  const { evidence } = exchange;
  const routing = evidence ? evidence.routing : exchange.routing; // has the experts layer by layer
  const parts: Part[] = [
    tiles(exchange, routing),
    exchange.complete || pending ? null : h("p", { class: "warn" }, t("The answer is not complete.")),
    ...exchange.warnings.map((each) => h("p", { class: "warn" }, warning(each))),
    pending ? h("p", { class: "soft busy" }, t(pending)) : null,
    ...(evidence ? behind(exchange, evidence) : []),
    ...(routing ? router(routing) : []),
    evidence && !routing
      ? h("p", { class: "soft" }, t("No router: a dense model, where nothing says whether the picture is of a known domain."))
      : null,
    h(
      "p",
      { class: "soft" },
      t(
        "This describes the model, not the patient: a confident answer with a clear map can be wrong, and a confidence is the model’s own probability of these words, not the share of such answers that are right.",
      ),
    ),
    h(
      "p",
      { class: "soft" },
      t(
        "Left and right in words are the patient’s: in a usual frontal picture or axial slice, the patient’s left is on the viewer’s right.",
      ),
    ),
  ];
  return parts.filter((part): part is HTMLElement => part !== null);
}

/** Warnings that name something, and how they are said. */
const NAMING: [RegExp, string][] = [
  [/^the file says (.+), the router took it for (.+)$/, "the file says {0}, the router took it for {1}"],
  [/^the file says (.+); this model knows only (.+)$/, "the file says {0}; this model knows only {1}"],
];

/** Return a warning in the page's language, as a sentence. */
export function warning(text: string): string {
  for (const [like, words] of NAMING) {
    const found = like.exec(text);
    if (found) return sentence(t(words, found[1], found[2]));
  }
  return sentence(t(text));
}

function tiles(exchange: Exchange, routing: Routing | null): HTMLElement {
  const tile = (name: string, value: string, note?: string) =>
    h("div", {}, h("dt", {}, t(name)), h("dd", {}, value), note ? h("dd", { class: "soft" }, note) : null);
  const confidence = exchange.confidence === null ? "–" : percent(exchange.confidence);
  return h(
    "dl",
    { class: "tiles" },
    tile("Answer", words(exchange.answer)),
    tile("Confidence", confidence, t("not calibrated")),
    routing ? tile("Router’s domain", routing.domain, t("probability {0}", percent(routing.domain_probability))) : null,
  );
}

function table(heads: string[], rows: (string | HTMLElement)[][], left: number[] = [0]): HTMLElement {
  const of = (place: number) => (left.includes(place) ? "left" : null);
  return h(
    "table",
    {},
    h("thead", {}, h("tr", {}, ...heads.map((head, place) => (head ? h("th", { scope: "col", class: of(place) }, head) : h("td"))))),
    h(
      "tbody",
      {},
      ...rows.map((row) =>
        h(
          "tr",
          {},
          ...row.map((cell, place) => {
            if (typeof cell !== "string") return cell;
            return place ? h("td", { class: of(place) }, cell) : h("th", { scope: "row" }, cell);
          }),
        ),
      ),
    ),
  );
}

function router(routing: Routing): Part[] {
  const names = Object.keys(routing.probabilities);
  const sorted = Object.entries(routing.probabilities).sort((one, other) => other[1] - one[1]);
  const check = routing.out_of_domain;
  return [
    h("h3", {}, t("Router")),
    table([t("Domain"), t("Probability"), ""], sorted.map(([name, value]) => [name, percent(value), bar(value)])),
    check.warning ? null : h("p", { class: "soft" }, sentence(check.sentence)),
    ...(Object.keys(routing.experts).length ? experts(routing, names) : []),
  ];
}

function experts(routing: Routing, names: string[]): Part[] {
  const rows = Object.entries(routing.experts).map(([layer, shares]) => [
    layer,
    ...names.map((name) =>
      h("td", { class: `heat${Math.round(4 * shares[name])}` }, String(Math.round(100 * shares[name]))),
    ),
  ]);
  const name = t("Experts by layer");
  return [
    h("h3", {}, t("Experts, % of the image’s tokens by layer")),
    h("div", { class: "wide", tabindex: 0, role: "region", "aria-label": name }, table([t("Layer"), ...names], rows)),
  ];
}

function behind(exchange: Exchange, evidence: Evidence): Part[] {
  const test = evidence.attribution.deletion;
  const drop = t(
    "mean drop of its log-probability {0}, with as many random regions {1}",
    number(test.most_important),
    number(test.random),
  );
  const verdict = test.passed
    ? t("Deletion test passed: greying out the strongest regions costs the answer more than random ones ({0}).", drop)
    : t("Deletion test not passed: do not read the regions as the answer’s reason ({0}).", drop);
  const confidence = evidence.confidence === null ? "" : ` (${percent(evidence.confidence)})`;
  const alone = t(
    "Asked alone, without what was said before, the answer is “{0}”{1}; what follows is about that answer.",
    words(evidence.answer),
    confidence,
  );
  const alternatives = evidence.alternatives.map((each) => [
    words(each.text),
    percent(each.probability),
    bar(each.probability),
  ]);
  const changes = evidence.counterfactuals.map((row) => [
    change(row.change),
    `${words(row.answer)}${row.differs ? " ≠" : ""}`,
    percent(row.confidence),
    percent(row.original_probability),
  ]);
  return [
    evidence.answer === exchange.answer ? null : h("p", { class: "warn" }, alone),
    h("h3", {}, t("Regions")),
    h("p", { class: test.passed ? "soft" : "warn" }, verdict),
    h("h3", {}, t("What would change it")),
    table([t("Change"), t("Answer then"), t("Confidence"), t("First answer")], changes, [0, 1]),
    h(
      "p",
      { class: "soft" },
      t(
        "≠ marks another answer; the last column is how probable the first answer still is. An answer that stays with the image blanked does not rest on the picture.",
      ),
    ),
    alternatives.length ? h("h3", {}, t("Alternatives")) : null,
    alternatives.length ? table([t("Answer"), t("Probability"), ""], alternatives) : null,
  ];
}

function change(text: string): string {
  const forced = /^expert (.*) forced$/.exec(text);
  return forced ? t("expert {0} forced", forced[1]) : t(text);
}
