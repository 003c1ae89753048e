// What the page asks of its server, and what comes back. Nothing here talks to another host, and no
// name of a file is sent.

import { t } from "./words";

export type Plane = "axial" | "coronal" | "sagittal" | null;
export type Pair = [number, number];

export interface Facts {
  format: string;
  modality: string | null;
  view: string | null;
  window: { center: number; width: number; origin: string } | null;
  spacing: Pair | null;
  frame: number;
  frames: number;
  warnings: string[];
}

export interface Told {
  caption: string;
  warnings: string[];
  facts: Facts;
}

export interface Cell {
  x: number;
  y: number;
  width: number;
  height: number;
  colour: string;
  opacity: number;
  rank: number | null;
}

export interface Regions {
  size: Pair;
  cells: Cell[];
}

export interface Routing {
  domain: string;
  domain_probability: number;
  probabilities: Record<string, number>;
  experts: Record<string, Record<string, number>>;
  out_of_domain: { warning: boolean | null; sentence: string };
}

export interface Evidence {
  answer: string;
  confidence: number | null;
  alternatives: { text: string; probability: number }[];
  routing: Routing | null;
  attribution: {
    cells: number[][];
    deletion: { most_important: number; random: number; passed: boolean };
  };
  counterfactuals: {
    change: string;
    answer: string;
    confidence: number;
    original_probability: number;
    differs: boolean;
  }[];
}

export interface Exchange {
  number: number;
  question: string;
  answer: string;
  complete: boolean;
  confidence: number | null;
  routing: Routing | null;
  picture: Facts | null;
  warnings: string[];
  evidence: Evidence | null;
  regions?: Regions;
}

export interface Update {
  notice: string;
  picture_notice: string;
  pending: string;
  handle?: string;
  picture?: Told | Record<string, never>;
  exchanges?: number;
  exchange?: Partial<Exchange> & { number: number };
  question?: string;
  busy?: boolean;
}

export interface About {
  model: string;
  explains: boolean;
  presets: Record<string, Pair>;
  examples: Record<string, [string, string]>;
  drift: { day: string; alarms: [string, string][] } | null; // of the last day, where it has an alarm
}

/** A frame as the viewer shows it: grey in 16 bits before its window, or 8 bits. */
export interface Frame {
  height: number;
  width: number;
  channels: 1 | 3;
  scale: {
    slope: number;
    intercept: number;
    inverted: boolean;
    linear: boolean;
    apart: Pair | null;
  } | null;
  facts: Facts;
  pixels: Uint16Array | Uint8Array;
}

async function reason(reply: Response): Promise<string> {
  if (reply.status === 401) return t("You are signed out: reload the page and sign in again.");
  try {
    return t((await reply.json()).error.message);
  } catch {
    return t("The server refused it ({0}).", reply.status);
  }
}

export async function post(path: string, body: object, signal?: AbortSignal): Promise<Response> {
  const bytes = body instanceof Blob;
  let reply: Response;
  try {
    reply = await fetch(`page/${path}`, {
      method: "POST",
      headers: { "Content-Type": bytes ? "application/octet-stream" : "application/json" },
      body: bytes ? body : JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Error(
      t(bytes ? "The server cannot be reached, or refused a file of this size." : "The server cannot be reached."),
    );
  }
  if (!reply.ok) throw new Error(await reason(reply));
  return reply;
}

export async function about(): Promise<About> {
  const reply = await fetch("page/about");
  if (!reply.ok) throw new Error(await reason(reply));
  return reply.json();
}

/** Yield the lines of a reply, each an object of its own. */
export async function* lines(reply: Response): AsyncGenerator<Update> {
  const pieces = reply.body!.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let piece = await pieces.read(); !piece.done; piece = await pieces.read()) {
    const whole = (rest + piece.value).split("\n");
    rest = whole.pop()!;
    for (const line of whole) yield JSON.parse(line);
  }
}

export async function pixels(handle: string, frame: number | null, plane: Plane): Promise<Frame> {
  const body = await (await post("pixels", { handle, frame, plane })).arrayBuffer();
  const length = new DataView(body).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(body, 4, length)));
  const values = head.scale ? new Uint16Array(body, 4 + length) : new Uint8Array(body, 4 + length);
  return { ...head, pixels: values };
}

/** Of what comes while a call is under way only the last is sent. */
export function latest<A extends unknown[]>(send: (...said: A) => Promise<void>) {
  let waiting: A | null = null;
  let running: Promise<void> | null = null;
  const run = async () => {
    while (waiting) {
      const next: A = waiting;
      waiting = null;
      await send(...next);
    }
    running = null;
  };
  return {
    send(...said: A): void {
      waiting = said;
      running ??= run();
    },
    settled: async (): Promise<void> => {
      await running;
    },
  };
}
