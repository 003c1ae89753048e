// The picture: Cornerstone3D with our own pixels. All windows of Cornerstone are in the values that
// are sent; those of this module's interface in the units of the file.

import {
  cache,
  Enums,
  imageLoader,
  init,
  metaData,
  RenderingEngine,
  setUseCPURendering,
  utilities,
  getRenderingCapabilities,
  type StackViewport,
} from "@cornerstonejs/core";
import {
  addTool,
  AngleTool,
  annotation,
  Enums as ToolEnums,
  init as initTools,
  LengthTool,
  PanTool,
  ToolGroupManager,
  WindowLevelTool,
  ZoomTool,
} from "@cornerstonejs/tools";
import type { Frame, Pair } from "./server";

const ENGINE = "medmoe";
const VIEW = "picture";
const CACHE_BYTES = 256 * 2 ** 20;
const AHEAD = 6; // frames on both sides that are fetched before they are asked for
/** Of the longest side of the picture's square, in drags from black to white. */
const DRAG = 1 / 300;

export type ToolName = "window" | "pan" | "zoom" | "length" | "angle";

export interface Series {
  frames: number;
  frame: number;
  /** Fetches a frame, from 1. */
  fetch(frame: number): Promise<Frame>;
}

/** Window and level in steps of the window itself, so that 8 and 16 bits feel alike. */
class Window extends WindowLevelTool {
  static toolName = "MedmoeWindow";
  _getMultiplierFromDynamicRange(viewport: any): number {
    const { lower, upper } = viewport.getProperties().voiRange;
    return Math.max(upper - lower, 2) * DRAG;
  }
}

const TOOLS: Record<ToolName, any> = {
  window: Window,
  pan: PanTool,
  zoom: ZoomTool,
  length: LengthTool,
  angle: AngleTool,
};
const { MouseBindings } = ToolEnums;
const OTHERWISE = [
  [PanTool, [{ mouseButton: MouseBindings.Auxiliary }, { mouseButton: MouseBindings.Primary, modifierKey: ToolEnums.KeyboardBindings.Ctrl }]],
  [ZoomTool, [{ mouseButton: MouseBindings.Secondary }, { numTouchPoints: 2 }]],
] as const;

export class Viewer {
  /** What the user chose, in the units of the file; null leaves it to the file. */
  window: Pair | null = null;
  flipped = { horizontal: false, vertical: false };
  inverted = false;
  frame = 1;
  tool: ToolName = "window";
  /** Called when another frame or window is shown, and with ``by`` when the user chose it. */
  onLook: (by: "user" | "file") => void = () => {};
  onDrawn: () => void = () => {};
  /** Called where a frame cannot be fetched. */
  onFail: (error: Error) => void = () => {};

  private engine: RenderingEngine;
  private view: StackViewport;
  private group: any;
  private series: Series | null = null;
  private fetched = new Map<string, Frame>(); // the one not asked for longest stands first
  private coming = new Map<string, Promise<Frame>>();
  private target = 1; // the frame that is to be shown
  private stepping = false;
  private number = 0; // of the series, so that no two have an image in common
  private opening = false;
  private own = 0; // windows that this module sets itself are not the user's
  private readonly cpu: boolean;

  constructor(private readonly element: HTMLDivElement) {
    const can = getRenderingCapabilities() as any;
    const wanted = new URLSearchParams(location.search).get("rendering");
    this.cpu = wanted === "cpu" || (wanted !== "webgl" && (!can.webgl || can.softwareRasterizer));
    init({ rendering: { useCPURendering: this.cpu, webGlContextCount: 1 } } as any);
    setUseCPURendering(this.cpu);
    initTools();
    cache.setMaxCacheSize(2 * CACHE_BYTES);
    imageLoader.registerImageLoader("medmoe", (id: string) => ({ promise: this.load(id) as any }));
    metaData.addProvider((kind: string, id: string) => this.facts(kind, id), 1e6);
    this.engine = new RenderingEngine(ENGINE);
    this.engine.enableElement({
      viewportId: VIEW,
      type: Enums.ViewportType.STACK,
      element,
      defaultOptions: { background: [0, 0, 0] },
    });
    this.view = this.engine.getViewport(VIEW) as StackViewport;
    for (const tool of Object.values(TOOLS)) addTool(tool);
    this.group = ToolGroupManager.createToolGroup(VIEW)!;
    for (const tool of Object.values(TOOLS)) this.group.addTool(tool.toolName);
    this.group.addViewport(VIEW, ENGINE);
    this.use("window");
    this.listen();
  }

