// The page's words: English stands in the code, other languages in tables by the English words.
// What the server says goes through the same tables; what they do not know stays English.

import zh from "./zh.json";

const TABLES: Record<string, Record<string, string>> = { en: {}, zh };
const KEPT = "medmoe.language";

let language = "en";

export function chosenLanguage(): string {
  const kept = localStorage.getItem(KEPT);
  if (kept && kept in TABLES) return kept;
  return navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
}

/** Return words in the language of the page; `{0}`, `{1}` … are replaced by the values. */
export function t(words: string, ...values: (string | number)[]): string {
  const found = TABLES[language][words] ?? words;
  return found.replace(/\{(\d)\}/g, (_, place: string) => String(values[Number(place)]));
}

/** Put the page's own words, which are marked in its HTML, into a language. */
export function speak(wanted: string): void {
  language = wanted;
  localStorage.setItem(KEPT, wanted);
  document.documentElement.lang = wanted === "zh" ? "zh-Hans" : wanted;
  for (const each of document.querySelectorAll<HTMLElement>("[data-t]")) {
    each.dataset.t ||= each.textContent!.trim().replace(/\s+/g, " ");
    each.textContent = t(each.dataset.t);
  }
  for (const name of ["aria-label", "title", "placeholder"]) {
    for (const each of document.querySelectorAll<HTMLElement>(`[${name}]`)) {
      const known = (each as any)[`english-${name}`] ?? each.getAttribute(name)!;
      (each as any)[`english-${name}`] = known;
      each.setAttribute(name, t(known));
    }
  }
}

/** Return a probability in whole percent, but never a certainty that rounding made. */
export function percent(value: number): string {
  if (value >= 0.995 && value < 1) return "> 99 %";
  return value > 0 && value < 0.005 ? "< 1 %" : `${Math.round(100 * value)} %`;
}

export const number = (value: number, digits = 3): string => String(Number(value.toPrecision(digits))).replace("-", "−");
