// Reads cloud-optimised GeoTIFFs by range requests, off the page's own thread: blocks are fetched, inflated and kept here,
// and put onto the map's grid.
import { BaseClient, BaseResponse, fromCustomClient, type GeoTIFFImage } from "geotiff";
import { asyncBufferFromUrl, parquetReadObjects } from "hyparquet";
import type { Answer, Method, Question, Stretch, Tile } from "./pixels";

const BLOCKS_KEPT = 48; // of 512 x 512 x 4 x 2 bytes: 100 MB at most
const CUBIC_A = -0.75; // as sr_core.radiometry.resample and torch

interface Level {
  image: GeoTIFFImage;
  width: number;
  height: number;
  gsd: number;
}

interface Raster {
  west: number;
  north: number;
  epsg: number;
  bands: number;
  nodata: number;
  levels: Level[]; // finest first
}

type Planes = Uint16Array[];

/** Says where and what, in words that a person can act on. */
class LoadError extends Error {}

/** The answer to a range: what the server sent of it, or the range of what it sent whole. */
class RangeResponse extends BaseResponse {
  constructor(
    private readonly from: number,
    private readonly data: ArrayBuffer,
    private readonly type: string,
  ) {
    super();
  }
  override get status(): number {
    return 206;
  }
  override getHeader(name: string): string | undefined {
    // a bucket whose CORS rules do not expose Content-Range still answers the range that was asked
    const headers: Record<string, string> = {
      "content-range": `bytes ${this.from}-${this.from + this.data.byteLength - 1}/*`,
      "content-type": this.type,
    };
    return headers[name.toLowerCase()];
  }
  override async getData(): Promise<ArrayBuffer> {
    return this.data;
  }
}

class RangeClient extends BaseClient {
  private whole: Promise<ArrayBuffer> | null = null;

  override async request(options: RequestInit = {}): Promise<RangeResponse> {
    const [first, last] = (new Headers(options.headers).get("range") ?? "bytes=0-").replace("bytes=", "").split("-").map(Number);
    const cut = async (all: Promise<ArrayBuffer>) => new RangeResponse(first, (await all).slice(first, last + 1), "image/tiff");
    if (this.whole) return cut(this.whole);
    let response = await this.fetch(options);
    // a link that has expired is answered 403: the server is asked for another one
    if (response.status === 403) response = await this.fetch({ ...options, cache: "reload" });
    if (!response.ok) throw new LoadError(`${name(this.url)}: ${meaning(response.status)}`);
    if (response.status === 206) return new RangeResponse(first, await response.arrayBuffer(), "image/tiff");
    // a simple server, such as Python's, knows no ranges: the file is read once
    this.whole ??= response.arrayBuffer();
    return cut(this.whole);
  }
  private async fetch(options: RequestInit): Promise<Response> {
    try {
      return await fetch(this.url, options);
    } catch (error) {
      if (options.signal?.aborted) throw error;
      throw new LoadError(
        `${name(this.url)}: not reachable; is the server still running, and does the bucket allow this page (CORS)?`,
      );
    }
  }
}

function name(url: string): string {
  return decodeURIComponent(new URL(url).pathname).split("/").slice(-3).join("/");
}

function meaning(status: number): string {
  if (status === 403) return "denied (403): the link has expired or the bucket does not allow reading it";
  if (status === 404) return "missing (404)";
  return `the server answered ${status}`;
}

const rasters = new Map<string, Promise<Raster>>();

function open(url: string): Promise<Raster> {
  let found = rasters.get(url);
  if (!found) {
    found = read(url);
    found.catch(() => rasters.delete(url));
    rasters.set(url, found);
  }
  return found;
}

