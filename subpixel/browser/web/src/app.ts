// Wires the catalogue, the map and the panels together; the address holds what is shown.
import "ol/ol.css";
import "./style.css";
import { asset, below, layers, matches, read, type Catalog, type Product, type Products, type Run } from "./catalog";
import { COMBINATIONS, NDVI_RANGE, NDVI_STOPS, OVERLAY_STOPS, SCALE, gradient, ndvi, paint, paintOverlay, type Combination } from "./colour";
import { LAYER_TITLES, pixelTable, productPanel, runPanel, seasonChart, type Moment, type Values } from "./details";
import { byId, make } from "./dom";
import { ProductMap, TILE } from "./map";
import { Pixels } from "./pixels";
import { START, format, parse, type View } from "./state";

interface Shown {
  run: Run;
  index: Products;
  product: Product;
}

const OVERLAYS = ["consistency", "uncertainty"];

let view: View = parse(location.hash);
let catalog: Catalog = { title: "", runs: [] };
const indices = new Map<Run, Products>();
let shown: Shown | null = null;
let turn = 0; // answers to what was asked before the last change are dropped
let blinking = false;

const pixels = new Pixels();
const map = new ProductMap(byId("map"));

// ---------------------------------------------------------------------------------------------- what is said to the user

function notice(message: string): void {
  const element = byId("notice");
  element.textContent = message;
  element.hidden = !message;
}

function remember(): void {
  history.replaceState(null, "", format(view));
}

// ---------------------------------------------------------------------------------------------------------- the list

function renderList(): void {
  const list = byId("list");
  list.replaceChildren();
  let total = 0;
  let kept = 0;
  for (const run of catalog.runs) {
    const products = indices.get(run)?.products ?? [];
    const found = products.filter((product) => matches(run, product, view));
    total += products.length;
    kept += found.length;
    const plain = !products.length && run.name.toLowerCase().includes(view.place.trim().toLowerCase());
    if (!found.length && !plain) continue;
    const span = found.length ? `${found.length} of ${products.length} products` : "no products";
    const details = make("details", {}, make("summary", {}, run.name, " ", run.simulated && make("span", { class: "tag" }, "simulated"), make("small", {}, span)));
    details.open = run === shown?.run || catalog.runs.length === 1;
    details.addEventListener("toggle", () => {
      if (details.open && !products.length && shown?.run !== run) byId("run").replaceChildren(runPanel(run));
    });
    for (const region of new Set(found.map((product) => product.region))) {
      const entries = found.filter((product) => product.region === region).sort((a, b) => b.datetime.localeCompare(a.datetime));
      details.append(make("h3", {}, region), make("ul", {}, ...entries.map((product) => make("li", {}, entry(run, product)))));
    }
    list.append(details);
  }
  byId("count").textContent = catalog.runs.length ? (kept === total ? `${total} products in ${catalog.runs.length} runs` : `${kept} of ${total} products`) : "";
  markCurrent();
}

function entry(run: Run, product: Product): HTMLElement {
  const button = make(
    "button",
    { type: "button", "data-run": run.name, "data-product": product.path },
    make("img", { src: asset(run, product, "quicklook.png"), alt: "", loading: "lazy" }),
    make("span", {}, product.datetime.slice(0, 10)),
    make("small", {}, `${Math.round(product.valid_share * 100)} % of the ground`),
  );
  button.addEventListener("click", () => open(run, product));
  return button;
}

function markCurrent(): void {
  for (const button of document.querySelectorAll<HTMLElement>("#list button")) {
    const current = button.dataset.run === shown?.run.name && button.dataset.product === shown?.product.path;
    button.setAttribute("aria-current", String(current));
    if (current) button.scrollIntoView({ block: "nearest" });
  }
}

// ------------------------------------------------------------------------------------------------------- one product

