// Opens pages of the built site in Chromium: pictures at two widths, nothing wider than the screen, and axe's findings.
import { mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { resolve } from "node:path";
import puppeteer from "puppeteer-core";

const PAGES = ["index", "engineer", "methods/index", "methods/taid", "families/kdhub-vision", "api/run", "guide/architecture",
  "gallery", "peers", "evidence"];
const CHECKED = ["index", "methods/taid", "api/run", "gallery"];
const WIDTHS = { phone: 390, desk: 1280 };
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const browser = await puppeteer.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox", "--allow-file-access-from-files"],
});
mkdirSync("seen", { recursive: true });
let faults = 0;
for (const name of PAGES) {
  for (const [kind, width] of Object.entries(WIDTHS)) {
    const page = await browser.newPage();
    const asked = [];
    page.on("request", (request) => request.url().startsWith("http") && asked.push(request.url()));
    await page.setViewport({ width, height: 1600 });
    await page.goto("file://" + resolve("html", name + ".html"), { waitUntil: "networkidle0" });
    await page.screenshot({ path: `seen/${name.replaceAll("/", "-")}-${kind}.png` });
    const wide = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
    if (wide > 0) { faults++; console.log(`${name}, ${kind}: ${wide} pixels wider than the screen`); }
    for (const url of asked) { faults++; console.log(`${name}: asks ${url}`); }
    if (CHECKED.includes(name)) {
      await new Promise((done) => setTimeout(done, 500)); // for what site.js mends
      await page.evaluate(axe);
      const { violations } = await page.evaluate(() => window.axe.run(document));
      for (const one of violations.filter((v) => ["serious", "critical"].includes(v.impact))) {
        faults++;
        console.log(`${name}, ${kind}: ${one.impact}: ${one.help} (${one.nodes.length}), as ${one.nodes[0].html.slice(0, 150)}`);
      }
    }
    await page.close();
  }
}
await browser.close();
console.log(`${PAGES.length} pages at ${Object.keys(WIDTHS).length} widths in seen/, ${faults} faults`);
process.exit(faults ? 1 : 0);
