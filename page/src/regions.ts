// The regions of an answer over the picture, and the legend that says what their colours mean.

import { at, h, s } from "./dom";
import type { Exchange, Facts, Pair } from "./server";
import type { Viewer } from "./viewer";
import { number, t } from "./words";

const STEPS = [-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1];
/** As in the cells that the server sends: the deepest colour covers six tenths. */
const DEEPEST = 0.6;
const FOR = "#e07b00";
const AGAINST = "#2f8fe6";

/** Return whether two pictures are the same frame in the same plane; their windows may differ. */
export function sameView(one: Facts | null, other: Facts | null): boolean {
  const place = (facts: Facts) => [facts.format, facts.view, facts.frame, facts.frames, facts.spacing].join();
  return one !== null && other !== null && place(one) === place(other);
}

/** Put the regions of an answer into the layer over the picture, in units of the picture itself. */
export function drawRegions(exchange: Exchange | null): void {
  const layer = at("regions-layer");
  layer.replaceChildren();
  if (!exchange?.regions) return;
  const [width, height] = exchange.regions.size;
  const boxes = exchange.regions.cells.map((cell) => ({
    ...cell,
    box: { x: cell.x / width, y: cell.y / height, width: cell.width / width, height: cell.height / height },
  }));
  for (const { box, colour, opacity } of boxes) {
    layer.append(s("rect", { ...box, fill: colour, "fill-opacity": opacity }));
  }
  for (const { box, rank } of boxes) {
    if (!rank) continue;
    for (const [colour, thick] of [["#000", 5], ["#fff", 2]] as const) {
      const frame = { fill: "none", stroke: colour, "stroke-width": thick, "vector-effect": "non-scaling-stroke" };
      layer.append(s("rect", { ...box, ...frame }));
    }
  }
}

/** Lay the regions over the picture as it is drawn now: moved, magnified, flipped. */
export function placeRegions(viewer: Viewer, exchange: Exchange | null): void {
  const marks = at("regions-marks");
  marks.replaceChildren();
  const corners = exchange?.regions ? viewer.corners() : null;
  if (!corners) return;
  const [[x, y], right, below] = corners;
  const across: Pair = [right[0] - x, right[1] - y];
  const down: Pair = [below[0] - x, below[1] - y];
  at("regions-layer").setAttribute("transform", `matrix(${[...across, ...down, x, y].join(" ")})`);
  const [width, height] = exchange!.regions!.size;
  for (const cell of exchange!.regions!.cells) {
    if (!cell.rank) continue;
    const u = (cell.x + cell.width / 2) / width;
    const v = (cell.y + cell.height / 2) / height;
    const place = `translate(${x + u * across[0] + v * down[0]} ${y + u * across[1] + v * down[1]})`;
    marks.append(
      s("g", { transform: place }, s("circle"), s("text", {}, String(cell.rank))),
    );
  }
}

/** Say what the colours mean, in the same colours at the same opacity. */
export function drawLegend(exchange: Exchange | null): void {
  const legend = at("legend");
  legend.replaceChildren();
  if (!exchange?.evidence) return;
  const shares = exchange.evidence.attribution.cells.flat().map(Math.abs);
  const largest = Math.max(...shares);
  const scale = s("svg", { viewBox: "0 0 90 8", class: "scale", "aria-hidden": "true", preserveAspectRatio: "none" });
  scale.append(s("rect", { width: 90, height: 8, fill: "#808080" }));
  const group = s("g", { class: "regions" });
  STEPS.forEach((step, place) => {
    const colour = step < 0 ? AGAINST : FOR;
    group.append(s("rect", { x: 10 * place, width: 10, height: 8, fill: colour, "fill-opacity": DEEPEST * Math.abs(step) }));
  });
  scale.append(group);
  const most = number(largest);
  const { passed } = exchange.evidence.attribution.deletion;
  if (!passed) legend.append(h("p", { class: "warn" }, t("The regions failed their test: do not read them as the answer’s reason.")));
  legend.append(
    h("div", { class: "ends" }, h("span", {}, `−${most} ${t("against")}`), h("span", {}, "0"), h("span", {}, `+${most} ${t("for the answer")}`)),
    scale as unknown as Node,
    h(
      "p",
      { class: "soft" },
      t(
        "Orange: the region speaks for the answer, blue: against it; 1 to 3: the strongest. The scale is a share in the answer’s log-probability: the mean of its fall when the region is greyed out and its rise when the region alone is shown.",
      ),
    ),
  );
}
