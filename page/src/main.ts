// The page: which control does what. The server knows the case; the page shows it.

import "./style.css";
import { Chat, copyText, said, tell } from "./chat";
import { at, h } from "./dom";
import { drawLegend, drawRegions, placeRegions, sameView } from "./regions";
import { about, latest, lines, pixels, post, type Pair, type Plane, type Told, type Update } from "./server";
import { ownWindow, rounded, type ToolName, Viewer } from "./viewer";
import { chosenLanguage, speak, t } from "./words";

const input = (id: string) => at<HTMLInputElement>(id);
const select = (id: string) => at<HTMLSelectElement>(id);

const facts = await about();
const viewer = new Viewer(at<HTMLDivElement>("viewport"));
const chat = new Chat();
chat.explains = facts.explains;
let handle = ""; // of the case that is shown
let told: Told | null = null; // of its picture, as the model sees it
let plane: Plane = null;
let line: EventSource | null = null; // open as long as the page shows the case
let asked: AbortController | null = null; // aborts the answer that is coming
let opening = 0; // of several pictures that are opened the last one stays

// ---- what comes back ----

function hold(given: string): void {
  if (given === handle) return;
  handle = given;
  line?.close();
  line = given ? new EventSource(`page/line/${given}`) : null;
}

/** Take in what the server says; a picture of another case is fetched and shown. */
async function take(update: Update): Promise<void> {
  tell("said", t(update.notice));
  if (update.picture_notice) said(t(update.picture_notice), true);
  const another = update.handle !== undefined && update.handle !== handle;
  if (update.handle !== undefined) hold(update.handle);
  if (update.exchanges !== undefined || update.exchange) chat.take(update);
  if (update.question !== undefined) at<HTMLTextAreaElement>("question").value = update.question;
  if (update.busy !== undefined) busy(update.busy);
  if (!update.picture) return;
  told = "facts" in update.picture ? (update.picture as Told) : null;
  describe();
  if (another && told) await show(told);
}

function busy(yes: boolean): void {
  at("ask").hidden = yes;
  at("stop").hidden = !yes;
}

/** Fetch and show the picture of the case. */
async function show(of: Told, frame = of.facts.frame): Promise<void> {
  const [mine, wanted] = [handle, plane];
  document.body.classList.add("pictured");
  await viewer.open({
    frames: of.facts.frames,
    frame,
    fetch: (place) => pixels(mine, of.facts.frames > 1 || wanted ? place : null, wanted),
  });
  viewer.use(viewer.tool);
  controls();
}

function describe(): void {
  at("caption").textContent = told ? caption(told) : "";
  at("warnings").replaceChildren(...(told?.warnings ?? []).map((each) => h("li", {}, t(each))));
  evidence();
}

function caption(of: Told): string {
  const linear = viewer.current?.scale?.linear ?? true;
  const bent = linear ? "" : ` ${t("Here the window is drawn as a straight line; the model reads the file’s own curve.")}`;
  return `${t("The model sees")}: ${t(of.caption)}.${bent}`;
}

// ---- the picture's controls ----

const follows = () => told !== null && ["dicom", "nifti"].includes(told.facts.format) && !!viewer.current?.scale;

/** Fit the controls to the picture. */
function controls(): void {
  usable(true);
  const frames = told?.facts.frames ?? 1;
  at("frames").hidden = frames < 2;
  for (const id of ["frame", "frame-number"]) Object.assign(input(id), { min: "1", max: String(frames) });
  at("frame-label").textContent = `${told?.facts.format === "dicom" ? t("Frame") : t("Slice")}, ${t("1 to {0}", frames)}`;
  at("planes").hidden = told?.facts.format !== "nifti";
  const presets = follows() && [null, "ct"].includes(told!.facts.modality) ? Object.keys(facts.presets) : [];
  const names = ["as the file says", ...presets, "own"];
  select("window").replaceChildren(...names.map((name) => new Option(t(name), name)));
  readings();
}

/** Let the tools be used, or not while there is no picture. */
function usable(yes: boolean): void {
  for (const button of document.querySelectorAll<HTMLButtonElement>(".tools button")) button.disabled = !yes;
}