async function read(url: string): Promise<Raster> {
  const tiff = await fromCustomClient(new RangeClient(url));
  const first = await tiff.getImage(0);
  const [west, north] = first.getOrigin() as [number, number];
  const gsd = (first.getResolution() as [number])[0];
  const levels: Level[] = [];
  for (let index = 0; index < (await tiff.getImageCount()); index += 1) {
    const image = await tiff.getImage(index);
    // GDAL rounds the size of an overview up: its pixels are twice, four times, ... the first's
    const factor = 2 ** Math.round(Math.log2(first.getWidth() / image.getWidth()));
    levels.push({ image, width: image.getWidth(), height: image.getHeight(), gsd: gsd * factor });
  }
  const keys = first.getGeoKeys() ?? {};
  return {
    west,
    north,
    epsg: Number(keys.ProjectedCSTypeGeoKey ?? keys.GeographicTypeGeoKey ?? 0),
    bands: first.getSamplesPerPixel(),
    nodata: first.getGDALNoData() ?? 0,
    levels,
  };
}

const blocks = new Map<string, Promise<Planes>>();

function block(url: string, raster: Raster, level: number, column: number, row: number): Promise<Planes> {
  const key = `${url} ${level} ${column} ${row}`;
  let found = blocks.get(key);
  if (found) {
    blocks.delete(key); // and again at the end: the least recently used goes first
  } else {
    const { image, width, height } = raster.levels[level];
    const [w, h] = [image.getTileWidth(), image.getTileHeight()];
    const window = [column * w, row * h, Math.min(width, (column + 1) * w), Math.min(height, (row + 1) * h)];
    found = image.readRasters({ window }) as unknown as Promise<Planes>;
    found.catch(() => {
      blocks.delete(key);
      rasters.delete(url);
    });
  }
  blocks.set(key, found);
  if (blocks.size > BLOCKS_KEPT) blocks.delete(blocks.keys().next().value as string);
  return found;
}

/** Planes (height x width) of a window that lies inside the level. */
async function readWindow(url: string, raster: Raster, level: number, left: number, top: number, width: number, height: number): Promise<Planes> {
  const { image, width: columns } = raster.levels[level];
  const [w, h] = [image.getTileWidth(), image.getTileHeight()];
  const planes = Array.from({ length: raster.bands }, () => new Uint16Array(width * height));
  const jobs: Promise<void>[] = [];
  for (let row = Math.floor(top / h); row * h < top + height; row += 1) {
    for (let column = Math.floor(left / w); column * w < left + width; column += 1) {
      jobs.push(
        block(url, raster, level, column, row).then((source) => {
          const stride = Math.min(columns, (column + 1) * w) - column * w;
          const [x0, x1] = [Math.max(left, column * w), Math.min(left + width, column * w + stride)];
          const [y0, y1] = [Math.max(top, row * h), Math.min(top + height, (row + 1) * h)];
          for (let band = 0; band < planes.length; band += 1) {
            for (let y = y0; y < y1; y += 1) {
              const from = (y - row * h) * stride + x0 - column * w;
              planes[band].set(source[band].subarray(from, from + x1 - x0), (y - top) * width + x0 - left);
            }
          }
        }),
      );
    }
  }
  await Promise.all(jobs);
  return planes;
}

interface Axis {
  start: number; // first source pixel that is read
  length: number;
  nearest: Int32Array; // of each output pixel, from `start`; -1 outside
  taps: Int32Array; // four a pixel, clamped to the raster: edges are replicated
  weights: Float32Array;
}

