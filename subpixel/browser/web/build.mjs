// Builds the page into ../static: two minified bundles, one style sheet, the licences of what is inside, and the digest
// of the sources, which a test compares with the committed ones.
import { createHash } from "node:crypto";
import { mkdir, readFile, readdir, rm, writeFile } from "node:fs/promises";
import path from "node:path";
import { build } from "esbuild";

const target = path.resolve("../static");
const inputs = ["build.mjs", "package.json", "package-lock.json", "tsconfig.json"];
for (const name of await readdir("src")) inputs.push(`src/${name}`);
const digest = createHash("sha256");
for (const name of inputs.sort()) digest.update(`${name}\0`).update(await readFile(name)).update("\0");
const sources = digest.digest("hex");
const version = sources.slice(0, 12);

// products are compressed with DEFLATE: decoders of other compressions would be most of the worker
const otherCompressions = {
  name: "other-compressions",
  setup(builder) {
    builder.onLoad({ filter: /geotiff.dist-module.compression.(lerc|zstd|jpeg|webimage)\.js$/ }, ({ path: file }) => ({
      contents: `throw new Error(${JSON.stringify(`compression ${path.basename(file, ".js")}: expected DEFLATE`)});`,
    }));
  },
};

await rm(target, { recursive: true, force: true });
await mkdir(path.join(target, "assets"), { recursive: true });
const { metafile } = await build({
  entryPoints: { app: "src/app.ts", worker: "src/worker.ts" },
  outdir: path.join(target, "assets"),
  bundle: true,
  minify: !process.env.PLAIN,
  metafile: true,
  format: "esm",
  target: ["es2022"],
  legalComments: "none",
  define: { VERSION: JSON.stringify(version) },
  plugins: [otherCompressions],
});
const page = await readFile("src/index.html", "utf8");
await writeFile(path.join(target, "index.html"), page.replaceAll("VERSION", version));

// only what left bytes in a bundle is distributed
const packages = new Set();
for (const output of Object.values(metafile.outputs)) {
  for (const [file, { bytesInOutput }] of Object.entries(output.inputs)) {
    const found = /node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(file);
    if (found && bytesInOutput > 0) packages.add(found[1]);
  }
}
const texts = [];
for (const name of [...packages].sort()) {
  const folder = path.join("node_modules", name);
  const { version: number, license } = JSON.parse(await readFile(path.join(folder, "package.json"), "utf8"));
  const file = (await readdir(folder)).find((entry) => /^licen[cs]e/i.test(entry));
  const text = file ? await readFile(path.join(folder, file), "utf8") : "(the package holds no licence text)";
  texts.push(`${name} ${number} (${license})\n${"=".repeat(72)}\n${text.trim()}\n`);
}
await writeFile(path.join(target, "THIRD_PARTY.txt"), texts.join("\n\n"));
await writeFile(path.join(target, "build.json"), `${JSON.stringify({ sources })}\n`);
for (const name of Object.keys(metafile.outputs)) console.log(name, metafile.outputs[name].bytes);