async function open(run: Run, product: Product): Promise<void> {
  const index = indices.get(run) as Products;
  const again = shown?.run === run && shown.product.region === product.region;
  // while a link is being opened its place is taken, later the map stays where it is
  const [centre, resolution] = shown ? [null, null] : [view.centre, view.resolution];
  turn += 1;
  const mine = turn;
  delete document.documentElement.dataset.shown;
  notice("");
  shown = { run, index, product };
  view.run = run.name;
  view.product = product.path;
  markCurrent();
  renderSeason();
  byId("product").replaceChildren(productPanel(run, index, product));
  if (!again || !byId("run").childElementCount) byId("run").replaceChildren(runPanel(run));
  byId("attribution").textContent = product.attribution;
  renderOverlays();
  try {
    const grid = await pixels.grid(asset(run, product, "sr.tif"));
    if (mine !== turn) return;
    map.setGrid(grid, centre, resolution);
    byId("empty").hidden = true;
    await draw();
    if (!again) await drawPolygons();
    if (view.pixel) await readPixel(view.pixel);
  } catch (error) {
    if (mine === turn) notice((error as Error).message);
  }
  if (mine !== turn) return;
  remember();
  document.documentElement.dataset.shown = product.path;
}

/** Black and white of the stretch, reflectance x 10000. */
async function limits(): Promise<[number, number]> {
  if (view.low !== null && view.high !== null) return [view.low * SCALE, view.high * SCALE];
  const { run, product } = shown as Shown;
  const found = await pixels.stretch(asset(run, product, "sr.tif"), 0.02, 0.98);
  const bands = COMBINATIONS[view.bands].bands ?? [2, 3];
  // one pair for the three bands, so that colours keep their balance; rounded to what the address can say
  const round = (value: number) => Math.round(value / 10) * 10;
  return [round(Math.min(...bands.map((band) => found[band].low))), round(Math.max(...bands.map((band) => found[band].high)))];
}

async function draw(): Promise<void> {
  if (!shown) return;
  const { run, product } = shown;
  const mine = turn;
  const present = layers(product);
  const [low, high] = await limits();
  const overlay = view.overlay && present.includes(view.overlay) ? view.overlay : "";
  const overlayUrl = asset(run, product, `${overlay}.tif`);
  const overlayHigh = overlay ? Math.max(1, ...(await pixels.stretch(overlayUrl, 0.02, 0.98)).map((band) => band.high)) : 0;
  if (mine !== turn) return;
  const { bands, method } = view;
  const image = (file: string, how: typeof method) => {
    const url = asset(run, product, file);
    return async (west: number, north: number, resolution: number) =>
      paint(await pixels.tile(url, west, north, resolution, TILE, how), TILE, bands, low, high);
  };
  const style = `${bands} ${low} ${high}`;
  map.setPaint("sr", `${product.path} ${run.name} ${style}`, image("sr.tif", "nearest"));
  map.setPaint("s2", `${product.path} ${run.name} ${style} ${method}`, present.includes("s2") ? image("s2.tif", method) : null);
  map.setPaint(
    "overlay",
    `${product.path} ${run.name} ${overlay}`,
    overlay ? async (west, north, resolution) => paintOverlay(await pixels.tile(overlayUrl, west, north, resolution, TILE, "nearest"), TILE, overlayHigh) : null,
  );
  map.setOpacity(view.opacity);
  byId<HTMLInputElement>("low").value = (low / SCALE).toFixed(3);
  byId<HTMLInputElement>("high").value = (high / SCALE).toFixed(3);
  for (const id of ["low", "high", "auto"]) byId<HTMLInputElement>(id).disabled = bands === "ndvi";
  byId("auto").setAttribute("aria-pressed", String(view.low === null));
  renderLegend(overlay, overlayHigh);
  renderSwipe();
}