/** How `size` output pixels that begin at `offset` (in source pixels) and are `step` wide lie on `length` source pixels. */
function axis(offset: number, step: number, size: number, length: number): Axis {
  const clamp = (index: number) => Math.min(length - 1, Math.max(0, index));
  const start = clamp(Math.floor(offset) - 2);
  const end = clamp(Math.ceil(offset + size * step) + 2);
  const nearest = new Int32Array(size);
  const taps = new Int32Array(4 * size);
  const weights = new Float32Array(4 * size);
  for (let i = 0; i < size; i += 1) {
    const centre = offset + (i + 0.5) * step; // in source pixels, whose centres are at n + 0.5
    const inside = Math.floor(centre);
    nearest[i] = inside < 0 || inside >= length ? -1 : inside - start;
    const first = Math.floor(centre - 0.5) - 1;
    for (let tap = 0; tap < 4; tap += 1) {
      const d = Math.abs(centre - 0.5 - (first + tap));
      taps[4 * i + tap] = clamp(first + tap) - start;
      weights[4 * i + tap] =
        d <= 1
          ? ((CUBIC_A + 2) * d - (CUBIC_A + 3)) * d * d + 1
          : d < 2
            ? ((CUBIC_A * d - 5 * CUBIC_A) * d + 8 * CUBIC_A) * d - 4 * CUBIC_A
            : 0;
    }
  }
  return { start, length: end - start + 1, nearest, taps, weights };
}

/** The raster on the map's grid: planes of size x size pixels of `resolution` metres from (west, north). */
async function tile(url: string, west: number, north: number, resolution: number, size: number, method: Method): Promise<Tile> {
  const raster = await open(url);
  let level = 0;
  raster.levels.forEach(({ gsd }, index) => {
    if (gsd <= resolution * 1.01 && gsd > raster.levels[level].gsd) level = index;
  });
  const { gsd, width, height } = raster.levels[level];
  const step = resolution / gsd;
  const x = axis((west - raster.west) / gsd, step, size, width);
  const y = axis((raster.north - north) / gsd, step, size, height);
  const source = await readWindow(url, raster, level, x.start, y.start, x.length, y.length);
  const cubic = method === "bicubic" && step < 1;
  const planes = source.map((plane) => (cubic ? bicubic(plane, x, y, raster.nodata) : nearest(plane, x, y, raster.nodata)));
  return { planes, nodata: raster.nodata };
}

function nearest(plane: Uint16Array, x: Axis, y: Axis, nodata: number): Uint16Array {
  const size = x.nearest.length;
  const result = new Uint16Array(size * size).fill(nodata);
  for (let row = 0; row < size; row += 1) {
    if (y.nearest[row] < 0) continue;
    const from = y.nearest[row] * x.length;
    for (let column = 0; column < size; column += 1) {
      if (x.nearest[column] >= 0) result[row * size + column] = plane[from + x.nearest[column]];
    }
  }
  return result;
}

/** Cubic convolution (Keys, 1981). Next to nodata the weights of what is there are scaled up; nodata stays nodata. */
function bicubic(plane: Uint16Array, x: Axis, y: Axis, nodata: number): Uint16Array {
  const size = x.nearest.length;
  const result = nearest(plane, x, y, nodata);
  const whole = !plane.includes(nodata);
  const across = new Float32Array(size * y.length);
  if (whole) {
    for (let row = 0; row < y.length; row += 1) {
      for (let column = 0; column < size; column += 1) {
        let sum = 0;
        for (let tap = 4 * column; tap < 4 * column + 4; tap += 1) sum += x.weights[tap] * plane[row * x.length + x.taps[tap]];
        across[row * size + column] = sum;
      }
    }
  }
  for (let row = 0; row < size; row += 1) {
    for (let column = 0; column < size; column += 1) {
      const index = row * size + column;
      if (result[index] === nodata) continue;
      let sum = 0;
      let weight = 1;
      if (whole) {
        for (let tap = 4 * row; tap < 4 * row + 4; tap += 1) sum += y.weights[tap] * across[y.taps[tap] * size + column];
      } else {
        weight = 0;
        for (let down = 4 * row; down < 4 * row + 4; down += 1) {
          for (let tap = 4 * column; tap < 4 * column + 4; tap += 1) {
            const value = plane[y.taps[down] * x.length + x.taps[tap]];
            if (value === nodata) continue;
            const share = y.weights[down] * x.weights[tap];
            sum += share * value;
            weight += share;
          }
        }
        // hardly anything around it: the pixel as it is
        if (weight < 0.25) continue;
      }
      result[index] = Math.min(65534, Math.max(1, Math.round(sum / weight)));
    }
  }
  return result;
}

