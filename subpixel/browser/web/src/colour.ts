// From reflectance to colours.
import type { Tile } from "./pixels";

export const BANDS = ["blue", "green", "red", "nir"] as const;
export const SCALE = 10000;

export type Combination = "true" | "false" | "ndvi";
export const COMBINATIONS: Record<Combination, { label: string; bands: [number, number, number] | null }> = {
  true: { label: "True colour", bands: [2, 1, 0] },
  false: { label: "False colour", bands: [3, 2, 1] },
  ndvi: { label: "NDVI", bands: null },
};

type Stop = readonly [number, number, number, number, number]; // at, red, green, blue, alpha

export const NDVI_RANGE = [-0.2, 0.9] as const;
export const NDVI_STOPS: Stop[] = [
  [0, 74, 86, 110, 255],
  [0.18, 150, 118, 84, 255],
  [0.36, 222, 205, 160, 255],
  [0.55, 178, 205, 110, 255],
  [0.78, 68, 150, 66, 255],
  [1, 6, 72, 38, 255],
];
// what is small does not hide the image
export const OVERLAY_STOPS: Stop[] = [
  [0, 255, 214, 102, 0],
  [0.25, 255, 190, 90, 120],
  [0.6, 226, 78, 110, 215],
  [1, 96, 20, 130, 255],
];

export function at(stops: Stop[], share: number): [number, number, number, number] {
  const t = Math.min(1, Math.max(0, share));
  const next = stops.findIndex(([place]) => place >= t);
  if (next <= 0) return stops[0].slice(1) as [number, number, number, number];
  const [a, b] = [stops[next - 1], stops[next]];
  const f = (t - a[0]) / (b[0] - a[0]);
  return [1, 2, 3, 4].map((i) => Math.round(a[i] + f * (b[i] - a[i]))) as [number, number, number, number];
}

export function gradient(stops: Stop[]): string {
  return `linear-gradient(to right, ${stops.map(([t, r, g, b, a]) => `rgba(${r},${g},${b},${a / 255}) ${t * 100}%`).join(", ")})`;
}

function table(stops: Stop[]): Uint8ClampedArray {
  const colours = new Uint8ClampedArray(4 * 256);
  for (let i = 0; i < 256; i += 1) colours.set(at(stops, i / 255), 4 * i);
  return colours;
}

const NDVI_TABLE = table(NDVI_STOPS);
const OVERLAY_TABLE = table(OVERLAY_STOPS);

export function ndvi(red: number, nir: number): number {
  return red + nir ? (nir - red) / (nir + red) : 0;
}

/** Pixels to show; `low` and `high` are the reflectances x 10000 that become black and white. Nodata is transparent. */
export function paint({ planes, nodata }: Tile, size: number, combination: Combination, low: number, high: number): HTMLCanvasElement {
  const { bands } = COMBINATIONS[combination];
  return canvas(size, (data) => {
    const [red, nir] = [planes[2], planes[3]];
    const span = Math.max(1, high - low);
    for (let i = 0; i < size * size; i += 1) {
      if (planes[0][i] === nodata) continue;
      if (bands) {
        for (let c = 0; c < 3; c += 1) data[4 * i + c] = ((planes[bands[c]][i] - low) / span) * 255;
        data[4 * i + 3] = 255;
      } else {
        const share = (ndvi(red[i], nir[i]) - NDVI_RANGE[0]) / (NDVI_RANGE[1] - NDVI_RANGE[0]);
        const entry = 4 * Math.min(255, Math.max(0, Math.round(share * 255)));
        for (let c = 0; c < 4; c += 1) data[4 * i + c] = NDVI_TABLE[entry + c];
      }
    }
  });
}

/** A companion's mean over its bands, from transparent at 0 to dark at `high` (reflectance x 10000). */
export function paintOverlay({ planes, nodata }: Tile, size: number, high: number): HTMLCanvasElement {
  return canvas(size, (data) => {
    for (let i = 0; i < size * size; i += 1) {
      let sum = 0;
      let number = 0;
      for (const plane of planes) {
        if (plane[i] === nodata) continue;
        sum += plane[i];
        number += 1;
      }
      if (!number) continue;
      const entry = 4 * Math.min(255, Math.round((sum / number / Math.max(1, high)) * 255));
      for (let c = 0; c < 4; c += 1) data[4 * i + c] = OVERLAY_TABLE[entry + c];
    }
  });
}

function canvas(size: number, fill: (data: Uint8ClampedArray) => void): HTMLCanvasElement {
  const element = document.createElement("canvas");
  element.width = element.height = size;
  const context = element.getContext("2d") as CanvasRenderingContext2D;
  const image = context.createImageData(size, size);
  fill(image.data);
  context.putImageData(image, 0, 0);
  return element;
}
