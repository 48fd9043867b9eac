// What the tasks share: one browser, a page of its own for each, and a JSON line for each. A line that a task sends on the way
// (`cue`) is answered when the test has done what it names.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

export const { url: URL_OF_GATEWAY, keys: KEYS } = JSON.parse(process.env.CONSOLE);
const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
// A busy machine is slow, and each wait ends with its condition.
const TIMEOUT_MS = 60_000;
const replies = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

/** Let the test do something, and say what came of it. */
export async function cue(name, details = {}) {
  console.log(JSON.stringify({ cue: name, ...details }));
  return JSON.parse((await replies.next()).value);
}

export function check(isSo, said) {
  if (!isSo) throw new Error(said);
}

/** A page of a browser that has never been here. Whatever it should not do fails its task: see `faultsOf`. */
async function opened(browser, options) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, ...options });
  context.setDefaultTimeout(TIMEOUT_MS);
  await context.addInitScript(AXE);
  const page = await context.newPage();
  const faults = [];
  page.on("pageerror", (error) => faults.push(`the page threw: ${error.message}`));
  page.on("console", (message) => {
    // Answers that refuse are part of some tasks; browsers print each.
    const isAnswer = message.text().startsWith("Failed to load resource");
    if (message.type() === "error" && !isAnswer) faults.push(`the console says: ${message.text()}`);
  });
  page.on("request", (request) => {
    const { origin, protocol } = new URL(request.url());
    if (protocol !== "data:" && !page.mayLeave && origin !== URL_OF_GATEWAY) faults.push(`it asked ${request.url()}`);
  });
  return { context, page, faults };
}

/** Every task in turn. */
export async function perform(tasks) {
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM,
    args: ["--no-sandbox", "--font-render-hinting=none"],
    env: process.env,
  });
  for (const [task, { options = {}, act }] of Object.entries(tasks)) {
    const { context, page, faults } = await opened(browser, options);
    const line = { task };
    try {
      line.value = (await act(page)) ?? null;
      check(!faults.length, faults.join("; "));
    } catch (error) {
      line.error = `${error.message}\n${faults.join("\n")}\n${await page.locator("body").innerText().catch(() => "")}`;
    }
    console.log(JSON.stringify(line));
    await context.close();
  }
  await browser.close();
  process.exit();
}

export async function signIn(page, key, view = "") {
  await page.goto(`${URL_OF_GATEWAY}/console${view}`);
  await page.getByLabel("API key").fill(key);
  await page.getByRole("button", { name: "Sign in with the key" }).click();
  await page.getByRole("navigation").waitFor();
}

/** Follow the navigation, and wait for the view's heading. */
export async function visit(page, title) {
  await page.getByRole("link", { name: title, exact: true }).click();
  await page.getByRole("heading", { level: 1, name: title }).waitFor();
}

/** What axe-core finds against WCAG 2.2 AA and its best practices, as sentences. */
export async function violations(page) {
  const found = await page.evaluate(() => axe.run(document, { resultTypes: ["violations"] }));
  return found.violations.map((it) => `${it.id}: ${it.help} (${it.nodes.map((node) => node.html).slice(0, 3).join(" ")})`);
}

export const overflow = (page) =>
  page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
