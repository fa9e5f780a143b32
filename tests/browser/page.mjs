// Drives the page at / and Swagger UI in headless Chromium, as a person would, and takes the pictures that the README shows.
//
//     node page.mjs http://127.0.0.1:PORT PICTURE [LABEL] [OUTPUT-FOLDER]
//
// Where the address has a path, as behind a proxy, only what links could break is tried: the page once, and Swagger UI.
// LABEL is the class that PICTURE must be given, where the weights are trained. CHROMIUM names the browser. Exit code 0 if all is well.

import assert from "node:assert/strict";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { chromium } from "playwright-core";

const [base, picture, label = "", output = join(tmpdir(), "imgclass-screenshots")] = process.argv.slice(2);
const executablePath = process.env.CHROMIUM
  ?? ["/usr/lib/chromium/chromium", "/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(existsSync);
mkdirSync(output, { recursive: true });
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
const PATIENCE = 60_000;

let passed = 0;
const ok = (what) => { passed += 1; console.log(`  ok  ${what}`); };

// A page that fails the test for whatever it says in the console, and for whatever it asks of another server.
async function open(path, options = {}) {
  const context = await browser.newContext({ deviceScaleFactor: 2, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE);
  page.faults = [];
  page.on("console", (message) => { if (["error", "warning"].includes(message.type())) page.faults.push(message.text()); });
  page.on("pageerror", (error) => page.faults.push(String(error)));
  page.on("request", (request) => { if (!/^(blob:|data:)/.test(request.url()) && !request.url().startsWith(base)) page.faults.push(request.url()); });
  await page.goto(base + path);
  return page;
}

const done = (page, cards) => page.waitForFunction(
  (cards) => document.querySelectorAll('.card[aria-busy="false"]').length === cards, cards);

async function uploads() {
  const page = await open("/", { viewport: { width: 1180, height: 900 }, colorScheme: "light" });
  await page.screenshot({ path: join(output, "empty-light.png") });
  await page.setInputFiles("#files", picture);
  await done(page, 1);
  const verdict = await page.textContent(".card .verdict");
  assert.ok(label === "" || verdict === label, `${verdict} instead of ${label}`);
  ok(`an upload is given a label: ${verdict}`);
  assert.equal(await page.locator(".card .bar").count(), 5);
  const shares = await page.locator(".card .share").allTextContents();
  const numbers = shares.map((share) => parseFloat(share.replace("<", "")));
  assert.ok(numbers.every((n, i) => n >= 0 && n <= 100 && (i === 0 || n <= numbers[i - 1])), `${shares}`);
  ok("five bars, falling");

  const heat = page.locator(".card .heat");
  await heat.waitFor({ state: "visible" });
  // One reading of both, so that a page still settling moves them together; layout is in fractions of a pixel.
  const boxes = await page.evaluate(() => [".card .picture", ".card .heat"]
    .map((part) => document.querySelector(part).getBoundingClientRect().toJSON()));
  for (const side of ["left", "top", "right", "bottom"]) {
    assert.ok(Math.abs(boxes[0][side] - boxes[1][side]) < 0.1, `${side}: ${JSON.stringify(boxes)}`);
  }
  ok("the heat map lies exactly over the picture");
  await page.locator(".card input[type=range]").fill("20");
  assert.equal(await heat.evaluate((image) => image.style.opacity), "0.2");
  await page.locator(".card input[type=range]").fill("55");
  ok("the slider sets its opacity");
  const first = await heat.getAttribute("src");
  await page.locator(".card .bar").nth(1).click();
  await page.waitForFunction((first) => document.querySelector(".card .heat").getAttribute("src") !== first, first);
  assert.equal(await page.locator(".card .bar").nth(1).getAttribute("aria-pressed"), "true");
  ok("another class has another heat map");
  await page.locator(".card .bar").first().click();
  await page.waitForTimeout(600);
  await page.screenshot({ path: join(output, "page-light.png"), fullPage: true });
  // What the README shows: `just pictures` copies it.
  await page.screenshot({ path: join(output, "page.jpg"), type: "jpeg", quality: 85, scale: "css", fullPage: true });
  await page.emulateMedia({ colorScheme: "dark" });
  await page.waitForTimeout(400);
  await page.screenshot({ path: join(output, "page-dark.png"), fullPage: true });
  assert.deepEqual(page.faults, []);
  ok("nothing in the console, nothing asked of another server");
  await page.context().close();
}

async function severalAndBad() {
  const page = await open("/", { viewport: { width: 1180, height: 900 } });
  await page.setInputFiles("#files", [
    { name: basename(picture), mimeType: "image/jpeg", buffer: readFileSync(picture) },
    { name: "notes.txt", mimeType: "text/plain", buffer: Buffer.from("no picture at all") },
    { name: "it's.bmp", mimeType: "image/bmp", buffer: bmp(40, 30) },
  ]);
  await done(page, 3);
  assert.equal(await page.locator(".card .error:visible").count(), 1);
  assert.equal(await page.locator(".card .verdict:not(:empty)").count(), 2);
  ok("of several at once, a bad one says why and the others are classified");
  await page.context().grantPermissions(["clipboard-read", "clipboard-write"]);
  await page.locator(".card", { hasText: "it's.bmp" }).locator(".copy").click();
  const curl = await page.evaluate(() => navigator.clipboard.readText());
  assert.ok(curl.startsWith("curl") && curl.includes("'@it'\\''s.bmp'") && curl.includes(`${base}/v1/classify`), curl);
  ok("copy as curl, quoted for a shell");

  await page.locator(".card", { hasText: "notes.txt" }).locator(".remove").click();
  assert.equal(await page.locator(".card").count(), 2);
  const data = `data:image/bmp;base64,${bmp(30, 40).toString("base64")}`;
  await page.fill("#url", data);
  await page.click("#by-url button");
  await done(page, 3);
  assert.equal(await page.locator(".card .error:visible").count(), 0);
  assert.ok(await page.locator(".card .picture").first().evaluate((image) => image.naturalWidth === 30));
  ok("a picture by its URL is fetched and shown by the server");
  await page.fill("#url", "http://127.0.0.1:1/x.png");
  await page.keyboard.press("Enter");
  await page.locator(".card .error:visible").waitFor();
  ok("a URL that cannot be used says so");

  await page.evaluate((base64) => {
    const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], "dropped.bmp", { type: "image/bmp" }));
    document.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
    const pasted = new DataTransfer();
    pasted.items.add(new File([bytes], "pasted.bmp", { type: "image/bmp" }));
    document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData: pasted, bubbles: true, cancelable: true }));
  }, bmp(20, 20).toString("base64"));
  await done(page, 6);
  assert.equal(await page.locator(".card h2", { hasText: /^(dropped|pasted)\.bmp$/ }).count(), 2);
  ok("drop and paste");
  // The bad picture and the bad URL are the service's 4xx, which the browser notes in its console.
  assert.deepEqual(page.faults.filter((fault) => !/status of 4\d\d/.test(fault)), []);
  await page.context().close();
}