/** The values of the pixel at a place, or null outside the raster. */
async function pixel(url: string, x: number, y: number): Promise<number[] | null> {
  const raster = await open(url);
  const { gsd, width, height } = raster.levels[0];
  const [column, row] = [Math.floor((x - raster.west) / gsd), Math.floor((raster.north - y) / gsd)];
  if (column < 0 || row < 0 || column >= width || row >= height) return null;
  const values = (await readWindow(url, raster, 0, column, row, 1, 1)).map((plane) => plane[0]);
  return values.every((value) => value === raster.nodata) ? null : values;
}

/** Percentiles of each band over the coarsest overview. */
async function stretch(url: string, low: number, high: number): Promise<Stretch[]> {
  const raster = await open(url);
  const level = raster.levels.length - 1;
  const { width, height } = raster.levels[level];
  const planes = await readWindow(url, raster, level, 0, 0, width, height);
  return planes.map((plane) => {
    const values = plane.filter((value) => value !== raster.nodata).sort();
    if (!values.length) return { low: 0, high: 1 };
    const at = (share: number) => values[Math.min(values.length - 1, Math.floor(share * values.length))];
    return { low: at(low), high: at(high) };
  });
}

async function polygons(url: string): Promise<unknown> {
  if (!url.endsWith(".parquet")) {
    const response = await fetch(url);
    if (!response.ok) throw new LoadError(`${name(url)}: ${meaning(response.status)}`);
    return { crs: "EPSG:4326", features: (await response.json()).features };
  }
  const head = await fetch(url, { method: "HEAD" });
  if (!head.ok) throw new LoadError(`${name(url)}: ${meaning(head.status)}`);
  const file = await asyncBufferFromUrl({ url, byteLength: Number(head.headers.get("content-length")) || undefined });
  const { parquetMetadataAsync } = await import("hyparquet");
  const metadata = await parquetMetadataAsync(file);
  const geo = JSON.parse(metadata.key_value_metadata?.find(({ key }) => key === "geo")?.value ?? "{}");
  const column = geo.primary_column ?? "geometry";
  const id = geo.columns?.[column]?.crs?.id;
  const rows = await parquetReadObjects({ file, metadata });
  const features = rows.map(({ [column]: geometry, ...properties }) => ({ type: "Feature", geometry, properties }));
  return { crs: id ? `${id.authority}:${id.code}` : "EPSG:4326", features: toJson(features) };
}

/** Numbers of 64 bits become plain ones, so that the answer can be shown and sent. */
function toJson(value: unknown): unknown {
  return JSON.parse(JSON.stringify(value, (_, entry) => (typeof entry === "bigint" ? Number(entry) : entry)));
}

async function answer(question: Question): Promise<unknown> {
  const { url } = question;
  switch (question.kind) {
    case "grid": {
      const { west, north, epsg, levels } = await open(url);
      return { west, north, epsg, gsd: levels[0].gsd, width: levels[0].width, height: levels[0].height };
    }
    case "tile":
      return tile(url, question.west, question.north, question.resolution, question.size, question.method);
    case "pixel":
      return pixel(url, question.x, question.y);
    case "stretch":
      return stretch(url, question.low, question.high);
    case "polygons":
      return polygons(url);
  }
}

self.onmessage = async ({ data: { id, question } }: MessageEvent<{ id: number; question: Question }>) => {
  let reply: Answer;
  try {
    reply = { id, value: await answer(question) };
  } catch (error) {
    const known = error instanceof LoadError || (error instanceof AggregateError && error.errors[0]);
    reply = { id, error: known ? (error as Error).message : `${name(question.url)}: cannot be read: ${(error as Error).message}` };
  }
  const planes = (reply.value as Tile | undefined)?.planes;
  self.postMessage(reply, { transfer: planes ? planes.map((plane) => plane.buffer) : [] });
};