  /** Show the first frame of a case; what was measured on the last one is gone. */
  async open(series: Series): Promise<void> {
    this.close();
    this.series = series;
    const number = this.number;
    await this.ready(series.frame);
    if (number !== this.number) return;
    this.frame = this.target = series.frame;
    const ids = Array.from({ length: series.frames }, (_, place) => this.id(place + 1));
    this.own += 1;
    this.opening = true;
    try {
      await this.view.setStack(ids, series.frame - 1);
    } finally {
      this.own -= 1;
      this.opening = false;
    }
    this.engine.resize(true, false);
    this.reset();
    void this.ahead();
  }

  /** Forget the picture. */
  close(): void {
    this.series = null;
    this.number += 1;
    this.window = null;
    annotation.state.removeAllAnnotations();
    this.fetched.clear();
    cache.purgeCache();
  }

  get current(): Frame | null {
    return this.fetched.get(this.id(this.frame)) ?? null;
  }

  /** The window that is shown, in the units of the file. */
  get shownWindow(): Pair {
    return this.window ?? (this.current ? ownWindow(this.current) : [128, 256]);
  }

  /** Points on the screen for each pixel of the picture, across. */
  get zoom(): number {
    const corners = this.corners();
    if (!corners) return 0;
    const [left, right] = corners;
    return Math.hypot(right[0] - left[0], right[1] - left[1]) / this.current!.width;
  }

  setWindow(window: Pair | null): void {
    this.window = window;
    this.apply();
    this.onLook("user");
  }

  /** Show a frame; of those that are wanted while one is fetched only the last one is. */
  async show(frame: number): Promise<void> {
    if (!this.series || !Number.isFinite(frame)) return;
    this.target = Math.min(Math.max(1, Math.round(frame)), this.series.frames);
    if (this.stepping) return;
    this.stepping = true;
    const number = this.number;
    try {
      while (this.target !== this.frame && number === this.number) {
        const next = this.target;
        await this.ready(next);
        if (number === this.number) await this.view.setImageIdIndex(next - 1);
      }
    } catch (error) {
      this.target = this.frame;
      if (number === this.number) this.onFail(error as Error);
    }
    this.stepping = false;
    if (number !== this.number) await this.show(this.target);
  }

  step(by: number): void {
    void this.show(this.target + by);
  }

  use(name: ToolName): void {
    this.tool = name;
    for (const tool of Object.values(TOOLS)) this.group.setToolPassive(tool.toolName, { removeAllBindings: true });
    const first = [{ mouseButton: MouseBindings.Primary }, { numTouchPoints: 1 }];
    for (const [tool, bindings] of OTHERWISE) {
      const all = TOOLS[name] === tool ? [...bindings, ...first] : bindings;
      this.group.setToolActive(tool.toolName, { bindings: all });
    }
    if (!OTHERWISE.some(([tool]) => tool === TOOLS[name])) {
      this.group.setToolActive(TOOLS[name].toolName, { bindings: first });
    }
  }

  flip(way: "horizontal" | "vertical"): void {
    this.flipped[way] = !this.flipped[way];
    this.view.setCamera({
      flipHorizontal: this.flipped.horizontal,
      flipVertical: this.flipped.vertical,
    });
    this.view.render();
  }

  invert(): void {
    this.inverted = !this.inverted;
    this.apply();
  }

  magnify(factor: number): void {
    this.view.setZoom(this.view.getZoom() * factor);
    this.view.render();
  }

  move(x: number, y: number): void {
    const [left, top] = this.view.getPan();
    this.view.setPan([left + x, top + y]);
    this.view.render();
  }