async function byKeyboardOnAPhone() {
  const page = await open("/", { viewport: { width: 390, height: 844 }, hasTouch: true, isMobile: true, colorScheme: "dark" });
  for (let i = 0; i < 12 && await page.evaluate(() => document.activeElement.id) !== "example"; i += 1) await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.id), "example");
  await page.keyboard.press("Enter");
  await done(page, 1);
  await page.locator(".card .heat").waitFor({ state: "visible" });
  ok("by keyboard alone: the example picture");
  const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  assert.ok(overflow <= 0, `${overflow} px too wide`);
  ok("on a phone nothing is wider than the screen");
  await page.waitForTimeout(600);
  await page.screenshot({ path: join(output, "phone-dark.png"), fullPage: true });
  await page.evaluate(() => { document.documentElement.dataset.theme = "light"; });
  await page.screenshot({ path: join(output, "phone-light.png"), fullPage: true });
  const names = await page.evaluate(() => [...document.querySelectorAll("button, input, a, img")]
    .filter((node) => node.checkVisibility() && node.tagName !== "IMG"
      && !(node.textContent.trim() || node.ariaLabel || node.labels?.length)).map((node) => node.outerHTML));
  assert.deepEqual(names, []);
  const unnamed = await page.evaluate(() => [...document.images].filter((image) => !image.hasAttribute("alt")).length);
  assert.equal(unnamed, 0);
  ok("every control has a name");
  assert.match(await page.textContent("#status"), /^example\.jpg: /);
  ok("a screen reader is told the answer");
  await page.click("#theme");
  await page.click("#theme");
  await page.reload();
  assert.equal(await page.evaluate(() => document.documentElement.dataset.theme), "dark");
  ok("the choice of colours is kept");
  assert.deepEqual(page.faults, []);
  await page.context().close();
}

