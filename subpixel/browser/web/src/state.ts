// What is shown, and its form in the address: a link opens the same view.
import { COMBINATIONS, type Combination } from "./colour";
import type { Method } from "./pixels";

export interface View {
  run: string;
  product: string;
  bands: Combination;
  low: number | null; // reflectance; null is automatic
  high: number | null;
  swipe: number; // share of the map's width that shows Sentinel-2
  method: Method;
  overlay: string;
  opacity: number;
  polygons: boolean;
  centre: [number, number] | null; // metres, in the product's zone
  resolution: number | null; // metres a pixel of the screen
  pixel: [number, number] | null;
  place: string;
  from: string;
  to: string;
}

export const START: View = {
  run: "",
  product: "",
  bands: "true",
  low: null,
  high: null,
  swipe: 0.5,
  method: "bicubic",
  overlay: "",
  opacity: 0.8,
  polygons: false,
  centre: null,
  resolution: null,
  pixel: null,
  place: "",
  from: "",
  to: "",
};

/** The view that an address describes; what it does not say, or says wrongly, is as at the start. */
export function parse(hash: string): View {
  const words = new URLSearchParams(hash.replace(/^#/, ""));
  const text = (name: string) => words.get(name) ?? "";
  const number = (name: string, low: number, high: number): number | null => {
    const value = Number(words.get(name) || NaN);
    return Number.isFinite(value) ? Math.min(high, Math.max(low, value)) : null;
  };
  const pair = (name: string): [number, number] | null => {
    const values = text(name).split(",").map(Number);
    return words.has(name) && values.length === 2 && values.every(Number.isFinite) ? [values[0], values[1]] : null;
  };
  const day = (name: string) => (/^\d{4}-\d\d-\d\d$/.test(text(name)) ? text(name) : "");
  const swipe = Number(words.get("swipe") ?? NaN);
  return {
    run: text("run"),
    product: text("product"),
    bands: text("bands") in COMBINATIONS ? (text("bands") as Combination) : START.bands,
    low: number("low", -1, 5),
    high: number("high", -1, 5),
    swipe: Number.isFinite(swipe) ? Math.min(1, Math.max(0, swipe)) : START.swipe,
    method: text("s2") === "nearest" ? "nearest" : "bicubic",
    overlay: text("overlay"),
    opacity: number("opacity", 0, 1) ?? START.opacity,
    polygons: words.has("polygons"),
    centre: pair("at"),
    resolution: number("res", 0.05, 1e5),
    pixel: pair("pixel"),
    place: text("place"),
    from: day("from"),
    to: day("to"),
  };
}

export function format(view: View): string {
  const words = new URLSearchParams();
  const set = (name: string, value: string | number | null, usual: string | number | null) => {
    if (value !== usual && value !== null && value !== "") words.set(name, String(value));
  };
  set("run", view.run, "");
  set("product", view.product, "");
  set("bands", view.bands, START.bands);
  set("low", view.low, null);
  set("high", view.high, null);
  set("swipe", Math.round(view.swipe * 1000) / 1000, START.swipe);
  set("s2", view.method, START.method);
  set("overlay", view.overlay, "");
  set("opacity", view.opacity, START.opacity);
  if (view.polygons) words.set("polygons", "1");
  set("at", view.centre && view.centre.map((value) => value.toFixed(2)).join(","), null);
  set("res", view.resolution && Number(view.resolution.toPrecision(6)), null);
  set("pixel", view.pixel && view.pixel.map((value) => value.toFixed(2)).join(","), null);
  set("place", view.place, "");
  set("from", view.from, "");
  set("to", view.to, "");
  return `#${words}`;
}
