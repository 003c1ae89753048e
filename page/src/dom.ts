// Small helpers to make elements. Text is always text: nothing here reads HTML.

type Child = Node | string | null | undefined | false;

export const at = <T extends Element = HTMLElement>(id: string): T =>
  document.getElementById(id) as unknown as T;

/** Return a new element; attributes that are false or null are left out. */
export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Record<string, string | number | boolean | null> = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const made = document.createElement(tag);
  put(made, attributes, children);
  return made;
}

/** The same in SVG. */
export function s(
  tag: string,
  attributes: Record<string, string | number | boolean | null> = {},
  ...children: Child[]
): SVGElement {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  put(made, attributes, children);
  return made;
}

function put(
  made: Element,
  attributes: Record<string, string | number | boolean | null>,
  children: Child[],
): void {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.filter((child): child is Node | string => Boolean(child)));
}