// Where the service has a head, its classes take the place of the model's own, and back.
async function heads() {
  const model = await (await fetch(`${base}/v1/model`)).json();
  if (model.heads.length === 0) {
    console.log("!!! NOT RUN: the choice of heads: the service has none");
    return;
  }
  const [{ name, labels }] = model.heads;
  const page = await open("/", { viewport: { width: 1180, height: 900 }, colorScheme: "light" });
  await page.setInputFiles("#files", picture);
  await done(page, 1);
  const shown = () => page.locator(".card .bar").evaluateAll((bars) => bars.map((bar) => bar.textContent));
  const own = await shown();
  const heat = page.locator(".card .heat");
  const first = await heat.getAttribute("src");
  await page.selectOption("#head", name);
  await page.waitForFunction((labels) => labels.includes(document.querySelector(".card .verdict").textContent), labels);
  await done(page, 1);
  const ofHead = await shown();
  assert.equal(ofHead.length, Math.min(labels.length, 5));
  assert.ok(ofHead.every((bar) => labels.some((label) => bar.includes(label))), `${ofHead}`);
  ok(`the page shows the classes of the head ${name}`);
  assert.match(await page.textContent(".card .known"), /^Fits better than \d/);
  assert.ok(await page.isVisible(".card .known"));
  ok("and how well the picture fits them");
  await page.waitForFunction((first) => document.querySelector(".card .heat").getAttribute("src") !== first, first);
  ok("with a heat map of its own");
  await page.waitForTimeout(600);
  await page.screenshot({ path: join(output, "head-light.png"), fullPage: true });
  await page.selectOption("#head", "");
  await page.waitForFunction((count) => document.querySelectorAll(".card .bar").length === count, own.length);
  await done(page, 1);
  assert.deepEqual(await shown(), own);
  assert.ok(!(await page.isVisible(".card .known")));
  ok("and the model's own classes again");
  assert.deepEqual(page.faults, []);
  await page.context().close();
}

async function swagger() {
  const page = await open("/docs", { viewport: { width: 1180, height: 900 } });
  const operation = page.locator(".opblock", { has: page.locator('[data-path="/classify_image/"]') });
  await operation.locator(".opblock-summary-control").click();
  await operation.locator(".try-out__btn").click();
  await operation.locator(".execute").click();
  const live = operation.locator(".live-responses-table .response");
  await live.waitFor();
  assert.equal((await live.locator(".response-col_status").textContent()).trim().slice(0, 3), "200");
  const answer = await live.locator(".response-col_description").textContent();
  assert.ok(answer.includes("className") && answer.includes("probability"), answer);
  ok("Swagger UI's try-it-out is answered");
  const { prediction } = JSON.parse(await live.locator(".response-col_description .microlight").first().textContent());
  assert.ok(label === "" || prediction[0].className === label, `${JSON.stringify(prediction)} instead of ${label}`);
  ok(`the example of the try-it-out is ${prediction[0].className}`);
  const groups = await page.locator(".opblock-tag").evaluateAll((tags) => tags.map((tag) => tag.dataset.tag));
  assert.deepEqual(groups, ["classification", "health", "model"]);
  ok("the routes stand in groups");
  await page.screenshot({ path: join(output, "swagger.png") });
  assert.deepEqual(page.faults, []);
  await page.context().close();
}

// A 24-bit BMP of a gradient: no encoder needed.
function bmp(width, height) {
  const row = Math.ceil((width * 3) / 4) * 4;
  const bytes = Buffer.alloc(54 + row * height);
  bytes.write("BM");
  for (const [at, value] of [[2, bytes.length], [10, 54], [14, 40], [18, width], [22, height]]) bytes.writeUInt32LE(value, at);
  bytes.writeUInt16LE(1, 26);
  bytes.writeUInt16LE(24, 28);
  for (let y = 0; y < height; y += 1) for (let x = 0; x < width * 3; x += 1) bytes[54 + y * row + x] = (x * 3 + y * 5) % 256;
  return bytes;
}

try {
  if (new URL(base).pathname === "/") {
    await uploads();
    await severalAndBad();
  }
  await byKeyboardOnAPhone();
  await heads();
  await swagger();
  console.log(`browser: ${passed} checks passed with ${basename(executablePath)}; screenshots in ${output}`);
} catch (error) {
  for (const [i, page] of browser.contexts().flatMap((context) => context.pages()).entries()) {
    writeFileSync(join(output, `failed-${i}.txt`), `${page.faults.join("\n")}\n${await page.content()}`);
    await page.screenshot({ path: join(output, `failed-${i}.png`), fullPage: true }).catch(() => {});
    console.error(`browser: the page said: ${page.faults.join("; ") || "nothing"}`);
  }
  throw error;
} finally {
  await browser.close();
}
