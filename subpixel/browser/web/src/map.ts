// The map: Sentinel-2 left of the handle, the super-resolved image and its overlay right of it, polygons above both.
import Feature from "ol/Feature.js";
import OlMap from "ol/Map.js";
import View from "ol/View.js";
import ScaleLine from "ol/control/ScaleLine.js";
import { defaults as controls } from "ol/control/defaults.js";
import type { Extent } from "ol/extent.js";
import { containsCoordinate } from "ol/extent.js";
import GeoJSON from "ol/format/GeoJSON.js";
import Point from "ol/geom/Point.js";
import { fromExtent } from "ol/geom/Polygon.js";
import { defaults as interactions } from "ol/interaction/defaults.js";
import Graticule from "ol/layer/Graticule.js";
import TileLayer from "ol/layer/Tile.js";
import VectorLayer from "ol/layer/Vector.js";
import { get as projection, toLonLat } from "ol/proj.js";
import type Projection from "ol/proj/Projection.js";
import { getRenderPixel } from "ol/render.js";
import type RenderEvent from "ol/render/Event.js";
import ImageTile from "ol/source/ImageTile.js";
import VectorSource from "ol/source/Vector.js";
import { Circle, Fill, Stroke, Style, Text } from "ol/style.js";
import TileGrid from "ol/tilegrid/TileGrid.js";
import type { Grid } from "./pixels";

export const TILE = 512;

export type Paint = (west: number, north: number, resolution: number) => Promise<HTMLCanvasElement>;
export type Side = "s2" | "sr" | "overlay";

const SIDES: Side[] = ["s2", "sr", "overlay"];

class PaintedTiles extends ImageTile {
  /** Tiles of another key are loaded anew; those of the last one are shown until they are there. */
  paintAnew(key: string): void {
    this.setKey(key);
  }
}

export class ProductMap {
  readonly map: OlMap;
  onMove: () => void = () => {};
  onClick: (place: [number, number]) => void = () => {};
  onError: (message: string) => void = () => {};
  onBusy: (busy: boolean) => void = () => {};
  private readonly layers: Record<Side, TileLayer<PaintedTiles>>;
  private readonly paints: Partial<Record<Side, Paint>> = {};
  private readonly polygons = new VectorLayer({ source: new VectorSource(), style: polygonStyle });
  private readonly outline = new VectorLayer({ source: new VectorSource(), style: new Style({ stroke: new Stroke({ color: "#7d8a83", lineDash: [6, 4] }) }) });
  private readonly marker = new VectorLayer({ source: new VectorSource(), style: markerStyle });
  private graticule: Graticule | null = null;
  private grid: Grid | null = null;
  private share = 0.5;

  constructor(target: HTMLElement) {
    const side = () => new TileLayer<PaintedTiles>({ preload: 0 });
    this.layers = { s2: side(), sr: side(), overlay: side() };
    this.map = new OlMap({
      target,
      layers: [this.outline, ...SIDES.map((name) => this.layers[name]), this.polygons, this.marker],
      controls: controls({ rotate: false, attribution: false }).extend([new ScaleLine({ minWidth: 80 })]),
      interactions: interactions({ altShiftDragRotate: false, pinchRotate: false }),
      keyboardEventTarget: target,
    });
    for (const name of SIDES) {
      this.layers[name].on("prerender", (event) => this.clip(event, name === "s2"));
      this.layers[name].on("postrender", (event) => (event.context as CanvasRenderingContext2D).restore());
    }
    this.map.on("moveend", () => this.onMove());
    this.map.on("singleclick", ({ coordinate }) => this.onClick([coordinate[0], coordinate[1]]));
    this.map.on("loadstart", () => this.onBusy(true));
    this.map.on("loadend", () => this.onBusy(false));
  }

  /** The ground of a product. The view stays where it is, unless it shows none of it. */
  setGrid(grid: Grid, centre: [number, number] | null, resolution: number | null): void {
    const before = this.grid;
    this.grid = grid;
    if (before && JSON.stringify(before) === JSON.stringify(grid)) {
      if (centre && resolution) this.moveTo(centre, resolution);
      return;
    }
    const code = `EPSG:${grid.epsg}`;
    const zone = projection(code);
    if (!zone) throw new Error(`${code}: expected a UTM zone, in which products are made`);
    if (!before || before.epsg !== grid.epsg) this.drawGraticule(zone);
    const extent = this.extent();
    const coarsest = Math.max(0, Math.ceil(Math.log2(Math.max(grid.width, grid.height) / TILE)));
    const resolutions = Array.from({ length: coarsest + 1 }, (_, z) => grid.gsd * 2 ** (coarsest - z));
    const tiles = new TileGrid({ extent, origin: [grid.west, grid.north], resolutions, tileSize: TILE });
    for (const name of SIDES) {
      const loader = async (z: number, x: number, y: number) => {
        const resolution = tiles.getResolution(z);
        try {
          return await (this.paints[name] as Paint)(grid.west + x * TILE * resolution, grid.north - y * TILE * resolution, resolution);
        } catch (error) {
          this.onError((error as Error).message);
          throw error;
        }
      };
      const source = new PaintedTiles({ projection: zone, tileGrid: tiles, wrapX: false, interpolate: false, transition: 0, loader });
      // nothing is drawn on new ground before it is known with what
      this.layers[name].setVisible(false);
      this.layers[name].setSource(source);
    }
    const outline = this.outline.getSource() as VectorSource;
    outline.clear();
    outline.addFeature(new Feature(fromExtent(extent)));
    if (!before || before.epsg !== grid.epsg || !this.map.getView().getCenter() || !this.shows(extent)) {
      this.map.setView(
        new View({ projection: zone, center: [(extent[0] + extent[2]) / 2, (extent[1] + extent[3]) / 2], resolution: grid.gsd * 4, minResolution: grid.gsd / 16, maxResolution: Math.max(40, resolutions[0] * 4), enableRotation: false, constrainResolution: false }),
      );
      this.fit();
    }
    if (centre && resolution) this.moveTo(centre, resolution);
  }

