// The page at /: takes pictures in by drop, paste, choice or URL, shows their classes and where they were seen. It talks to its own
// server alone, by the routes that everybody has.

const $ = (selector, root = document) => root.querySelector(selector);

const TOP_K = 5;
// Requests of this page under way at one time: enough to keep the server's batches filled, few enough to leave it to others.
const AT_ONE_TIME = 4;

const status = $("#status");
const results = $("#results");
let key = "";
// The name of the head whose classes are shown; empty for the checkpoint's own classes.
let head = "";

// A server's refusal, in its own words.
class Refused extends Error {
  constructor(response, problem) {
    super(problem?.detail ?? problem?.error ?? `The service answered ${response.status}.`);
    this.status = response.status;
  }
}

async function ask(path, request) {
  const headers = { ...request.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { method: "POST", ...request, headers });
  } catch {
    throw new Error("The service could not be reached. Is it still running?");
  }
  if (response.ok) return response;
  throw new Refused(response, await response.json().catch(() => null));
}

// A limit on how many run side by side; the others wait in their order.
function gate(width) {
  const waiting = [];
  let running = 0;
  const next = () => {
    if (running < width && waiting.length) {
      running += 1;
      waiting.shift()();
    }
  };
  return async (work) => {
    await new Promise((go) => { waiting.push(go); next(); });
    try { return await work(); } finally { running -= 1; next(); }
  };
}
const inTurn = gate(AT_ONE_TIME);

// One picture: a file, or a URL that the server fetches.
class Picture {
  constructor({ file, url, name }) {
    this.file = file;
    this.url = url;
    this.name = name ?? file?.name ?? url;
  }

  // The request that carries this picture, with options as the routes have them.
  request(options) {
    if (this.url) {
      const body = JSON.stringify({ images: [{ url: this.url }], ...options });
      return ["", { body, headers: { "Content-Type": "application/json" } }];
    }
    const type = this.file.type.startsWith("image/") ? this.file.type : "application/octet-stream";
    return [`?${new URLSearchParams(options)}`, { body: this.file, headers: { "Content-Type": type } }];
  }

  async classify() {
    const [query, request] = this.request({ top_k: TOP_K, ...(head && { model: head }) });
    const answer = await (await ask(`v1/classify${query}`, request)).json();
    const [result] = answer.results;
    if (result.error) throw new Error(result.error.detail);
    return result;
  }

  async drawn(options) {
    const [query, request] = this.request(options);
    return URL.createObjectURL(await (await ask(`v1/explain${query}`, request)).blob());
  }

  // The picture as the server decodes it: for URLs, which this page may not load itself, and for formats that browsers do not show.
  fromServer() { return this.drawn({ format: "overlay", opacity: 0 }); }

  heat(index) { return this.drawn({ format: "heatmap", class: String(index), ...(head && { model: head }) }); }

  curl() {
    const quote = (text) => `'${text.replaceAll("'", String.raw`'\''`)}'`;
    const path = new URL("v1/classify", document.baseURI).href;
    const auth = key ? ' -H "Authorization: Bearer $API_KEY"' : "";
    if (this.url) return `curl${auth} ${path} --json ${quote(JSON.stringify({ images: [{ url: this.url }], top_k: TOP_K, ...(head && { model: head }) }))}`;
    const type = this.file.type || "application/octet-stream";
    return `curl${auth} -H ${quote(`Content-Type: ${type}`)} --data-binary ${quote(`@${this.name}`)} ${quote(`${path}?top_k=${TOP_K}${head && `&model=${head}`}`)}`;
  }
}

class Card {
  constructor(picture) {
    this.picture = picture;
    this.urls = new Set();
    this.heats = new Map();
    this.node = $("#card").content.firstElementChild.cloneNode(true);
    $("h2", this.node).textContent = picture.name;
    $("h2", this.node).title = picture.name;
    const range = $("input", this.node);
    const show = () => { $(".heat", this.node).style.opacity = range.value / 100; };
    range.addEventListener("input", show);
    show();
    $(".copy", this.node).addEventListener("click", (event) => this.copy(event.currentTarget));
    $(".again", this.node).addEventListener("click", () => this.look());
    $(".remove", this.node).addEventListener("click", () => this.remove());
    results.prepend(this.node);
  }

  keep(url) {
    this.urls.add(url);
    return url;
  }

