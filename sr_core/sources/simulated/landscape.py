"""Farmland as polygons and trees: sectors between roads, blocks between tracks, parcels, villages, woods.

Sectors are the Voronoi cells of a jittered lattice, which is a function of the seed and the world alone. Each is cut
along its own orientation into blocks and parcels, always as a whole, so that a parcel is the same in every patch that
shows a part of it. A gentle warp of the plane then bends roads and boundaries.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from sr_core.sources.simulated.noise import Numbers, draws

Point = tuple[float, float]
Bounds = tuple[float, float, float, float]
SECTOR_M = 1300.0
"""Spacing of the lattice of sectors."""
HECTARE = 10_000.0
PARCEL_HA = (0.1, 10.0)
NARROWEST_M = 8.0
WARP_M = 20.0
REACH_M = 120.0
"""What lies further outside the bounds can neither reach in (by the warp) nor throw a shadow in."""
VERGES = {"road": 6.0, "street": 3.5, "track": 2.6, "stream": 7.0, "hedge": 3.0, "margin": 1.4, "touching": 0.0}
"""What runs along an edge, and how far inside that edge the parcel begins, metres."""
HALF_WIDTHS = {"road": 3.2, "street": 2.4, "track": 1.5, "stream": 2.6}
CROP_SHARES = {
    "winter wheat": 0.26,
    "winter barley": 0.10,
    "rapeseed": 0.11,
    "spring barley": 0.06,
    "maize": 0.17,
    "sugar beet": 0.06,
    "potato": 0.04,
    "grassland": 0.16,
    "orchard": 0.02,
    "fallow": 0.02,
}


@dataclass(frozen=True)
class Face:
    """A polygon of one surface. `ring` (n, 2) holds world x, y in metres, not closed."""

    id: str
    surface: str
    ring: Numbers = field(repr=False)
    axis: float = 0.0
    """Direction of the rows of a field, or that a roof looks to; radians from east, anticlockwise."""
    height: float = 0.0

    @property
    def key(self) -> int:
        """Number that all that is random about the face is drawn from."""
        return int.from_bytes(blake2b(self.id.encode(), digest_size=7).digest(), "little")

    @property
    def is_parcel(self) -> bool:
        return self.surface in CROP_SHARES


@dataclass(frozen=True)
class Landscape:
    """Faces in painting order, and trees (n, 5): x, y, radius, height in metres, and 1 for conifers."""

    faces: tuple[Face, ...]
    trees: NDArray[np.float64]

    @property
    def parcels(self) -> list[Face]:
        return [face for face in self.faces if face.is_parcel]


@dataclass(frozen=True)
class Shape:
    """A convex polygon, anticlockwise; `edges[k]` says what runs along the edge from vertex k to the next."""

    ring: tuple[Point, ...]
    edges: tuple[str, ...]

    @property
    def area(self) -> float:
        return 0.5 * sum(a[0] * b[1] - b[0] * a[1] for a, b in self.sides())

    @property
    def centre(self) -> Point:
        n = len(self.ring)
        return sum(x for x, _ in self.ring) / n, sum(y for _, y in self.ring) / n

    def sides(self) -> list[tuple[Point, Point]]:
        origin = self.ring[0] if self.ring else (0.0, 0.0)
        local = [(x - origin[0], y - origin[1]) for x, y in self.ring]
        return list(zip(local, local[1:] + local[:1], strict=True))

    def extent(self, angle: float) -> tuple[float, float]:
        """Smallest and largest coordinate along the direction `angle`."""
        along = [x * math.cos(angle) + y * math.sin(angle) for x, y in self.ring]
        return min(along, default=0.0), max(along, default=0.0)

    def clip(self, point: Point, angle: float, edge: str) -> Shape:
        """What lies behind the line through `point` whose normal has the direction `angle`; the cut becomes `edge`."""
        nx, ny = math.cos(angle), math.sin(angle)
        distance = [(x - point[0]) * nx + (y - point[1]) * ny for x, y in self.ring]
        ring: list[Point] = []
        edges: list[str] = []
        for k, (x, y) in enumerate(self.ring):
            nxt = (k + 1) % len(self.ring)
            here, there = distance[k], distance[nxt]
            if here <= 0:
                ring.append((x, y))
                edges.append(self.edges[k])
            if (here < 0 < there) or (there < 0 < here):
                t = here / (here - there)
                ring.append((x + t * (self.ring[nxt][0] - x), y + t * (self.ring[nxt][1] - y)))
                edges.append(edge if here < 0 else self.edges[k])
        return Shape(tuple(ring), tuple(edges))

    def cut(self, point: Point, angle: float, edge: str) -> tuple[Shape, Shape]:
        return self.clip(point, angle, edge), self.clip(point, angle + math.pi, edge)

    def inset(self, extra: float = 0.0) -> Shape:
        """The ground that the verges along the edges leave."""
        result = self
        for k, edge in enumerate(self.edges):
            (ax, ay), (bx, by) = self.ring[k], self.ring[(k + 1) % len(self.ring)]
            length = math.hypot(bx - ax, by - ay)
            depth = VERGES[edge] + extra
            if depth == 0 or length < 1e-6:
                continue
            angle = math.atan2(ax - bx, by - ay)
            result = result.clip((ax - depth * math.cos(angle), ay - depth * math.sin(angle)), angle, edge)
        return result

    def near(self, bounds: Bounds, reach: float = REACH_M) -> bool:
        xs, ys = [x for x, _ in self.ring], [y for _, y in self.ring]
        west, south, east, north = bounds
        return bool(xs) and (
            min(xs) < east + reach and max(xs) > west - reach and min(ys) < north + reach and max(ys) > south - reach
        )


@lru_cache(maxsize=2)
def landscape(seed: int, epsg: int, bounds: Bounds) -> Landscape:
    """All faces and trees that show in, or throw a shadow into, `bounds` (xmin, ymin, xmax, ymax; metres)."""
    west, south, east, north = bounds
    builder = _Builder(seed, epsg, bounds)
    for i in range(math.floor(west / SECTOR_M) - 2, math.floor(east / SECTOR_M) + 3):
        for j in range(math.floor(south / SECTOR_M) - 2, math.floor(north / SECTOR_M) + 3):
            builder.sector(i, j)
    return builder.finish()


class _Builder:
    def __init__(self, seed: int, epsg: int, bounds: Bounds) -> None:
        self.world = (seed, epsg)
        self.bounds = bounds
        self.layers: dict[str, list[Face]] = {name: [] for name in ("ground", "water", "track", "road", "roof")}
        self.trees: list[tuple[float, float, float, float, float]] = []
        rng = draws(*self.world, "warp")
        turn = 2 * math.pi
        self.waves = [
            (rng.uniform(900, 2200), rng.uniform(0, turn), rng.uniform(0, turn), rng.uniform(-1, 1), rng.uniform(-1, 1))
            for _ in range(5)
        ]

    def finish(self) -> Landscape:
        faces = [face for layer in self.layers.values() for face in layer]
        trees = np.array(sorted(self.trees, key=lambda tree: (tree[3], tree[0], tree[1])) or np.empty((0, 5)))
        if len(trees):
            trees[:, :2] = self.warp(trees[:, :2])
        return Landscape(tuple(faces), trees)

    def warp(self, points: Numbers) -> Numbers:
        moved = points.copy()
        for wavelength, heading, phase, along_x, along_y in self.waves:
            k = 2 * math.pi / wavelength
            wave = np.sin(k * (points[:, 0] * math.cos(heading) + points[:, 1] * math.sin(heading)) + phase)
            moved[:, 0] += WARP_M * along_x * wave
            moved[:, 1] += WARP_M * along_y * wave
        return moved

    def bend(self, ring: tuple[Point, ...] | list[Point]) -> Numbers:
        """The warped ring, with vertices close enough to follow the warp."""
        corners = np.array(ring)
        parts = []
        for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            pieces = max(1, math.ceil(math.hypot(*(b - a)) / 30.0))
            parts.append(a + (b - a) * (np.arange(pieces) / pieces)[:, None])
        return self.warp(np.concatenate(parts))

    def site(self, i: int, j: int) -> Point:
        rng = draws(*self.world, "site", i, j)
        return (i + 0.5 + rng.uniform(-0.36, 0.36)) * SECTOR_M, (j + 0.5 + rng.uniform(-0.36, 0.36)) * SECTOR_M

    def sector(self, i: int, j: int) -> None:
        x, y = self.site(i, j)
        half = 2.5 * SECTOR_M
        square = ((x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half))
        shape = Shape(square, ("",) * 4)
        for di in range(-2, 3):
            for dj in range(-2, 3):
                if (di, dj) == (0, 0):
                    continue
                ox, oy = self.site(i + di, j + dj)
                shape = shape.clip(((x + ox) / 2, (y + oy) / 2), math.atan2(oy - y, ox - x), f"{i + di},{j + dj}")
        if not shape.near(self.bounds):
            return
        villages = self.villages((i, j), shape)
        borders = tuple(self.border((i, j), other) for other in shape.edges)
        shape = Shape(shape.ring, borders)
        name = f"{i}_{j}"
        for k, kind in enumerate(borders):
            # each border is drawn by both of its sectors: the same line, in whatever order
            self.line(f"{name}/border{k}", shape.ring[k], shape.ring[(k + 1) % len(borders)], kind)
        rng = draws(*self.world, "sector", i, j)
        longest = max(range(len(borders)), key=lambda k: math.dist(shape.ring[k], shape.ring[(k + 1) % len(borders)]))
        (ax, ay), (bx, by) = shape.ring[longest], shape.ring[(longest + 1) % len(borders)]
        angle = math.atan2(by - ay, bx - ax) + rng.gauss(0, 0.04)

        def boundary() -> str:
            return rng.choices(("track", "hedge", "margin", "touching"), (0.45, 0.2, 0.2, 0.15))[0]

        blocks: list[Shape] = []
        divide(shape, angle, rng, lambda: rng.uniform(9, 24) * HECTARE, boundary, blocks)
        for number, block in enumerate(blocks):
            if block.near(self.bounds):
                inhabited = any(math.dist(block.centre, place) < radius for place, radius in villages)
                self.block(f"{name}_{number}", block, angle, inhabited)

    def border(self, one: tuple[int, int], other: str) -> str:
        """What two sectors have between them, for both the same."""
        pair = sorted([one, tuple(map(int, other.split(",")))])
        rng = draws(*self.world, "border", *pair[0], *pair[1])
        return rng.choices(("road", "stream", "track"), (0.72, 0.12, 0.16))[0]

    def villages(self, one: tuple[int, int], shape: Shape) -> list[tuple[Point, float]]:
        """Junctions of three sectors that have a village, and its radius."""
        found = []
        for k, place in enumerate(shape.ring):
            others = (shape.edges[k - 1], shape.edges[k])
            triple = sorted([one, *(tuple(map(int, other.split(","))) for other in others)])
            rng = draws(*self.world, "village", *(number for site in triple for number in site))
            if rng.random() < 0.16:
                found.append((place, rng.uniform(230, 380)))
        return found

    def block(self, name: str, block: Shape, angle: float, inhabited: bool) -> None:
        rng = draws(*self.world, "block", name)
        angle += rng.gauss(0, 0.02)
        for k, edge in enumerate(block.edges):
            a, b = block.ring[k], block.ring[(k + 1) % len(block.ring)]
            if edge in ("track", "hedge"):
                self.line(f"{name}/edge{k}", a, b, edge)
            self.row_of_trees(f"{name}/row{k}", a, b, edge)
        if inhabited:
            self.village(name, block, angle, rng)
            return
        if rng.random() < 0.06:
            self.wood(name, block, rng)
            return
        gap = rng.choices(("touching", "margin"), (0.55, 0.45))[0]
        style = rng.choices(("fields", "strips", "large"), (0.6, 0.22, 0.18))[0]
        parcels: list[Shape] = []
        if style == "strips":
            halves: list[Shape] = []
            divide(block, angle, rng, lambda: 9 * HECTARE, lambda: "margin", halves)
            typical = rng.choices((rng.uniform(12, 18), rng.uniform(20, 45)), (0.45, 0.55))[0]
            for half in halves:
                parcels += strips(half, angle, typical, gap, rng)
        else:
            mean = 2.2 if style == "fields" else 6.5
            divide(block, angle, rng, lambda: mean * rng.lognormvariate(0, 0.45) * HECTARE, lambda: gap, parcels)
        for number, parcel in enumerate(parcels):
            if parcel.near(self.bounds):
                self.parcel(f"{name}_{number}", parcel, angle)

    def parcel(self, name: str, parcel: Shape, angle: float) -> None:
        rng = draws(*self.world, "parcel", name)
        ground = parcel.inset()
        hectares = ground.area / HECTARE if len(ground.ring) > 2 else 0.0
        luck = rng.random()
        if hectares < 0.12:
            if hectares > 0.01 and luck < 0.5:
                self.crowns(name, ground, 6.5, (2.0, 4.5), (4, 12), rng)
            return
        if "road" in parcel.edges and 0.3 < hectares < 1.6 and luck < 0.3:
            self.farmstead(name, ground, angle, rng)
            return
        if hectares < 2.5 and luck > 0.965:
            self.wood(name, parcel, rng)
            return
        low, high = ground.extent(angle)
        left, right = ground.extent(angle + math.pi / 2)
        axis = angle if high - low >= right - left else angle + math.pi / 2
        crop = rng.choices(tuple(CROP_SHARES), tuple(CROP_SHARES.values()))[0]
        ring = self.bend(ground.ring)
        smallest, largest = (limit * HECTARE for limit in PARCEL_HA)
        if not smallest <= ring_area(ring) <= largest or min(high - low, right - left) < NARROWEST_M:
            return
        self.layers["ground"].append(Face(name, crop, ring, axis))
        if crop == "orchard":
            self.crowns(name, ground.inset(2.0), 6.0, (1.6, 2.2), (3, 4.5), rng, axis=axis, jitter=0.06)
        elif crop == "grassland":
            if rng.random() < 0.3:
                self.crowns(name, ground, rng.uniform(30, 60), (2.5, 5.5), (6, 15), rng)
            if hectares > 1.0 and rng.random() < 0.12:
                self.pond(name, ground, rng)

    def pond(self, name: str, ground: Shape, rng: random.Random) -> None:
        x, y = ground.centre
        radius = rng.uniform(9, 20)
        wobble = [rng.uniform(0.75, 1.2) for _ in range(4)]
        turns = np.arange(28) / 28 * 2 * math.pi
        reach = radius * sum(w * (1 + np.cos((k + 1) * turns + 5 * w)) / 6 for k, w in enumerate(wobble))
        ring = np.stack(
            [x + (0.4 * radius + reach) * np.cos(turns), y + (0.3 * radius + reach) * np.sin(turns)], axis=1
        )
        self.layers["water"].append(Face(f"{name}/pond", "water", self.warp(ring)))
        for px, py in ring[:: rng.randint(3, 6)]:
            self.trees.append((float(px), float(py), rng.uniform(2, 4), rng.uniform(4, 10), 0.0))

    def wood(self, name: str, shape: Shape, rng: random.Random) -> None:
        ground = shape.inset(0.5)
        if len(ground.ring) < 3 or ground.area < 300:
            return
        edge = min(14.0, 0.1 * math.sqrt(ground.area))
        core = ground.inset(edge)
        if len(core.ring) > 2:
            self.layers["ground"].append(Face(name, "forest floor", self.bend(core.ring)))
        conifers = rng.choice((0.0, 0.15, 0.9))
        self.crowns(name, ground, 6.2, (3.0, 5.2), (9, 19), rng, conifers=conifers, edge=edge)

    def crowns(
        self,
        name: str,
        shape: Shape,
        spacing: float,
        radius: tuple[float, float],
        height: tuple[float, float],
        rng: random.Random,
        axis: float | None = None,
        jitter: float = 0.42,
        conifers: float = 0.1,
        edge: float = 0.0,
    ) -> None:
        """Fill a shape with trees on a jittered lattice of `spacing` metres, up to `edge` metres from its boundary."""
        if len(shape.ring) < 3:
            return
        turn = rng.uniform(0, math.pi) if axis is None else axis
        (u0, u1), (v0, v1) = shape.extent(turn), shape.extent(turn + math.pi / 2)
        many = np.random.default_rng(rng.getrandbits(63))
        u, v = (grid.ravel() for grid in np.meshgrid(np.arange(u0, u1, spacing), np.arange(v0, v1, spacing)))
        u = u + many.uniform(-jitter, jitter, len(u)) * spacing
        v = v + many.uniform(-jitter, jitter, len(v)) * spacing
        x, y = u * math.cos(turn) - v * math.sin(turn), u * math.sin(turn) + v * math.cos(turn)
        size = many.uniform(0, 1, len(u))
        kind = many.uniform(0, 1, len(u)) < conifers
        inside = np.ones(len(u), bool)
        # a wood's edge winds in and out a little
        winding = edge * (2 + np.sin(x / 11 + 3 * turn) + np.sin(y / 14 - 5 * turn)) / 4
        for k, (ax, ay) in enumerate(shape.ring):
            bx, by = shape.ring[(k + 1) % len(shape.ring)]
            depth = ((bx - ax) * (y - ay) - (by - ay) * (x - ax)) / max(math.dist((ax, ay), (bx, by)), 1e-6)
            inside &= depth > winding
        tall = height[0] + size * (height[1] - height[0])
        wide = radius[0] + size * (radius[1] - radius[0])
        columns = (x, y, wide, tall, kind.astype(np.float64))
        self.trees += list(zip(*(column[inside].tolist() for column in columns), strict=True))

    def line(self, name: str, a: Point, b: Point, kind: str) -> None:
        """Paint a road, track or stream along an edge, rounded at its ends."""
        if kind not in HALF_WIDTHS:
            return
        # the same edge comes with either direction from its two sides
        a, b = sorted((a, b))
        half = HALF_WIDTHS[kind]
        angle = math.atan2(b[1] - a[1], b[0] - a[0])
        turns = [angle + math.pi / 2 + math.pi * k / 6 for k in range(7)]
        ring = [(a[0] + half * math.cos(t), a[1] + half * math.sin(t)) for t in turns]
        ring += [(b[0] - half * math.cos(t), b[1] - half * math.sin(t)) for t in turns]
        layer, surface = {"stream": ("water", "water"), "track": ("track", "track")}.get(kind, ("road", "road"))
        self.layers[layer].append(Face(name, surface, self.bend(ring)))

    def row_of_trees(self, name: str, a: Point, b: Point, edge: str) -> None:
        """Hedges, avenues and trees along streams."""
        a, b = sorted((a, b))
        rng = draws(*self.world, "row", f"{a[0]:.1f}", f"{a[1]:.1f}", f"{b[0]:.1f}", f"{b[1]:.1f}")
        chance, spacing, offset, radius, height = {
            "hedge": (1.0, 3.4, 0.0, (1.5, 3.2), (3, 8)),
            "road": (0.22, 11.0, 5.2, (2.4, 3.8), (8, 14)),
            "stream": (0.9, 7.0, 4.6, (2.0, 4.6), (5, 14)),
            "track": (0.12, 6.0, 2.6, (1.8, 3.6), (4, 11)),
        }.get(edge, (0.0, 1.0, 0.0, (1, 1), (1, 1)))
        length = math.dist(a, b)
        if rng.random() >= chance or length < 15:
            return
        ux, uy = (b[0] - a[0]) / length, (b[1] - a[1]) / length
        density = rng.uniform(0.65, 1.0)
        along = 4.0
        while along < length - 4.0:
            side = offset * rng.choice((-1, 1)) + rng.gauss(0, 0.5)
            if rng.random() < density:
                size = rng.random()
                self.trees.append(
                    (
                        a[0] + ux * along - uy * side,
                        a[1] + uy * along + ux * side,
                        radius[0] + size * (radius[1] - radius[0]),
                        height[0] + size * (height[1] - height[0]),
                        0.0,
                    )
                )
            along += spacing * rng.uniform(0.75, 1.25)

    def village(self, name: str, block: Shape, angle: float, rng: random.Random) -> None:
        quarters: list[Shape] = []
        divide(block, angle, rng, lambda: rng.uniform(0.9, 2.0) * HECTARE, lambda: "street", quarters)
        for number, quarter in enumerate(quarters):
            for k, edge in enumerate(quarter.edges):
                if edge == "street":
                    self.line(
                        f"{name}/{number}/street{k}", quarter.ring[k], quarter.ring[(k + 1) % len(quarter.ring)], edge
                    )
            lots: list[Shape] = []
            ground = quarter.inset(0.5)
            if len(ground.ring) < 3:
                continue
            divide(ground, angle, rng, lambda: rng.uniform(600, 1500), lambda: "touching", lots)
            for lot_number, lot in enumerate(lots):
                if len(lot.ring) < 3 or lot.area < 120:
                    continue
                lot_name = f"{name}/{number}/{lot_number}"
                self.layers["ground"].append(Face(lot_name, "garden", self.bend(lot.ring)))
                x, y = lot.centre
                width = min(rng.uniform(8, 12), 0.45 * math.sqrt(lot.area))
                if rng.random() < 0.88:
                    self.house(
                        f"{lot_name}/house",
                        (x, y),
                        angle,
                        width * rng.uniform(1.0, 1.6),
                        width,
                        rng.uniform(5, 8.5),
                        rng,
                    )
                if rng.random() < 0.35:
                    self.house(f"{lot_name}/shed", (x + 11, y - 8), angle, 6, 4.5, 3, rng)
                self.crowns(lot_name, lot, 14, (1.4, 3.4), (3, 10), rng)

    def farmstead(self, name: str, ground: Shape, angle: float, rng: random.Random) -> None:
        self.layers["ground"].append(Face(name, "garden", self.bend(ground.ring)))
        x, y = ground.centre
        room = math.sqrt(ground.area)
        yard = rectangle((x, y), angle, min(62.0, 0.62 * room), min(50.0, 0.5 * room))
        self.layers["ground"].append(Face(f"{name}/yard", "yard", self.bend(yard)))
        for number in range(rng.randint(2, 4)):
            turn = angle + number * math.pi / 2
            reach = 0.27 * room
            place = (x + reach * math.cos(turn), y + reach * math.sin(turn))
            long, wide = (
                (rng.uniform(20, 42), rng.uniform(11, 18)) if number else (rng.uniform(13, 18), rng.uniform(9, 11))
            )
            long, wide = min(long, 0.5 * room), min(wide, 0.22 * room)
            self.house(f"{name}/house{number}", place, turn + math.pi / 2, long, wide, rng.uniform(5, 10), rng)
        self.crowns(name, ground.inset(1.0), 17, (2.0, 4.5), (5, 14), rng)

    def house(
        self, name: str, place: Point, angle: float, long: float, wide: float, height: float, rng: random.Random
    ) -> None:
        """A gabled roof, its two halves looking away from the ridge, and no tree on it."""
        kinds, shares = ("tiles", "slate", "metal"), ((0.6, 0.3, 0.1) if wide < 12.5 else (0.35, 0.25, 0.4))
        surface = rng.choices(kinds, shares)[0]
        angle += rng.gauss(0, 0.06)
        for side in (1, -1):
            aspect = angle + side * math.pi / 2
            middle = (place[0] + wide / 4 * math.cos(aspect), place[1] + wide / 4 * math.sin(aspect))
            ring = self.warp(np.array(rectangle(middle, angle, long, wide / 2)))
            # both halves share the name's key, so that one roof has one material
            self.layers["roof"].append(Face(name, surface, ring, aspect, height))


def divide(
    shape: Shape,
    angle: float,
    rng: random.Random,
    target: Callable[[], float],
    boundary: Callable[[], str],
    leaves: list[Shape],
) -> None:
    """Cut a shape across its longer side, again and again, until pieces are smaller than `target()` square metres.

    `boundary()` says what runs along each cut. The pieces are appended to `leaves`.
    """
    if len(shape.ring) < 3 or shape.area <= target():
        if len(shape.ring) > 2:
            leaves.append(shape)
        return
    (u0, u1), (v0, v1) = shape.extent(angle), shape.extent(angle + math.pi / 2)
    across = angle if u1 - u0 >= v1 - v0 else angle + math.pi / 2
    low, high = shape.extent(across)
    reach = low + rng.uniform(0.36, 0.64) * (high - low)
    side = (v0 + v1) / 2 if across == angle else -(u0 + u1) / 2
    point = (
        reach * math.cos(across) - side * math.sin(across),
        reach * math.sin(across) + side * math.cos(across),
    )
    for half in shape.cut(point, across + rng.gauss(0, 0.03), boundary()):
        divide(half, angle, rng, target, boundary, leaves)


def strips(shape: Shape, angle: float, typical: float, gap: str, rng: random.Random) -> list[Shape]:
    """Cut a shape into long strips of about `typical` metres, along its longer side."""
    (u0, u1), (v0, v1) = shape.extent(angle), shape.extent(angle + math.pi / 2)
    across = angle + math.pi / 2 if u1 - u0 >= v1 - v0 else angle
    low, high = shape.extent(across)
    found: list[Shape] = []
    rest, at = shape, low + typical * rng.uniform(0.7, 1.5)
    while at < high - 0.6 * typical and len(rest.ring) > 2:
        strip, rest = rest.cut((at * math.cos(across), at * math.sin(across)), across, gap)
        found.append(strip)
        at += typical * rng.uniform(0.7, 1.5)
    return [strip for strip in [*found, rest] if len(strip.ring) > 2]


def rectangle(centre: Point, angle: float, long: float, wide: float) -> list[Point]:
    """Corners of a rectangle whose long side has the direction `angle`, anticlockwise."""
    c, s = math.cos(angle), math.sin(angle)
    corners = ((-long, -wide), (long, -wide), (long, wide), (-long, wide))
    return [(centre[0] + (u * c - v * s) / 2, centre[1] + (u * s + v * c) / 2) for u, v in corners]


def ring_area(ring: Numbers) -> float:
    """Area of a ring (n, 2), square metres."""
    x, y = (ring - ring[0]).T
    return float(0.5 * abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))