function renderLegend(overlay: string, overlayHigh: number): void {
  const legend = byId("legend");
  legend.replaceChildren();
  const add = (title: string, ends: [string, string], background: string) => {
    const ramp = make("div", { class: "ramp" });
    ramp.style.background = background;
    legend.append(make("div", {}, title, ramp, make("span", { class: "ends" }, make("span", {}, ends[0]), make("span", {}, ends[1]))));
  };
  if (view.bands === "ndvi") add("NDVI", [String(NDVI_RANGE[0]), String(NDVI_RANGE[1])], gradient(NDVI_STOPS));
  if (overlay === "consistency") add("|SR seen as Sentinel-2 − Sentinel-2|, mean of bands", ["0", (overlayHigh / SCALE).toFixed(4)], gradient(OVERLAY_STOPS));
  if (overlay === "uncertainty") add("Scale of the error (Laplace), mean of bands", ["0", (overlayHigh / SCALE).toFixed(4)], gradient(OVERLAY_STOPS));
  legend.hidden = !legend.childElementCount;
}

function renderOverlays(): void {
  const select = byId<HTMLSelectElement>("overlay");
  const present = shown ? layers(shown.product) : [];
  select.replaceChildren(
    make("option", { value: "" }, "none"),
    ...OVERLAYS.map((name) => make("option", { value: name, disabled: !present.includes(name) }, present.includes(name) ? LAYER_TITLES[name] : `${LAYER_TITLES[name]} (not in this product)`)),
  );
  select.value = present.includes(view.overlay) ? view.overlay : "";
  byId<HTMLInputElement>("opacity").value = String(view.opacity);
  const box = byId<HTMLInputElement>("polygons");
  box.disabled = !shown?.run.polygons;
  box.checked = view.polygons && !box.disabled;
  byId("polygons-label").title = box.disabled ? "This run has no delineation polygons" : "Field boundaries of the delineation";
}

async function drawPolygons(): Promise<void> {
  const run = shown?.run;
  if (!run?.polygons || !view.polygons) {
    map.setPolygons(null);
    return;
  }
  try {
    const found = await pixels.polygons(below(run, run.polygons));
    if (shown?.run === run && view.polygons) map.setPolygons(found);
  } catch (error) {
    notice((error as Error).message);
  }
}

// -------------------------------------------------------------------------------------------------------- the season

function season(): Product[] {
  if (!shown) return [];
  const { index, product } = shown;
  return index.products.filter(({ region }) => region === product.region).sort((a, b) => a.datetime.localeCompare(b.datetime));
}

function renderSeason(): void {
  const dates = season();
  const slider = byId<HTMLInputElement>("date");
  const current = dates.findIndex(({ path }) => path === shown?.product.path);
  slider.max = String(Math.max(0, dates.length - 1));
  slider.value = String(current);
  slider.disabled = dates.length < 2;
  slider.setAttribute("aria-valuetext", dates[current]?.datetime.slice(0, 10) ?? "");
  byId("when").textContent = dates[current]?.datetime.slice(0, 10) ?? "";
  byId<HTMLButtonElement>("earlier").disabled = current <= 0;
  byId<HTMLButtonElement>("later").disabled = current < 0 || current >= dates.length - 1;
  const ticks = byId("ticks");
  ticks.replaceChildren();
  let free = -1;
  dates.forEach((product, number) => {
    const share = dates.length > 1 ? number / (dates.length - 1) : 0;
    const tick = make("i", number === current ? { class: "now" } : {});
    tick.style.left = `${share * 100}%`;
    ticks.append(tick);
    // a label where there is room for one
    if (share < free || share > 0.93) return;
    const label = make("span", {}, product.datetime.slice(0, 7));
    label.style.left = `${share * 100}%`;
    ticks.append(label);
    free = share + 0.16;
  });
}

function step(by: number): void {
  const dates = season();
  const next = dates[dates.findIndex(({ path }) => path === shown?.product.path) + by];
  if (shown && next) void open(shown.run, next);
}

// --------------------------------------------------------------------------------------------------------- the swipe