  /** Show the picture as it came: its own window, whole, upright, without measurements. */
  reset(): void {
    for (const way of ["horizontal", "vertical"] as const) if (this.flipped[way]) this.flip(way);
    this.inverted = false;
    annotation.state.removeAllAnnotations();
    this.view.resetCamera();
    const chosen = this.window !== null;
    this.window = null;
    this.apply();
    if (chosen) this.onLook("user");
  }

  resize(): void {
    if (!this.series) return;
    this.engine.resize(true, true);
  }

  /** Return where the picture's top left, top right and bottom left lie on the element. */
  corners(): [Pair, Pair, Pair] | null {
    const frame = this.current;
    if (!frame || !this.view.getImageData()) return null;
    const [down, across] = apart(frame);
    const half = this.cpu ? 0 : 0.5; // where a pixel's number lies: at its edge or in its middle
    const point = (x: number, y: number): Pair =>
      this.view.worldToCanvas([(x - half) * across, (y - half) * down, this.frame]) as Pair;
    const found: [Pair, Pair, Pair] = [point(0, 0), point(frame.width, 0), point(0, frame.height)];
    return found.flat().every(Number.isFinite) ? found : null; // nowhere before it is drawn
  }

  private listen(): void {
    const events = Enums.Events;
    this.element.addEventListener(events.STACK_NEW_IMAGE, ((event: CustomEvent) => {
      this.frame = Number(event.detail.imageId.split(":")[2]);
      queueMicrotask(() => this.apply()); // it is told before the picture is taken in
      this.onLook(this.opening ? "file" : "user");
      void this.ahead();
    }) as EventListener);
    this.element.addEventListener(events.VOI_MODIFIED, ((event: CustomEvent) => {
      if (this.own || !this.current) return;
      const { lower, upper } = event.detail.range;
      const { windowCenter, windowWidth } = utilities.windowLevel.toWindowLevel(lower, upper);
      const { slope, intercept } = this.current.scale ?? { slope: 1, intercept: 0 };
      this.window = [rounded(windowCenter * slope + intercept), rounded(windowWidth * slope)];
      this.onLook("user");
    }) as EventListener);
    this.element.addEventListener(events.IMAGE_RENDERED, () => this.onDrawn());
    this.element.addEventListener(
      "wheel",
      (event) => {
        if (event.ctrlKey) return; // the browser's own zoom
        event.preventDefault();
        if (event.deltaY) this.step(Math.sign(event.deltaY));
      },
      { passive: false },
    );
    this.element.addEventListener("contextmenu", (event) => event.preventDefault());
    new ResizeObserver(() => this.resize()).observe(this.element);
  }

  /** Set the window of the frame that is shown, and whether high values are dark. */
  private apply(): void {
    const frame = this.current;
    if (!frame) return;
    const [center, width] = this.window ?? ownWindow(frame);
    const { slope, intercept, inverted } = frame.scale ?? { slope: 1, intercept: 0, inverted: false };
    const voiRange = utilities.windowLevel.toLowHighRange(Math.max(width / slope, 1.001), (center - intercept) / slope);
    this.own += 1;
    this.view.setProperties({ voiRange, invert: inverted !== this.inverted });
    this.own -= 1;
    this.view.render();
  }

  private id(place: number): string {
    return `medmoe:${this.number}:${place}`;
  }

  /** Return a frame, fetched if it is not there; the one not asked for longest makes room. */
  private async ready(place: number): Promise<Frame> {
    const [series, number, id] = [this.series!, this.number, this.id(place)];
    if (!this.fetched.has(id) && !this.coming.has(id)) {
      const coming = series.fetch(place).finally(() => this.coming.delete(id));
      this.coming.set(id, coming);
    }
    const frame = this.fetched.get(id) ?? (await this.coming.get(id)!);
    if (number !== this.number) return frame; // another case is shown by now
    this.fetched.delete(id);
    this.fetched.set(id, frame);
    let bytes = 0;
    for (const [each, { pixels }] of [...this.fetched].reverse()) {
      bytes += pixels.byteLength;
      if (bytes <= CACHE_BYTES || each === id || each === this.id(this.frame)) continue;
      this.fetched.delete(each);
      if (cache.getImageLoadObject(each)) cache.removeImageLoadObject(each);
    }
    return frame;
  }