/** Show window, frame and magnification where they are read and set. */
function readings(): void {
  const frame = viewer.current;
  if (!frame) return;
  const [center, width] = viewer.shownWindow;
  const near = (value: number) => String(rounded(value));
  if (document.activeElement !== input("center")) input("center").value = near(center);
  if (document.activeElement !== input("width")) input("width").value = near(width);
  for (const id of ["frame", "frame-number"]) input(id).value = String(viewer.frame);
  const known = Object.entries(facts.presets).find(([, pair]) => String(pair) === String(viewer.window));
  select("window").value = viewer.window === null ? "as the file says" : (known?.[0] ?? "own");
  if (select("window").selectedIndex < 0) select("window").value = "own";
  at("hud-window").textContent = `${t("C")} ${near(center)} · ${t("W")} ${near(width)}`;
  at("hud-frame").textContent = told && told.facts.frames > 1 ? `${viewer.frame} / ${told.facts.frames}` : "";
  at("hud-zoom").textContent = viewer.zoom ? `${Math.round(100 * viewer.zoom)} %` : "";
  const own = ownWindow(frame);
  const unseen = !follows() && viewer.window !== null && String(own) !== String(viewer.window);
  const turned = viewer.inverted || viewer.flipped.horizontal || viewer.flipped.vertical;
  at("view-only").hidden = !(unseen || turned);
  for (const [id, on] of [["invert", viewer.inverted], ["flip-h", viewer.flipped.horizontal], ["flip-v", viewer.flipped.vertical]] as const) {
    at(id).setAttribute("aria-pressed", String(on));
  }
  for (const button of document.querySelectorAll<HTMLElement>("[data-tool]")) {
    button.setAttribute("aria-pressed", String(button.dataset.tool === viewer.tool));
  }
}

/** Show the regions of the chosen answer, if they are of this very view. */
function evidence(): void {
  const chosen = chat.current;
  const seen = told ? { ...told.facts, frame: viewer.frame } : null;
  const fits = chosen?.regions && sameView(chosen.picture, seen);
  const elsewhere = Boolean(chosen?.regions) && !fits;
  at("regions-part").hidden = !fits;
  at("regions-elsewhere").hidden = !elsewhere;
  const drawn = fits ? chosen : null;
  at("regions-label").textContent = t("Show the regions of the answer “{0}”", chosen?.evidence?.answer ?? "");
  drawRegions(drawn);
  drawLegend(drawn);
  placeRegions(viewer, drawn);
  at("regions").toggleAttribute("hidden", !drawn || !input("regions-shown").checked);
}

const look = latest(async (of: string, window: Pair | null, frame: number, at_: Plane) => {
  if (of !== handle || !told) return;
  const many = told.facts.frames > 1 || at_;
  try {
    const said_ = { handle: of, window, frame: many ? frame : null, plane: at_ };
    const update: Update = await (await post("call/look", said_)).json();
    if (of === handle) await take(update);
  } catch (error) {
    said((error as Error).message, true);
  }
});

viewer.onLook = (by) => {
  readings();
  evidence();
  if (by === "user" && follows()) look.send(handle, viewer.window, viewer.frame, plane);
  else if (by === "user" && told && told.facts.frames > 1) look.send(handle, null, viewer.frame, plane);
};
viewer.onFail = (error) => said(error.message, true);
viewer.onDrawn = () => {
  readings();
  const seen = told ? { ...told.facts, frame: viewer.frame } : null;
  placeRegions(viewer, sameView(chat.current?.picture ?? null, seen) ? chat.current : null);
};
chat.onSelect = evidence;
chat.onAgain = () => void ask(true);

// ---- asking ----

/** End an answer that still comes: another case is shown, or none. */
function end(): void {
  asked?.abort();
  asked = null;
  busy(false);
}

async function call(name: string, more: object = {}): Promise<void> {
  try {
    await take(await (await post(`call/${name}`, { handle, ...more })).json());
  } catch (error) {
    said((error as Error).message, true);
  }
}

async function ask(again = false): Promise<void> {
  if (asked) return;
  const mine = (asked = new AbortController());
  busy(true);
  try {
    await look.settled(); // the question is about the picture as it is shown
    const question = again ? "" : at<HTMLTextAreaElement>("question").value;
    const body = { handle, question, explain: input("explain").checked, again };
    for await (const update of lines(await post("ask", body, mine.signal))) {
      if (asked === mine) await take(update);
    }
  } catch (error) {
    if (!mine.signal.aborted) tell("said", (error as Error).message);
  }
  if (asked === mine) end();
}

async function stop(): Promise<void> {
  if (!asked) return;
  end();
  await call("stopped");
}