  /** What paints the tiles of a side; `key` changes when the picture does. `null`: nothing there. */
  setPaint(side: Side, key: string, paint: Paint | null): void {
    const layer = this.layers[side];
    if (paint) {
      this.paints[side] = paint;
      layer.getSource()?.paintAnew(key);
    }
    layer.setVisible(paint !== null);
  }

  setSwipe(share: number): void {
    this.share = share;
    this.map.render();
  }

  setOpacity(opacity: number): void {
    this.layers.overlay.setOpacity(opacity);
  }

  setPolygons(found: { crs: string; features: object[] } | null): void {
    const source = this.polygons.getSource() as VectorSource;
    source.clear();
    if (!found || !this.grid) return;
    const format = new GeoJSON({ dataProjection: found.crs, featureProjection: `EPSG:${this.grid.epsg}` });
    source.addFeatures(format.readFeatures({ type: "FeatureCollection", features: found.features }) as Feature[]);
  }

  mark(place: [number, number] | null): void {
    const source = this.marker.getSource() as VectorSource;
    source.clear();
    if (place) source.addFeature(new Feature(new Point(place)));
  }

  fit(): void {
    if (this.grid) this.map.getView().fit(this.extent(), { size: this.map.getSize(), padding: [24, 24, 24, 24] });
  }

  centre(): [number, number] | null {
    return (this.map.getView().getCenter() as [number, number] | undefined) ?? null;
  }

  resolution(): number | null {
    return this.map.getView().getResolution() ?? null;
  }

  /** Longitude and latitude, degrees. */
  lonLat(place: [number, number]): [number, number] {
    return toLonLat(place, `EPSG:${(this.grid as Grid).epsg}`) as [number, number];
  }

  epsg(): number | null {
    return this.grid?.epsg ?? null;
  }

  private moveTo(centre: [number, number], resolution: number): void {
    const view = this.map.getView();
    view.setResolution(resolution);
    view.setCenter(centre);
  }

  private extent(): Extent {
    const { west, north, width, height, gsd } = this.grid as Grid;
    return [west, north - height * gsd, west + width * gsd, north];
  }

  private shows(extent: Extent): boolean {
    const centre = this.centre();
    return centre !== null && containsCoordinate(extent, centre);
  }

  /** Each side is drawn on its part of the map only, so that nodata of one does not show the other. */
  private clip(event: RenderEvent, left: boolean): void {
    const context = event.context as CanvasRenderingContext2D;
    const [width, height] = this.map.getSize() as [number, number];
    const split = Math.round(width * this.share);
    const [from, to] = left ? [0, split] : [split, width];
    context.save();
    context.beginPath();
    for (const corner of [[from, 0], [to, 0], [to, height], [from, height]]) {
      const [x, y] = getRenderPixel(event, corner);
      context.lineTo(x, y);
    }
    context.closePath();
    context.clip();
  }

  private drawGraticule(zone: Projection): void {
    if (this.graticule) this.map.removeLayer(this.graticule);
    const number = Number(zone.getCode().slice(-2));
    const south = zone.getCode().startsWith("EPSG:327");
    zone.setWorldExtent([number * 6 - 186, south ? -80 : 0, number * 6 - 180, south ? 0 : 84]);
    zone.setExtent([166021, south ? 1116915 : 0, 833978, south ? 10000000 : 9329005]);
    const text = () => new Text({ font: "10px sans-serif", fill: new Fill({ color: "#7d8a83" }) });
    this.graticule = new Graticule({ showLabels: true, wrapX: false, targetSize: 140, strokeStyle: new Stroke({ color: "#8a968f66", width: 1 }), latLabelStyle: text(), lonLabelStyle: text(), intervals: [1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001] });
    this.map.getLayers().insertAt(0, this.graticule);
  }
}

const polygonStyle = [
  new Style({ stroke: new Stroke({ color: "rgba(0,0,0,0.55)", width: 3.5 }) }),
  new Style({ stroke: new Stroke({ color: "#ffe14d", width: 1.5 }) }),
];
const markerStyle = [
  new Style({ image: new Circle({ radius: 7, stroke: new Stroke({ color: "rgba(0,0,0,0.7)", width: 4 }) }) }),
  new Style({ image: new Circle({ radius: 7, stroke: new Stroke({ color: "#fff", width: 2 }) }) }),
];