function renderSwipe(): void {
  const hasFrame = shown !== null && layers(shown.product).includes("s2");
  const share = !hasFrame ? 0 : blinking ? 1 : view.swipe;
  map.setSwipe(share);
  const handle = byId("handle");
  handle.hidden = !hasFrame || blinking;
  handle.style.left = `${share * 100}%`;
  handle.setAttribute("aria-valuenow", String(Math.round(share * 100)));
  const [left, right] = [byId("left-label"), byId("right-label")];
  left.textContent = view.method === "bicubic" ? "Sentinel-2, bicubic" : "Sentinel-2, 10 m pixels";
  right.textContent = "Super-resolved, 2.5 m";
  left.hidden = !shown || share < 0.02;
  right.hidden = !shown || share > 0.98;
}

function swipeTo(share: number): void {
  view.swipe = Math.min(1, Math.max(0, share));
  renderSwipe();
  remember();
}

// --------------------------------------------------------------------------------------------------------- the pixel

async function readPixel(place: [number, number]): Promise<void> {
  if (!shown) return;
  const { run, product } = shown;
  const mine = turn;
  view.pixel = place;
  map.mark(place);
  remember();
  const names = layers(product);
  try {
    const found = await Promise.all(names.map((name) => pixels.pixel(asset(run, product, `${name}.tif`), ...place)));
    if (mine !== turn || view.pixel !== place) return;
    const values: Values = Object.fromEntries(names.map((name, number) => [name, found[number]]));
    const button = make("button", { type: "button" }, "NDVI through the season");
    button.addEventListener("click", () => void readSeason(place, button));
    byId("pixel").replaceChildren(pixelTable(values, { metres: place, epsg: map.epsg() as number, lonLat: map.lonLat(place) }), make("p", {}, season().length > 1 && button));
  } catch (error) {
    notice((error as Error).message);
  }
}

async function readSeason(place: [number, number], button: HTMLButtonElement): Promise<void> {
  const { run } = shown as Shown;
  button.disabled = true;
  try {
    const moments = await Promise.all(
      season().map(async (product): Promise<Moment> => {
        const at = async (name: string) => {
          const found = layers(product).includes(name) ? await pixels.pixel(asset(run, product, `${name}.tif`), ...place) : null;
          return found ? ndvi(found[2], found[3]) : null;
        };
        const [sr, s2] = await Promise.all([at("sr"), at("s2")]);
        return { time: Date.parse(product.datetime), sr, s2 };
      }),
    );
    if (view.pixel !== place) return;
    button.replaceWith(seasonChart(moments), make("p", { class: "hint" }, "Line: super-resolved. Dashed: Sentinel-2 as it was, clouds included."));
  } catch (error) {
    button.disabled = false;
    notice((error as Error).message);
  }
}

// ------------------------------------------------------------------------------------------------------ the controls

function setBands(bands: Combination): void {
  view.bands = bands;
  for (const button of document.querySelectorAll<HTMLElement>("#bands button")) button.setAttribute("aria-pressed", String(button.dataset.bands === bands));
  void redraw();
}

async function redraw(): Promise<void> {
  remember();
  try {
    await draw();
  } catch (error) {
    notice((error as Error).message);
  }
}

const THEMES = ["auto", "light", "dark"];
let theme = "auto";