  async look() {
    this.busy(true);
    this.fail("");
    try {
      const shown = this.show();
      const asked = head;
      const { predictions, known } = await inTurn(() => this.picture.classify());
      // Another head may have been chosen meanwhile, for which this runs again.
      if (asked !== head) return;
      this.heats.clear();
      this.say(predictions, known);
      await shown;
      await this.explain(predictions[0].index);
    } catch (error) {
      this.fail(error);
    } finally {
      this.busy(false);
    }
  }

  busy(is) { this.node.setAttribute("aria-busy", is); }

  async show() {
    const image = $(".picture", this.node);
    image.alt = this.picture.name;
    const load = (url) => new Promise((good, bad) => {
      image.onload = good;
      image.onerror = bad;
      image.src = this.keep(url);
    });
    try {
      if (!this.picture.file) throw new Error("not here");
      await load(URL.createObjectURL(this.picture.file));
    } catch {
      image.removeAttribute("src");
      // What fails here fails the classes too, and they say why.
      const url = await inTurn(() => this.picture.fromServer()).catch(() => null);
      if (url) await load(url).catch(() => null);
    }
  }

  say(predictions, known) {
    const [first] = predictions;
    $(".verdict", this.node).textContent = first.label;
    $(".picture", this.node).alt = `${this.picture.name}: ${first.label}`;
    $(".hint:not(.known)", this.node).hidden = false;
    const fit = $(".known", this.node);
    fit.hidden = known === undefined;
    fit.textContent = known === undefined ? "" : `Fits better than ${percent(known)} of the pictures that were learned from.`;
    $(".bars", this.node).replaceChildren(...predictions.map((prediction) => this.bar(prediction)));
    status.textContent = `${this.picture.name}: ${first.label}, ${percent(first.probability)}`;
  }

  bar({ index, wnid, label, probability }) {
    const item = $("#bar").content.firstElementChild.cloneNode(true);
    const button = $("button", item);
    $(".name", item).textContent = label;
    $(".share", item).textContent = percent(probability);
    button.dataset.index = index;
    button.title = wnid ? `class ${index}, ${wnid}` : `class ${index}`;
    button.addEventListener("click", () => this.explain(index).catch((error) => this.fail(error)));
    requestAnimationFrame(() => requestAnimationFrame(() => { $(".fill", item).style.setProperty("--share", `${probability * 100}%`); }));
    return item;
  }

  async explain(index) {
    for (const button of this.node.querySelectorAll(".bar")) button.setAttribute("aria-pressed", Number(button.dataset.index) === index);
    this.wanted = index;
    if (!this.heats.has(index)) this.heats.set(index, this.keep(await inTurn(() => this.picture.heat(index))));
    // Another class may have been chosen meanwhile.
    if (this.wanted !== index) return;
    const heat = $(".heat", this.node);
    heat.src = this.heats.get(index);
    heat.hidden = false;
    $(".heat-control", this.node).hidden = false;
  }

  fail(error) {
    const line = $(".error", this.node);
    line.hidden = !error;
    $(".again", this.node).hidden = !error;
    line.textContent = error ? error.message : "";
    if (error?.status === 401) askForKey();
  }

  async copy(button) {
    const text = this.picture.curl();
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
      status.textContent = "The curl command is copied.";
    } catch {
      // The clipboard is for https and localhost alone: let the reader copy by hand.
      window.prompt("Copy this command:", text);
    }
    setTimeout(() => { button.textContent = "Copy as curl"; }, 2000);
  }

  remove() {
    for (const url of this.urls) URL.revokeObjectURL(url);
    const next = this.node.nextElementSibling ?? this.node.previousElementSibling;
    this.node.remove();
    (next ?? $("#files")).focus();
    status.textContent = `${this.picture.name} is removed.`;
  }
}

function percent(probability) {
  const shown = probability * 100;
  return shown < 0.05 ? "< 0.1 %" : `${shown.toFixed(1)} %`;
}

function add(pictures) {
  const cards = pictures.map((picture) => new Card(picture));
  if (cards.length) {
    status.textContent = cards.length === 1 ? `Looking at ${cards[0].picture.name}` : `Looking at ${cards.length} pictures`;
    cards[0].node.scrollIntoView({ behavior: "smooth", block: "nearest" });
  }
  return Promise.all(cards.map((card) => card.look()));
}

const addFiles = (files) => add([...files].map((file) => new Picture({ file })));

