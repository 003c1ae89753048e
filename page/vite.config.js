// Builds the page into the package, compressed: one script, one style sheet, one HTML file. Beside
// them the licences of what is in the script, and the hash of the sources, by which `make check`
// knows whether all this is stale.
import { createHash } from "node:crypto";
import { existsSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { gzipSync } from "node:zlib";
import { defineConfig } from "vite";

const OUT = "../src/medmoe/serving/page/built";
// Style attributes are against the page's policy; what this one says stands in style.css.
const INLINE_STYLE = "textElement.setAttribute('style', combinedStyle);";

function sourcesHash() {
  const files = ["index.html", "package-lock.json", "package.json", "tsconfig.json", "vite.config.js"];
  files.push(...readdirSync("src").map((name) => `src/${name}`));
  const hash = createHash("sha256");
  for (const name of files.sort()) {
    hash.update(`${name}\0`);
    hash.update(readFileSync(name));
    hash.update("\0");
  }
  return hash.digest("hex");
}

/** Return name, version and licence of each package that some modules are of. */
function licences(modules) {
  const parts = modules.map((id) => id.split("node_modules/").at(-1).split("/"));
  const named = parts.map(([first, second]) => (first.startsWith("@") ? `${first}/${second}` : first));
  const known = [...new Set(named)].filter((name) => existsSync(`node_modules/${name}/package.json`));
  return known.sort().map((name) => {
    const { version, license } = JSON.parse(readFileSync(`node_modules/${name}/package.json`, "utf8"));
    const file = readdirSync(`node_modules/${name}`).find((each) => /^(licen[cs]e|copying)/i.test(each));
    const text = file ? readFileSync(`node_modules/${name}/${file}`, "utf8").trim() : "";
    return `${name} ${version}: ${license}\n\n${text}\n`;
  });
}

export default defineConfig({
  base: "./",
  build: {
    outDir: OUT,
    emptyOutDir: true,
    target: "es2022",
    modulePreload: { polyfill: false },
    chunkSizeWarningLimit: 8000,
    rolldownOptions: {
      output: {
        codeSplitting: false,
        entryFileNames: "page.js",
        assetFileNames: "page.[ext]",
      },
    },
  },
  plugins: [
    {
      name: "no-inline-style",
      transform(code, id) {
        if (!id.includes("drawTextBox.js")) return null;
        if (!code.includes(INLINE_STYLE)) this.error("drawTextBox.js sets its style otherwise now");
        return code.replace(INLINE_STYLE, "textElement.setAttribute('class', 'measured');");
      },
    },
    {
      name: "no-worker",
      transform(code, id) {
        // Of segmentations alone, which the page has none of; a worker would be another file.
        if (!id.includes("registerComputeWorker.js")) return null;
        return "export function registerComputeWorker() {}";
      },
    },
    {
      name: "addresses", // the page stands at /, its files at /page/
      transformIndexHtml: {
        order: "post",
        handler: (html) => html.replaceAll('"./page.', '"page/page.').replaceAll(" crossorigin", ""),
      },
    },
    {
      name: "packed",
      generateBundle(_, bundle) {
        const modules = Object.values(bundle).flatMap((part) => Object.keys(part.modules ?? {}));
        const text = licences(modules.filter((id) => id.includes("node_modules/")));
        this.emitFile({ type: "asset", fileName: "licences.txt", source: text.join(`\n${"-".repeat(80)}\n\n`) });
      },
      closeBundle() {
        for (const name of ["index.html", "page.css", "page.js"]) {
          writeFileSync(`${OUT}/${name}.gz`, gzipSync(readFileSync(`${OUT}/${name}`), { level: 9 }));
          rmSync(`${OUT}/${name}`);
        }
        writeFileSync(`${OUT}/sources.sha256`, `${sourcesHash()}\n`);
      },
    },
  ],
});
