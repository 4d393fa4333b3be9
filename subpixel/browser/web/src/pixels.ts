// The page's side of the worker: questions, answers, and tiles that are kept so that another stretch reads nothing again.
declare const VERSION: string;

export type Method = "bicubic" | "nearest";

export type Question = { url: string } & (
  | { kind: "grid" }
  | { kind: "tile"; west: number; north: number; resolution: number; size: number; method: Method }
  | { kind: "pixel"; x: number; y: number }
  | { kind: "stretch"; low: number; high: number }
  | { kind: "polygons" }
);

export interface Answer {
  id: number;
  value?: unknown;
  error?: string;
}

export interface Tile {
  planes: Uint16Array[];
  nodata: number;
}

export interface Grid {
  west: number;
  north: number;
  epsg: number;
  gsd: number;
  width: number;
  height: number;
}

export interface Stretch {
  low: number;
  high: number;
}

const TILES_KEPT = 60;

export class Pixels {
  private readonly workers: Worker[];
  private readonly waiting = new Map<number, { resolve: (value: unknown) => void; reject: (error: Error) => void }>();
  private readonly tiles = new Map<string, Promise<Tile>>();
  private last = 0;

  constructor() {
    const number = Math.min(4, Math.max(1, (navigator.hardwareConcurrency || 2) - 1));
    this.workers = Array.from({ length: number }, () => {
      const worker = new Worker(`assets/worker.js?v=${VERSION}`, { type: "module" });
      worker.onmessage = ({ data }: MessageEvent<Answer>) => {
        const call = this.waiting.get(data.id);
        this.waiting.delete(data.id);
        if (data.error === undefined) call?.resolve(data.value);
        else call?.reject(new Error(data.error));
      };
      worker.onerror = () => {
        for (const call of this.waiting.values()) call.reject(new Error("assets/worker.js: could not be started"));
        this.waiting.clear();
      };
      return worker;
    });
  }

  grid(url: string): Promise<Grid> {
    return this.ask({ kind: "grid", url }) as Promise<Grid>;
  }

  tile(url: string, west: number, north: number, resolution: number, size: number, method: Method): Promise<Tile> {
    const key = `${url} ${west} ${north} ${resolution} ${method}`;
    let found = this.tiles.get(key);
    if (found) {
      this.tiles.delete(key);
    } else {
      found = this.ask({ kind: "tile", url, west, north, resolution, size, method }) as Promise<Tile>;
      found.catch(() => this.tiles.delete(key));
    }
    this.tiles.set(key, found);
    if (this.tiles.size > TILES_KEPT) this.tiles.delete(this.tiles.keys().next().value as string);
    return found;
  }

  pixel(url: string, x: number, y: number): Promise<number[] | null> {
    return this.ask({ kind: "pixel", url, x, y }) as Promise<number[] | null>;
  }

  stretch(url: string, low: number, high: number): Promise<Stretch[]> {
    return this.ask({ kind: "stretch", url, low, high }) as Promise<Stretch[]>;
  }

  polygons(url: string): Promise<{ crs: string; features: object[] }> {
    return this.ask({ kind: "polygons", url }) as Promise<{ crs: string; features: object[] }>;
  }

  private ask(question: Question): Promise<unknown> {
    this.last += 1;
    const id = this.last;
    // one file, one worker: it has its header and its blocks
    let hash = 0;
    for (const letter of question.url) hash = (hash * 31 + letter.charCodeAt(0)) >>> 0;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject });
      this.workers[hash % this.workers.length].postMessage({ id, question });
    });
  }
}