function setTheme(name: string): void {
  theme = name;
  const dark = name === "dark" || (name === "auto" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  byId("theme").textContent = `Theme: ${name}`;
  try {
    localStorage.setItem("subpixel-theme", name);
  } catch {
    // a browser that keeps nothing shows the page all the same
  }
}

function connect(): void {
  for (const [name, { label }] of Object.entries(COMBINATIONS)) {
    const button = make("button", { type: "button", "data-bands": name, "aria-pressed": String(view.bands === name) }, label);
    button.addEventListener("click", () => setBands(name as Combination));
    byId("bands").append(button);
  }
  const [low, high] = [byId<HTMLInputElement>("low"), byId<HTMLInputElement>("high")];
  for (const input of [low, high]) {
    input.addEventListener("change", () => {
      if (!(Number(low.value) < Number(high.value))) return;
      [view.low, view.high] = [Number(low.value), Number(high.value)];
      void redraw();
    });
  }
  byId("auto").addEventListener("click", () => {
    const keep = view.low === null ? [Number(low.value), Number(high.value)] : [null, null];
    [view.low, view.high] = keep;
    void redraw();
  });
  const method = byId<HTMLSelectElement>("method");
  method.value = view.method;
  method.addEventListener("change", () => {
    view.method = method.value as View["method"];
    void redraw();
  });
  const overlay = byId<HTMLSelectElement>("overlay");
  overlay.addEventListener("change", () => {
    view.overlay = overlay.value;
    void redraw();
  });
  byId("opacity").addEventListener("input", () => {
    view.opacity = Number(byId<HTMLInputElement>("opacity").value);
    map.setOpacity(view.opacity);
    remember();
  });
  byId("polygons").addEventListener("change", () => {
    view.polygons = byId<HTMLInputElement>("polygons").checked;
    remember();
    void drawPolygons();
  });
  byId("earlier").addEventListener("click", () => step(-1));
  byId("later").addEventListener("click", () => step(1));
  const slider = byId<HTMLInputElement>("date");
  slider.addEventListener("input", () => {
    const product = season()[Number(slider.value)];
    if (shown && product) void open(shown.run, product);
  });
  for (const name of ["place", "from", "to"] as const) {
    const input = byId<HTMLInputElement>(name);
    input.value = view[name];
    input.addEventListener("input", () => {
      view[name] = input.value;
      remember();
      renderList();
    });
  }
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  connectSwipe();
  connectKeys();
  byId("copy").addEventListener("click", () => void copyLink());
  byId("theme").addEventListener("click", () => setTheme(THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length]));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTheme(theme));
  byId("help").addEventListener("click", () => byId<HTMLDialogElement>("keys").showModal());
  map.onMove = () => {
    if (!shown || !map.epsg()) return;
    [view.centre, view.resolution] = [map.centre(), map.resolution()];
    remember();
  };
  map.onClick = (place) => void readPixel(place);
  map.onError = notice;
  map.onBusy = (busy) => {
    byId("busy").hidden = !busy;
    document.documentElement.dataset.busy = String(busy);
  };
  window.addEventListener("hashchange", () => void show(parse(location.hash)));
}

function connectSwipe(): void {
  const handle = byId("handle");
  handle.addEventListener("pointerdown", (event) => {
    handle.setPointerCapture(event.pointerId);
    event.preventDefault();
    handle.focus();
  });
  handle.addEventListener("pointermove", (event) => {
    if (!handle.hasPointerCapture(event.pointerId)) return;
    const { left, width } = byId("frame").getBoundingClientRect();
    swipeTo((event.clientX - left) / width);
  });
  handle.addEventListener("keydown", (event) => {
    const by: Record<string, number> = { ArrowLeft: -0.02, ArrowDown: -0.02, ArrowRight: 0.02, ArrowUp: 0.02, PageDown: -0.1, PageUp: 0.1, Home: -1, End: 1 };
    if (!(event.key in by)) return;
    event.preventDefault();
    event.stopPropagation();
    swipeTo(view.swipe + by[event.key]);
  });
}

