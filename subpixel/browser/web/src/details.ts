// The panels beside the map: values of a pixel, the product, the run.
import { asset, below, layers, read, type Product, type Products, type Run } from "./catalog";
import { BANDS, SCALE, ndvi } from "./colour";
import { link, make, pairs, svg } from "./dom";

export const LAYER_TITLES: Record<string, string> = {
  sr: "super-resolved, 2.5 m",
  s2: "Sentinel-2, 10 m",
  consistency: "Consistency",
  uncertainty: "Uncertainty",
};

export type Values = Record<string, number[] | null>;

/** Values of the layers at a place, in reflectance. */
export function pixelTable(values: Values, place: { metres: [number, number]; epsg: number; lonLat: [number, number] }): HTMLElement {
  const columns = ["s2", "sr", "consistency", "uncertainty"].filter((name) => name in values);
  const heads: Record<string, string> = { s2: "S2", sr: "SR", consistency: "|SR−S2|", uncertainty: "±" };
  const cell = (name: string, band: number) => {
    const found = values[name]?.[band];
    const nothing = found === undefined || (name === "consistency" || name === "uncertainty" ? found === 65535 : found === 0);
    return make("td", {}, nothing ? "–" : (found / SCALE).toFixed(4));
  };
  const index = (name: string) => {
    const found = values[name];
    if (name !== "s2" && name !== "sr") return make("td");
    return make("td", {}, found ? ndvi(found[2], found[3]).toFixed(3) : "–");
  };
  const table = make(
    "table",
    {},
    make("thead", {}, make("tr", {}, make("th", {}, "Reflectance"), ...columns.map((name) => make("th", { scope: "col", title: LAYER_TITLES[name] }, heads[name])))),
    make(
      "tbody",
      {},
      ...BANDS.map((band, number) => make("tr", {}, make("th", { scope: "row" }, band), ...columns.map((name) => cell(name, number)))),
      make("tr", {}, make("th", { scope: "row" }, "NDVI"), ...columns.map(index)),
    ),
  );
  const [longitude, latitude] = place.lonLat;
  const nodata = !values.sr && make("p", { class: "hint" }, "No super-resolved data here: clouded in every frame, or outside.");
  return make(
    "div",
    {},
    make("p", { class: "hint" }, `${latitude.toFixed(6)}, ${longitude.toFixed(6)} · ${place.metres.map((value) => value.toFixed(1)).join(" E, ")} N, EPSG:${place.epsg}`),
    table,
    nodata,
  );
}

export interface Moment {
  time: number;
  sr: number | null;
  s2: number | null;
}

/** NDVI of a pixel through the season: line and points, dashed what Sentinel-2 saw. */
export function seasonChart(moments: Moment[]): SVGElement {
  const [width, height, left, bottom] = [272, 110, 24, 14];
  const values = moments.flatMap(({ sr, s2 }) => [sr, s2]).filter((value): value is number => value !== null);
  const low = Math.min(0, ...values);
  const high = Math.max(0.5, ...values);
  const [first, last] = [moments[0].time, moments[moments.length - 1].time];
  const x = (time: number) => left + ((time - first) / Math.max(1, last - first)) * (width - left - 8);
  const y = (value: number) => 6 + (1 - (value - low) / (high - low)) * (height - bottom - 10);
  const line = (name: "sr" | "s2") =>
    moments
      .filter((moment) => moment[name] !== null)
      .map((moment, index) => `${index ? "L" : "M"}${x(moment.time).toFixed(1)} ${y(moment[name] as number).toFixed(1)}`)
      .join("");
  const chart = svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "NDVI of the pixel through the season" });
  for (const value of [low, (low + high) / 2, high]) {
    chart.append(svg("line", { class: "axis", x1: left, x2: width, y1: y(value), y2: y(value) }), svg("text", { x: 0, y: y(value) + 3 }, value.toFixed(2)));
  }
  chart.append(svg("path", { class: "s2", d: line("s2") }), svg("path", { class: "sr", d: line("sr") }));
  for (const moment of moments) {
    if (moment.sr === null) continue;
    const dot = svg("circle", { class: "dot", cx: x(moment.time), cy: y(moment.sr), r: 2.5 });
    dot.append(svg("title", {}, `${day(moment.time)}: ${moment.sr.toFixed(3)}`));
    chart.append(dot);
  }
  chart.append(svg("text", { x: left, y: height - 2 }, day(first)), svg("text", { x: width - 52, y: height - 2 }, day(last)));
  return chart;
}

function day(time: number): string {
  return new Date(time).toISOString().slice(0, 10);
}

const percent = (share: number) => `${Math.round(share * 1000) / 10} %`;

