// The catalogue of a site, the products of its runs, and what of them a filter keeps.
export interface Run {
  name: string;
  path: string;
  published: string | null;
  bbox: [number, number, number, number] | null;
  start: string | null;
  end: string | null;
  products: number;
  simulated: boolean;
  attribution: string[];
  report: string | null;
  metrics: string | null;
  polygons: string | null;
}

export interface Product {
  id: string;
  datetime: string;
  bbox: [number, number, number, number];
  attribution: string;
  region: string;
  path: string;
  frames: number;
  valid_share: number;
  consistency_mae: number | null;
  layers?: string[];
}

export interface Products {
  collection: string;
  model: Record<string, string | number | null>;
  simulated: boolean;
  products: Product[];
}

export interface Catalog {
  title: string;
  runs: Run[];
}

const MEANINGS: Record<number, string> = {
  403: "denied (403). A private bucket is opened with `subpixel browse s3://bucket/prefix`; a public one must allow reading.",
  404: "missing (404). A folder becomes a site with `subpixel publish`, or is looked at with `subpixel browse`.",
};

/** Reads JSON below the page. Raises an error in words for people where it is denied, missing or not JSON. */
export async function read<T>(path: string): Promise<T> {
  let response: Response;
  try {
    response = await fetch(path, { cache: "no-cache" });
  } catch {
    throw new Error(`${path}: not reachable. Is the server still running?`);
  }
  if (!response.ok) {
    // `subpixel browse` says what S3 said
    const said = await response.json().then((body) => body.message as string | undefined, () => undefined);
    throw new Error(said ?? `${path}: ${MEANINGS[response.status] ?? `the server answered ${response.status}.`}`);
  }
  try {
    return (await response.json()) as T;
  } catch {
    throw new Error(`${path}: not JSON; expected what Subpixel writes.`);
  }
}

export function below(run: Run, name: string): string {
  const path = run.path ? `${run.path}/${name}` : name;
  return new URL(path.split("/").map(encodeURIComponent).join("/"), document.baseURI).href;
}

export function asset(run: Run, product: Product, file: string): string {
  return below(run, `products/${product.path}/${file}`);
}

/** Layers beside `sr`; indices of earlier versions do not list them, and had none but these. */
export function layers(product: Product): string[] {
  return product.layers ?? ["sr", "consistency"];
}

export interface Filter {
  place: string;
  from: string;
  to: string;
}

export function matches(run: Run, product: Product, filter: Filter): boolean {
  const day = product.datetime.slice(0, 10);
  if ((filter.from && day < filter.from) || (filter.to && day > filter.to)) return false;
  const place = filter.place.trim().toLowerCase();
  const point = /^(-?\d+(?:\.\d+)?)\s*[,; ]\s*(-?\d+(?:\.\d+)?)$/.exec(place);
  if (point) {
    const [latitude, longitude] = [Number(point[1]), Number(point[2])];
    const [west, south, east, north] = product.bbox;
    return west <= longitude && longitude <= east && south <= latitude && latitude <= north;
  }
  return `${run.name} ${product.region}`.toLowerCase().includes(place);
}