function connectKeys(): void {
  const actions: Record<string, () => void> = {
    ",": () => step(-1),
    ".": () => step(1),
    "1": () => setBands("true"),
    "2": () => setBands("false"),
    "3": () => setBands("ndvi"),
    "[": () => swipeTo(view.swipe - 0.05),
    "]": () => swipeTo(view.swipe + 0.05),
    b: () => {
      blinking = true;
      renderSwipe();
    },
    o: () => {
      const choices = ["", ...OVERLAYS.filter((name) => shown && layers(shown.product).includes(name))];
      view.overlay = choices[(choices.indexOf(view.overlay) + 1) % choices.length];
      renderOverlays();
      void redraw();
    },
    p: () => {
      const box = byId<HTMLInputElement>("polygons");
      if (!box.disabled) box.click();
    },
    f: () => map.fit(),
    "/": () => byId("place").focus(),
    "?": () => byId<HTMLDialogElement>("keys").showModal(),
  };
  document.addEventListener("keydown", (event) => {
    const target = event.target as HTMLElement;
    const typing = target.matches("input:not([type=range]):not([type=checkbox]), select, dialog *");
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Enter" && target.id === "map") {
      const centre = map.centre();
      if (centre) void readPixel(centre);
      return;
    }
    const action = actions[event.key];
    if (!action || (event.repeat && event.key === "b")) return;
    event.preventDefault();
    action();
  });
  document.addEventListener("keyup", (event) => {
    if (event.key !== "b" || !blinking) return;
    blinking = false;
    renderSwipe();
  });
}

async function copyLink(): Promise<void> {
  remember();
  const button = byId("copy");
  try {
    await navigator.clipboard.writeText(location.href);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Copy it from the address bar";
  }
  setTimeout(() => {
    button.textContent = "Copy link";
  }, 2000);
}

// ------------------------------------------------------------------------------------------------------------ begin

/** Opens what a view names; says what is not there. */
async function show(wanted: View): Promise<void> {
  view = { ...START, ...wanted };
  for (const name of ["place", "from", "to"] as const) byId<HTMLInputElement>(name).value = view[name];
  byId<HTMLSelectElement>("method").value = view.method;
  shown = null;
  const everything = catalog.runs.flatMap((run) => (indices.get(run)?.products ?? []).map((product) => ({ run, product })));
  const named = everything.find(({ run, product }) => run.name === view.run && product.path === view.product);
  const missing = view.product && !named ? `${view.run || "?"}/${view.product}: not here; the link may be older than what was published.` : "";
  const latest = everything
    .filter(({ run, product }) => (!view.run || run.name === view.run) && matches(run, product, view))
    .sort((a, b) => b.product.datetime.localeCompare(a.product.datetime))[0];
  const chosen = named ?? latest ?? everything[0];
  for (const button of document.querySelectorAll<HTMLElement>("#bands button")) button.setAttribute("aria-pressed", String(button.dataset.bands === view.bands));
  if (chosen) {
    shown = null;
    const opening = open(chosen.run, chosen.product);
    renderList();
    await opening;
  } else {
    renderList();
  }
  if (missing) notice(missing);
}

async function begin(): Promise<void> {
  let stored: string | null = null;
  try {
    stored = localStorage.getItem("subpixel-theme");
  } catch {
    // kept nothing
  }
  setTheme(stored && THEMES.includes(stored) ? stored : "auto");
  connect();
  renderSwipe();
  renderOverlays();
  const empty = byId("empty");
  try {
    catalog = await read<Catalog>("catalog.json");
  } catch (error) {
    notice((error as Error).message);
    empty.textContent = "Nothing can be shown.";
    empty.hidden = false;
    return;
  }
  byId("title").textContent = catalog.title;
  document.title = catalog.title ? `${catalog.title} · Subpixel` : "Subpixel";
  const failures: string[] = [];
  await Promise.all(
    catalog.runs
      .filter((run) => run.products)
      .map(async (run) => {
        try {
          indices.set(run, await read<Products>(`${run.path ? `${run.path}/` : ""}products/products.json`));
        } catch (error) {
          failures.push((error as Error).message);
        }
      }),
  );
  if (!catalog.runs.length) {
    empty.textContent = "Nothing here yet.\nA run appears as soon as it has products or a report:\nsubpixel super-resolve … --publish s3://bucket/prefix, or subpixel publish RUN s3://bucket/prefix";
    empty.hidden = false;
  } else if (!indices.size) {
    empty.textContent = "No run here has products yet.";
    empty.hidden = false;
    byId("run").replaceChildren(runPanel(catalog.runs[0]));
  }
  await show(view);
  if (failures.length) notice(failures.join(" "));
}

void begin();