export function productPanel(run: Run, index: Products, product: Product): HTMLElement {
  const present = layers(product);
  const files = [...present.map((name) => `${name}.tif`), "quicklook.png", "item.json"];
  const panel = make(
    "div",
    {},
    pairs([
      ["Region", product.region],
      ["Acquired", `${product.datetime.slice(0, 16).replace("T", " ")} UTC`],
      ["Frames", `${product.frames}`],
      ["Ground covered", percent(product.valid_share)],
      ["Mean |SR−S2|", product.consistency_mae === null ? "not compared" : product.consistency_mae.toFixed(5)],
    ]),
    ...["s2", "uncertainty"]
      .filter((name) => !present.includes(name))
      .map((name) => make("p", { class: "hint" }, name === "s2" ? "This product has no Sentinel-2 frame beside it: there is nothing to swipe against." : "This product has no uncertainty layer: the model that made it has no such head.")),
    make("h2", {}, "Download"),
    make("div", { class: "links" }, ...files.map((file) => link(asset(run, product, file), file, { download: `${product.id}-${file}` }))),
  );
  const sources = make("details", {}, make("summary", {}, "Sources and processing"));
  sources.addEventListener(
    "toggle",
    async () => {
      try {
        const item = await read<{ links: { rel: string; title?: string; href: string }[] }>(asset(run, product, "item.json"));
        const names = item.links.filter(({ rel }) => rel === "derived_from").map(({ title, href }) => title ?? href);
        const model = Object.entries(index.model).filter(([, value]) => value !== null);
        sources.append(make("ul", {}, ...names.map((name) => make("li", {}, name)), ...model.map(([name, value]) => make("li", {}, `${name.replaceAll("_", " ")}: ${value}`))));
      } catch (error) {
        sources.append(make("p", { class: "hint" }, (error as Error).message));
      }
    },
    { once: true },
  );
  panel.append(sources);
  return panel;
}

interface Metrics {
  evaluation?: { test?: Record<string, unknown> & { n_samples?: number; win_rate_vs_bicubic?: number } };
}

const SCORES: [string, string, number][] = [
  ["psnr", "PSNR, dB", 2],
  ["cpsnr", "cPSNR, dB", 2],
  ["ssim", "SSIM", 4],
  ["mae", "MAE", 5],
];
const ARMS: [string, string][] = [
  ["bicubic", "bicubic"],
  ["temporal_mean", "mean"],
  ["sr", "SR"],
];

/** Scores on held-out test samples where the run was evaluated; says so where it was not. */
function scores(metrics: Metrics): HTMLElement {
  const test = metrics.evaluation?.test as Record<string, Record<string, number>> | undefined;
  const rows = test ? SCORES.filter(([name]) => typeof test[name] === "object") : [];
  if (!test || !rows.length) return make("p", { class: "hint" }, "This run evaluated no model: metrics.json holds no test scores.");
  return make(
    "div",
    {},
    make("p", {}, `${test.n_samples} held-out test samples; better than bicubic on ${percent(Number(test.win_rate_vs_bicubic))}`),
    make(
      "table",
      {},
      make("thead", {}, make("tr", {}, make("th", {}, "Metric"), ...ARMS.map(([, label]) => make("th", { scope: "col" }, label)))),
      make("tbody", {}, ...rows.map(([name, label, digits]) => make("tr", {}, make("th", { scope: "row" }, label), ...ARMS.map(([arm]) => make("td", {}, test[name][arm]?.toFixed(digits) ?? "–"))))),
    ),
  );
}

export function runPanel(run: Run): HTMLElement {
  const panel = make(
    "div",
    {},
    pairs([
      ["Name", run.name],
      ["Products", `${run.products}`],
      ...(run.published ? ([["Published", run.published.slice(0, 16).replace("T", " ")]] as [string, string][]) : []),
    ]),
    run.simulated && make("p", {}, make("span", { class: "tag" }, "simulated data")),
  );
  const links = make("div", { class: "links" });
  if (run.report) links.append(link(below(run, run.report), "Report", { target: "_blank", rel: "noopener" }));
  if (run.metrics) links.append(link(below(run, run.metrics), "metrics.json", { download: `${run.name}-metrics.json` }));
  if (run.products) links.append(link(below(run, "products/collection.json"), "STAC collection", { target: "_blank", rel: "noopener" }));
  panel.append(links);
  if (!run.report) panel.append(make("p", { class: "hint" }, "This run has no report."));
  if (run.metrics) {
    read<Metrics>(below(run, run.metrics)).then(
      (metrics) => panel.append(scores(metrics)),
      (error: Error) => panel.append(make("p", { class: "hint" }, error.message)),
    );
  }
  return panel;
}