async function open(files: File[]): Promise<void> {
  if (!files.length) return;
  if (files.length > 1) return said(t("Give one picture at a time."), true);
  const mine = (opening += 1);
  said(t("Reading the picture …"));
  try {
    // A Blob of a file sends its bytes alone: no name, no date, no type.
    const update: Update = await (await post("picture", new Blob([files[0]]))).json();
    if (mine !== opening) return;
    await begin(update);
    said("");
  } catch (error) {
    if (mine === opening) said((error as Error).message, true);
  }
}

async function begin(update: Update): Promise<void> {
  end();
  plane = null;
  select("plane").value = "";
  await take(update);
}

async function example(name: string): Promise<void> {
  const mine = (opening += 1);
  try {
    const update: Update = await (await post("call/example", { handle, example: name })).json();
    if (mine === opening) await begin(update);
    said("");
  } catch (error) {
    said((error as Error).message, true);
  }
}

// ---- a case that is taken along ----

const exported = (format: string) => post("export", { handle, format, picture: input("with-picture").checked });

async function save(format: string): Promise<void> {
  const link = h("a", { download: `case.${format}` });
  link.href = URL.createObjectURL(await (await exported(format)).blob());
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  said(t("Saved as case.{0}.", format));
}

async function copyCase(): Promise<void> {
  await copyText(await (await exported("txt")).text());
  said(t("Copied."));
}

// ---- which control does what ----

function zoomTo(factor: number): void {
  if (viewer.current) viewer.magnify(factor);
}

function preset(place: number): void {
  const names = Object.keys(facts.presets);
  if (names[place] && select("window").options.length > 2) viewer.setWindow(facts.presets[names[place]]);
}

function setTool(name: ToolName): void {
  viewer.use(name);
  readings();
}

function toggleRegions(): void {
  input("regions-shown").checked = !input("regions-shown").checked;
  evidence();
}

const ACTIONS: Record<string, () => void> = {
  invert: () => viewer.invert(),
  "flip-h": () => viewer.flip("horizontal"),
  "flip-v": () => viewer.flip("vertical"),
  "zoom-in": () => zoomTo(1.25),
  "zoom-out": () => zoomTo(0.8),
  reset: () => viewer.reset(),
};
const PICTURE_KEYS: Record<string, () => void> = {
  w: () => setTool("window"),
  p: () => setTool("pan"),
  z: () => setTool("zoom"),
  l: () => setTool("length"),
  a: () => setTool("angle"),
  i: ACTIONS.invert,
  h: ACTIONS["flip-h"],
  v: ACTIONS["flip-v"],
  r: ACTIONS.reset,
  o: toggleRegions,
  "+": ACTIONS["zoom-in"],
  "=": ACTIONS["zoom-in"],
  "-": ACTIONS["zoom-out"],
  PageDown: () => viewer.step(1),
  PageUp: () => viewer.step(-1),
};
const VIEW_KEYS: Record<string, () => void> = {
  ArrowDown: () => viewer.step(1),
  ArrowUp: () => viewer.step(-1),
  ArrowRight: () => viewer.step(1),
  ArrowLeft: () => viewer.step(-1),
  Home: () => void viewer.show(1),
  End: () => void viewer.show(told?.facts.frames ?? 1),
};

function shortcut(event: KeyboardEvent): void {
  if (event.ctrlKey || event.metaKey || event.altKey || at<HTMLDialogElement>("keys").open) return;
  if (event.key === "Escape") return void stop();
  const on = event.target as HTMLElement;
  if (on.closest("input:not([type=checkbox]), textarea, select")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  let does: (() => void) | undefined;
  if (key === "?") does = () => at<HTMLDialogElement>("keys").showModal();
  else if (key === "/") does = () => at("question").focus();
  else if (viewer.current && /^[1-9]$/.test(key)) does = () => preset(Number(key) - 1);
  else if (viewer.current) does = PICTURE_KEYS[key] ?? (on.id === "viewport" ? VIEW_KEYS[key] : undefined);
  if (!does) return;
  event.preventDefault();
  does();
}

function wire(): void {
  document.addEventListener("keydown", shortcut);
  for (const [id, does] of Object.entries(ACTIONS)) {
    at(id).addEventListener("click", () => viewer.current && does());
    at(id).addEventListener("click", readings);
  }
  for (const button of document.querySelectorAll<HTMLElement>("[data-tool]")) {
    button.addEventListener("click", () => setTool(button.dataset.tool as ToolName));
  }
  at("ask").addEventListener("click", () => void ask());
  at("stop").addEventListener("click", () => void stop());
  at("question").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    void ask();
  });
  at("clear").addEventListener("click", () => {
    end();
    void call("anew");
  });
  at("help").addEventListener("click", () => at<HTMLDialogElement>("keys").showModal());
  at("keys-close").addEventListener("click", () => at<HTMLDialogElement>("keys").close());
  for (const button of document.querySelectorAll<HTMLElement>("[data-export]")) {
    const format = button.dataset.export!;
    button.addEventListener("click", () => {
      (format === "copy" ? copyCase() : save(format)).catch((error: Error) => said(error.message, true));
    });
  }
  wireView();
  wireFiles();
}