  private async load(id: string): Promise<unknown> {
    const frame = this.fetched.get(id);
    if (!frame) throw new Error("a frame is fetched before it is shown");
    return imageOf(id, frame);
  }

  private facts(kind: string, id: string): unknown {
    const frame = this.fetched.get(id);
    if (!frame) return undefined;
    const [down, across] = apart(frame);
    const bits = frame.scale ? 16 : 8;
    switch (kind) {
      case "imagePlaneModule":
        return {
          frameOfReferenceUID: `medmoe-${this.number}`,
          rows: frame.height,
          columns: frame.width,
          imageOrientationPatient: [1, 0, 0, 0, 1, 0],
          rowCosines: [1, 0, 0],
          columnCosines: [0, 1, 0],
          imagePositionPatient: [0, 0, Number(id.split(":")[2])],
          rowPixelSpacing: down,
          columnPixelSpacing: across,
          pixelSpacing: [down, across],
          usingDefaultValues: !frame.facts.spacing,
        };
      case "imagePixelModule":
        return {
          bitsAllocated: bits,
          bitsStored: bits,
          highBit: bits - 1,
          samplesPerPixel: frame.channels,
          pixelRepresentation: 0,
          photometricInterpretation: frame.channels === 3 ? "RGB" : "MONOCHROME2",
        };
      case "generalSeriesModule":
        return { modality: "OT" };
      case "voiLutModule": {
        const [center, width] = coded(frame, ownWindow(frame));
        return { windowCenter: [center], windowWidth: [width] };
      }
      default:
        return undefined;
    }
  }

  /** Fetch the frames around the one that is shown, the nearest first, one after the other. */
  private async ahead(): Promise<void> {
    const number = this.number;
    for (let step = 1; step <= AHEAD; step += 1) {
      for (const place of [this.frame + step, this.frame - step]) {
        if (number !== this.number || !this.series) return;
        if (place < 1 || place > this.series.frames) continue;
        await this.ready(place).catch(() => {}); // told when it is asked for
      }
    }
  }
}

/** Return a number as people read and type it: without the digits that nobody sees. */
export const rounded = (value: number): number =>
  Math.abs(value) >= 100 ? Math.round(value) : Number(value.toPrecision(4));

/** Return the millimetres, or only the ratio, between rows and between columns. */
function apart(frame: Frame): Pair {
  return frame.scale?.apart ?? frame.facts.spacing ?? [1, 1];
}

/** Return the window a frame has of itself, in the units of its file. */
export function ownWindow(frame: Frame): Pair {
  const told = frame.facts.window;
  if (told && frame.scale) return [told.center, told.width];
  if (!frame.scale) return [128, 256];
  const { slope, intercept } = frame.scale;
  return [127.5 * slope + intercept, 256 * slope]; // 8 bits, shown as they are stored
}

function coded(frame: Frame, [center, width]: Pair): Pair {
  const { slope, intercept } = frame.scale ?? { slope: 1, intercept: 0 };
  return [(center - intercept) / slope, width / slope];
}

function imageOf(imageId: string, frame: Frame): unknown {
  let low = Infinity;
  let high = -Infinity;
  for (const value of frame.pixels) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  const [down, across] = apart(frame);
  const [center, width] = coded(frame, ownWindow(frame));
  const colour = frame.channels === 3;
  return {
    imageId,
    minPixelValue: colour ? 0 : low,
    maxPixelValue: colour ? 255 : high,
    slope: 1,
    intercept: 0,
    windowCenter: center,
    windowWidth: Math.max(width, 1.001),
    voiLUTFunction: "LINEAR",
    getPixelData: () => frame.pixels,
    rows: frame.height,
    columns: frame.width,
    height: frame.height,
    width: frame.width,
    color: colour,
    rgba: false,
    numberOfComponents: frame.channels,
    rowPixelSpacing: down,
    columnPixelSpacing: across,
    invert: false,
    photometricInterpretation: colour ? "RGB" : "MONOCHROME2",
    sizeInBytes: frame.pixels.byteLength,
    dataType: frame.scale ? "Uint16Array" : "Uint8Array",
    imageFrame: { pixelData: frame.pixels, photometricInterpretation: colour ? "RGB" : "MONOCHROME2" },
  };
}