function askForKey() {
  $("#by-key").hidden = false;
  $("#key").focus();
}

$("#files").addEventListener("change", (event) => {
  addFiles(event.target.files);
  event.target.value = "";
});
$("#by-url").addEventListener("submit", (event) => {
  event.preventDefault();
  const field = $("#url");
  add([new Picture({ url: field.value.trim(), name: field.value.startsWith("data:") ? "data: URL" : undefined })]);
  field.value = "";
});
// Kept in this page's memory alone.
$("#by-key").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("#key").value;
  $("#by-key").hidden = true;
  for (const button of document.querySelectorAll(".again:not([hidden])")) button.click();
});
$("#example").addEventListener("click", async () => {
  const response = await fetch("example.jpg");
  add([new Picture({ file: new File([await response.blob()], "example.jpg", { type: "image/jpeg" }) })]);
});

$("#head").addEventListener("change", (event) => {
  head = event.target.value;
  for (const button of document.querySelectorAll(".again")) button.click();
});

const drop = $("#drop");
let inside = 0;
const carries = (event) => [...(event.dataTransfer?.types ?? [])].some((type) => type === "Files" || type === "text/uri-list");
addEventListener("dragenter", (event) => { if (carries(event)) { inside += 1; drop.classList.add("over"); } });
addEventListener("dragleave", (event) => { if (carries(event) && (inside -= 1) <= 0) { inside = 0; drop.classList.remove("over"); } });
addEventListener("dragover", (event) => { if (carries(event)) event.preventDefault(); });
addEventListener("drop", (event) => {
  if (!carries(event)) return;
  event.preventDefault();
  inside = 0;
  drop.classList.remove("over");
  const { files } = event.dataTransfer;
  const url = event.dataTransfer.getData("text/uri-list").split("\n").find((line) => /^https?:/.test(line));
  if (files.length) addFiles(files);
  else if (url) add([new Picture({ url: url.trim() })]);
});
addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files].filter((file) => file.type.startsWith("image/"));
  if (files.length) {
    event.preventDefault();
    addFiles(files);
    return;
  }
  const text = event.clipboardData.getData("text").trim();
  if (!event.target.closest("input") && /^https?:\/\/\S+$/.test(text)) add([new Picture({ url: text })]);
});

// Auto, light, dark, and back. A browser that forbids storage forgets the choice.
const THEMES = ["auto", "light", "dark"];
function theme(name) {
  const button = $("#theme");
  document.documentElement.toggleAttribute("data-theme", name !== "auto");
  if (name !== "auto") document.documentElement.dataset.theme = name;
  button.dataset.theme = name;
  button.textContent = { auto: "◐ Auto", light: "☀ Light", dark: "☾ Dark" }[name];
  button.setAttribute("aria-label", `Colours: ${name === "auto" ? "as the system has them" : name}`);
  try { localStorage.setItem("theme", name); } catch { /* as said above */ }
}
let chosen = "auto";
try { chosen = localStorage.getItem("theme") ?? "auto"; } catch { /* as said above */ }
theme(THEMES.includes(chosen) ? chosen : "auto");
$("#theme").addEventListener("click", (event) => {
  theme(THEMES[(THEMES.indexOf(event.currentTarget.dataset.theme) + 1) % THEMES.length]);
});

async function describe() {
  const response = await fetch("v1/model");
  if (!response.ok) return;
  const model = await response.json();
  const name = model.id.split(/[\\/]/).slice(-2).join("/");
  const network = `${model.architecture.replace("resnet", "ResNet-")} ${model.variant ?? ""}`.trim();
  const size = model.preprocessing.crop.join("×");
  const named = { "imagenet-1k": "ImageNet's", checkpoint: "the checkpoint's", file: "the operator's", numbered: "numbered" }[model.labels];
  $("#model").textContent = `${network}, ${name}, ${size} pixels, ${model.classes} classes (${named}), ${model.features} features, in ${model.compute_dtype} on ${model.instruction_set ?? model.device}`;
  $("#untrained").hidden = model.trained;
  if (model.heads.length) {
    const own = new Option(`the model's own (${model.classes})`, "");
    const options = model.heads.map(({ name, labels }) => new Option(`${name} (${labels.length})`, name));
    $("#head").replaceChildren(own, ...options);
    $("#by-head").hidden = false;
  }
  $("#independent").hidden = model.probabilities !== "independent";
}
describe().catch(() => { /* the footer stays empty */ });