function wireView(): void {
  select("window").addEventListener("change", ({ target }) => {
    const { value } = target as HTMLSelectElement;
    if (value in facts.presets) viewer.setWindow(facts.presets[value]);
    else viewer.setWindow(value === "own" ? viewer.shownWindow : null);
  });
  for (const id of ["center", "width"]) {
    input(id).addEventListener("change", () => {
      const [center, width] = [Number(input("center").value), Number(input("width").value)];
      if (width > 0 && Number.isFinite(center)) viewer.setWindow([center, width]);
    });
  }
  for (const id of ["frame", "frame-number"]) {
    input(id).addEventListener("input", () => void viewer.show(Number(input(id).value)));
  }
  select("plane").addEventListener("change", async ({ target }) => {
    plane = ((target as HTMLSelectElement).value || null) as Plane;
    const kept = viewer.window;
    try {
      const wanted = { handle, window: kept, frame: null, plane };
      await take(await (await post("call/look", wanted)).json()); // tells how many slices it has
      if (told) await show(told);
      if (kept) viewer.setWindow(kept);
    } catch (error) {
      said((error as Error).message, true);
    }
  });
  input("regions-shown").addEventListener("change", evidence);
  input("opacity").addEventListener("input", opacity);
  at("regions-go").addEventListener("click", () => {
    const seen = chat.current?.picture;
    if (seen) void viewer.show(seen.frame);
  });
}

function opacity(): void {
  const share = String(Number(input("opacity").value) / 100);
  document.documentElement.style.setProperty("--regions", share);
}

function wireFiles(): void {
  const chosen = () => {
    void open([...(input("picture-file").files ?? [])]);
    input("picture-file").value = ""; // the same file may be given again, and its name is not kept
  };
  input("picture-file").addEventListener("change", chosen);
  chosen(); // also before this script had come
  for (const kind of ["dragenter", "dragover"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      document.body.classList.add("dropping");
    });
  }
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    void open([...(event.dataTransfer?.files ?? [])]);
  });
}

function wireLooks(): void {
  const theme = select("theme");
  theme.value = localStorage.getItem("medmoe.theme") ?? "auto";
  const paint = () => {
    document.documentElement.dataset.theme = theme.value;
    localStorage.setItem("medmoe.theme", theme.value);
  };
  theme.addEventListener("change", paint);
  paint();
  const language = select("language");
  language.value = chosenLanguage();
  language.addEventListener("change", () => {
    speak(language.value);
    redraw();
  });
  speak(language.value);
}

/** Say all that was said in the code in the language of the page. */
function redraw(): void {
  at("model").textContent = t("Model: {0}", facts.model);
  at("drift").hidden = !facts.drift;
  if (facts.drift) {
    const what = facts.drift.alarms.map(([domain, quantity]) => `${t(domain)}: ${t(quantity)}`);
    at("drift").textContent = t("Drift watch: on {0} the pictures asked about were unlike the model’s validation pictures ({1}). Answers may be worse than was measured.", facts.drift.day, what.join("; "));
  }
  at("examples").replaceChildren(
    ...Object.entries(facts.examples).map(([name, [label]]) => {
      const button = h("button", { type: "button", "aria-label": t("Example: {0}", t(label)) }, t(label));
      button.addEventListener("click", () => void example(name));
      return button;
    }),
  );
  at("evidence-title").textContent = facts.explains ? t("Evidence") : t("The answer");
  at("explain-part").hidden = !facts.explains;
  if (told) controls();
  describe();
  chat.draw();
}

wireLooks();
input("explain").checked = facts.explains;
wire();
usable(false);
redraw();
opacity();
document.body.dataset.ready = "yes"; // its controls work from here on
