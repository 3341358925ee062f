"use strict";
// The page of the edge service: a form, a card for each image, and a table of the servers. One stream of events keeps
// all of it up to date, so nothing here asks again and again. Start reading at `follow`.

const PAGE = 50; // tasks of the history that are asked for at once
const SHOWN = 300; // cards at most, so that a page that is open for days stays small
const LOADING = 4; // pictures fetched at a time: a browser has 6 connections, and the events take one
const SILENCE = 40_000; // ms without a byte, after which the stream is taken for dead: the service sends one every 15 s
const HIDDEN = 20_000; // ms after which a tab that nobody sees gives its connection back
const LARGEST_SEED = 2 ** 31 - 1;
const FINAL = ["done", "failed", "cancelled"];
const STORAGE = `dedgeai${location.pathname}`; // services below other paths of the same host have their own

const $ = (id) => document.getElementById(id);
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

const state = {
  token: sessionStorage.getItem(STORAGE) ?? "",
  asking: null, // a promise while the token is asked for
  model: null, // what api/model says
  cluster: null,
  cards: new Map(), // by task's number: {status, item, parts, due, url, near, loading, tries, missing}
  next: null, // where older tasks begin that are not shown; null: there are none
  lastId: "", // of the last event that was taken in
  stream: null, // AbortController of the stream
  loading: 0, // pictures that are being fetched
  own: new Set(), // unfinished tasks that were ordered here, whose changes are told to screen readers
  unsent: { text: "", key: "" }, // the order that was sent last, until it is known to be accepted
  viewed: null, // the card whose picture is shown in full size
  turn: Promise.resolve(), // what changes the cards: events wait for a list that is on its way, and the other way round
};

// ---- requests

class Refusal extends Error {
  constructor(status, words) {
    super(words);
    this.status = status; // 0: no answer came
  }
}

const NO_ANSWER = "The service cannot be reached";

/** A header carries bytes, so the token goes as UTF-8. */
function bearer(token) {
  return token ? { Authorization: `Bearer ${String.fromCharCode(...new TextEncoder().encode(token))}` } : {};
}

async function reason(reply) {
  const body = await reply.json().catch(() => null);
  return typeof body?.detail === "string" ? body.detail : `The service answers ${reply.status}`;
}

/** What `read` makes of the reply. Throws a Refusal, whose message is for people; waits while the token is asked for. */
async function ask(path, options = {}, read = (reply) => reply.json()) {
  for (;;) {
    const token = state.token;
    const headers = { ...options.headers, ...bearer(token) };
    try {
      const reply = await fetch(path, { signal: AbortSignal.timeout(60_000), ...options, headers });
      if (reply.ok) return await read(reply);
      if (reply.status !== 401) throw new Refusal(reply.status, await reason(reply));
    } catch (error) {
      throw error instanceof Refusal ? error : new Refusal(0, NO_ANSWER);
    }
    if (token === state.token) await askToken();
  }
}

// ---- token

function askToken() {
  state.asking ??= new Promise((done) => {
    $("token-form").onsubmit = async (event) => {
      event.preventDefault();
      if (!(await tryToken($("token").value.trim()))) return $("token").select();
      state.asking = null;
      showTokenButton();
      $("token").value = "";
      $("token-dialog").close();
      done();
    };
  });
  put($("token-problem"), state.token && "The token that was used here is not valid any more.");
  connection("Waiting for the token");
  showTokenButton();
  if (!$("token-dialog").open) $("token-dialog").showModal();
  return state.asking;
}

async function tryToken(token) {
  const reply = await fetch("api/model", { headers: bearer(token) }).catch(() => ({ status: 0 }));
  const right = reply.status === 200;
  put($("token-problem"), right ? "" : reply.status === 401 ? "This is not the right token." : `${NO_ANSWER}; try again.`);
  if (right) {
    state.token = token;
    sessionStorage.setItem(STORAGE, token);
  }
  return right;
}

function showTokenButton() {
  $("token-button").hidden = !state.token && !state.asking;
  put($("token-button"), state.asking ? "Enter the token" : "Forget the token");
}

function tokenButton() {
  if (state.asking) return askToken();
  sessionStorage.removeItem(STORAGE);
  location.reload(); // nothing that the token showed stays in memory
}

// ---- the stream of events

/** Stay connected for as long as the page is open. */
async function follow() {
  for (let wait = 500; ; wait = Math.min(2 * wait, 10_000)) {
    try {
      await seen();
      if (!state.model) await loadModel();
      await readEvents(() => {
        wait = 500;
        connection("Connected", true);
        loadPictures();
      });
    } catch (error) {
      if (!(error instanceof Refusal)) console.error(error);
    }
    connection(`${NO_ANSWER}; trying again`);
    await pause(wait);
  }
}

function connection(words, on = false) {
  put($("connection"), words);
  $("connection").classList.toggle("on", on);
}

const seen = () => new Promise((done) => {
  const look = () => !document.hidden && (document.removeEventListener("visibilitychange", look), done());
  document.addEventListener("visibilitychange", look);
  look();
});

async function readEvents(connected) {
  const stop = (state.stream = new AbortController());
  let silence;
  const alive = () => {
    clearTimeout(silence);
    silence = setTimeout(() => stop.abort(), SILENCE);
  };
  alive();
  try {
    const headers = state.lastId ? { "Last-Event-ID": state.lastId } : {};
    const body = await ask("api/events", { headers, signal: stop.signal }, (reply) => reply.body);
    for await (const event of eventsOf(body, alive)) {
      await inTurn(() => take(event));
      if (event.type === "hello") connected();
    }
  } finally {
    clearTimeout(silence);
    stop.abort();
    state.cards.forEach((card) => { card.tries = 0; }); // pictures that could not be fetched are tried anew
  }
}

/** The events {type, id, data} of a text/event-stream until it ends. */
async function* eventsOf(body, alive) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ""; ;) {
    const { value, done } = await reader.read().catch(() => ({ done: true }));
    if (done) return;
    alive();
    const blocks = (text + value).split(/\r?\n\r?\n/);
    text = blocks.pop();
    for (const block of blocks) {
      const event = { type: "message", id: "", data: "" };
      for (const line of block.split(/\r?\n/)) {
        const [, name, rest] = /^(\w*):? ?(.*)$/.exec(line) ?? [];
        if (name === "event") event.type = rest;
        else if (name === "id" || name === "data") event[name] += rest;
      }
      yield event;
    }
  }
}

function inTurn(work) {
  const done = state.turn.then(work);
  state.turn = done.catch(() => {});
  return done;
}

const bootOf = (id) => id.slice(0, id.lastIndexOf("-"));

async function take({ type, id, data }) {
  const restarted = id && state.lastId && bootOf(id) !== bootOf(state.lastId);
  if (type === "reset" || restarted || (type === "hello" && !state.lastId)) {
    if (state.lastId) await loadModel();
    await catchUp();
    state.lastId = id || state.lastId;
  }
  if (type === "task") takeTask(JSON.parse(data));
  else if (type === "removed") remove(state.cards.get(JSON.parse(data).task));
  else if (type === "cluster") showCluster(JSON.parse(data));
  if (type !== "hello" && id) state.lastId = id; // a hello comes before what was missed
}

function takeTask(status) {
  const card = state.cards.get(status.task);
  moveUp(status, card?.status);
  if (!card && state.next !== null && status.task < oldest()) return; // it belongs to a page that is not shown
  show(status);
  trim();
}

/** The service tells a task's place when the task itself changes; here it moves up when another leaves its server. */
function moveUp(status, before) {
  if (!FINAL.includes(status.state) || FINAL.includes(before?.state)) return;
  const server = status.edge_server ?? before?.edge_server ?? null;
  const place = status.state === "cancelled" ? before?.ahead ?? Infinity : 0;
  for (const card of state.cards.values()) {
    const other = card.status;
    if (other.state === "queued" && other.edge_server === server && other.ahead > place) {
      other.ahead -= 1;
      render(card);
    }
  }
}

/** Ask for what is shown, and no less than the newest page; what is not there any more goes. */
async function catchUp() {
  showCluster(await ask("api/cluster"));
  const found = new Set();
  let page = { next: null };
  do {
    page = await list(page.next);
    page.tasks.forEach((status) => { found.add(status.task); show(status); });
  } while (page.next !== null && oldest() < Math.min(...found));
  state.next = page.next;
  for (const card of [...state.cards.values()]) if (!found.has(card.status.task)) remove(card);
  trim();
  loadPictures();
}

function list(before) {
  const query = new URLSearchParams({ limit: PAGE });
  if (before !== null) query.set("before", before);
  if ($("filter").value) query.set("state", $("filter").value);
  return ask(`api/tasks?${query}`);
}

async function more() {
  const page = await list(state.next);
  state.next = page.next;
  page.tasks.forEach(show);
  trim();
  (state.cards.get(page.tasks[0]?.task)?.item ?? $("images-title")).focus();
}

function refilter() {
  state.cards.forEach(remove);
  return catchUp();
}

// ---- the form

async function loadModel() {
  const model = (state.model = await ask("api/model"));
  const { limits } = model;
  document.title = `${model.name} - DEdgeAI`;
  put($("model-words"), model.words);
  $("examples").replaceChildren(...model.examples.map((example) => button(example, () => fill({ prompt: example }))));
  $("examples").hidden = !model.examples.length;
  $("images-wanted").max = limits.max_images;
  $("steps").max = limits.max_steps;
  $("seed").max = LARGEST_SEED;
  const size = $("size").value;
  $("size").replaceChildren();
  sizes(model).forEach(addSize);
  if ([...$("size").options].some((option) => option.value === size)) $("size").value = size;
  $("steps").value ||= model.default_steps;
  $("guidance").value ||= model.cfg_scale ?? "";
  $("negative").value ||= model.negative_prompt ?? "";
  summarise();
}

/** The model's own size, then squares, wide and high ones of about 1.5 to 1, from it up to the limit. */
function sizes({ width, height, limits }) {
  const side = Math.max(width, height);
  const sides = [1, 1.5, 2, 3, 4].map((k) => 16 * Math.round((k * side) / 16)).filter((one) => one <= limits.max_side);
  const pairs = sides.flatMap((w) => sides.map((h) => [w, h])).filter(([w, h]) => Math.max(w / h, h / w) < 1.6);
  return [[width, height], ...pairs.filter(([w, h]) => w !== width || h !== height)];
}

function addSize([width, height]) {
  const value = `${width}x${height}`;
  if ([...$("size").options].some((option) => option.value === value)) return;
  $("size").add(new Option(`${width} x ${height}`, value));
}

/** Put values into the form; those that are not given stay. */
function fill(values) {
  for (const [name, value] of Object.entries(values)) $("form").elements[name].value = value ?? "";
  $("form").querySelectorAll("[aria-invalid]").forEach((field) => complain(field, ""));
  summarise();
  $("prompt").focus();
}

function again({ prompt, negative_prompt, steps, seed, width, height, cfg_scale }) {
  addSize([width, height]);
  $("settings").open = true;
  fill({ prompt, negative_prompt, steps, seed, size: `${width}x${height}`, cfg_scale, images: 1 });
  $("make-title").scrollIntoView();
}

function summarise() {
  const { size, steps, seed } = $("form").elements;
  put($("settings-words"), `${size.value.replace("x", " x ")}, ${steps.value} steps, ${seed.value ? `seed ${seed.value}` : "random seed"}`);
}

/** What is wrong with a field's value, in words; "" if nothing. */
function mistake(field) {
  const text = field.value.trim(), { limits } = state.model;
  const length = [...text].length; // characters as the service counts them
  const number = text === "" ? NaN : Number(text);
  const whole = (low, high) => (Number.isInteger(number) && number >= low && number <= high ? ""
    : `This must be a whole number from ${count(low)} to ${count(high)}.`);
  if (field.name === "prompt" && !length) return "Say what the image shows.";
  if (["prompt", "negative_prompt"].includes(field.name) && length > limits.max_prompt) {
    return `This has ${count(length)} characters; at most ${count(limits.max_prompt)} are allowed.`;
  }
  if (field.name === "steps") return whole(1, limits.max_steps);
  if (field.name === "images") return whole(1, limits.max_images);
  if (field.name === "seed") return text === "" && !field.validity.badInput ? "" : whole(0, LARGEST_SEED);
  if (field.name === "cfg_scale") return number >= 0 || (text === "" && !field.validity.badInput) ? "" : "This must be a number, 0 or more.";
  return "";
}

function complain(field, words) {
  const id = `${field.id}-wrong`;
  const line = $(id) ?? Object.assign(document.createElement("p"), { id, className: "wrong" });
  if (!line.isConnected) field.after(line);
  put(line, words);
  const described = (field.getAttribute("aria-describedby") ?? "").split(" ").filter((one) => one && one !== id);
  field.setAttribute("aria-describedby", (words ? [...described, id] : described).join(" "));
  if (words) field.setAttribute("aria-invalid", "true");
  else field.removeAttribute("aria-invalid");
}

async function submit(event) {
  event?.preventDefault();
  if (!state.model) return problem(`${NO_ANSWER}. Your words stay here; try again in a moment.`);
  const fields = [...$("form").elements].filter((field) => field.name);
  fields.forEach((field) => complain(field, mistake(field)));
  const wrong = fields.find((field) => field.hasAttribute("aria-invalid"));
  if (wrong) {
    if ($("settings").contains(wrong)) $("settings").open = true;
    return wrong.focus();
  }
  const { prompt, negative_prompt, steps, seed, size, cfg_scale, images } = $("form").elements;
  const [width, height] = size.value.split("x").map(Number);
  const optional = { seed: seed.value, cfg_scale: cfg_scale.value };
  for (const name in optional) optional[name] = optional[name] === "" ? undefined : Number(optional[name]);
  await order({
    prompt: prompt.value.trim(), negative_prompt: negative_prompt.value.trim(), steps: Number(steps.value),
    width, height, images: Number(images.value), ...optional,
  });
}

/** Order images. The same order keeps its key until an answer says what became of it, so none is made twice. */
async function order(wanted) {
  const text = JSON.stringify(wanted);
  if ($("make").ariaDisabled === "true") return;
  $("make").ariaDisabled = "true";
  put($("make"), "Sending");
  if (state.unsent.text !== text) state.unsent = { text, key: randomKey() };
  const headers = { "Content-Type": "application/json", "Idempotency-Key": state.unsent.key };
  try {
    const { tasks = [], ...first } = await ask("api/tasks", { method: "POST", headers, body: text });
    state.unsent = { text: "", key: "" };
    problem("");
    if ($("filter").value === "finished") {
      $("filter").value = "";
      await inTurn(refilter);
    }
    accept(first, tasks.length ? tasks : [first.task]);
  } catch (error) {
    problem(error);
  }
  $("make").ariaDisabled = "false";
  put($("make"), "Make");
}

/** Cards for new tasks, unless events were faster. */
function accept(first, tasks) {
  const status = (task) => (task === first.task ? Promise.resolve(first) : ask(`api/tasks/${task}`));
  tasks.forEach((task) => {
    state.own.add(task);
    if (!state.cards.has(task)) status(task).then((status) => state.cards.has(task) || takeTask(status)).catch(() => {});
  });
  tell(tasks.length > 1 ? `${tasks.length} images are ordered` : `Image ${first.task} is ordered`);
  $("images-title").scrollIntoView({ block: "nearest" });
}

/** crypto.randomUUID exists only with TLS or on the loopback. */
const randomKey = () => crypto.getRandomValues(new Uint32Array(4)).join("-");

const problem = (error) => put($("problem"), error instanceof Refusal && !error.status
  ? `${error.message}. Nothing is lost; try again in a moment.` : error.message ?? error);

// ---- cards

const number = (item) => Number(item.dataset.task);
const oldest = () => ($("images").lastElementChild ? number($("images").lastElementChild) : Infinity);
const cardOf = (element) => state.cards.get(number(element.closest("[data-task]")));
const wanted = (status) => !$("filter").value || ($("filter").value === "finished") === FINAL.includes(status.state);

/** Show a task as it is now. */
function show(status) {
  let card = state.cards.get(status.task);
  const before = card?.status.state;
  if (status.state === "removed" || !wanted(status)) {
    announce(status, before);
    return remove(card);
  }
  if (card && (card.status.prompt !== status.prompt || card.status.seed !== status.seed)) card = remove(card); // a new record
  card ??= add(status);
  card.status = status;
  card.due = status.estimated_s == null ? null : performance.now() + 1000 * status.estimated_s;
  if (status.state === "done" && !status.image) card.missing = "The picture is not kept any more.";
  const focused = document.activeElement;
  render(card);
  if (card.item.contains(focused) && !focused.checkVisibility()) card.item.focus(); // its button went
  announce(status, before);
  if (status.state === "done") loadPictures();
}

function add(status) {
  const item = $("card").content.cloneNode(true).firstElementChild;
  const parts = Object.fromEntries([...item.querySelectorAll("[data-part]")].map((part) => [part.dataset.part, part]));
  const card = { status, item, parts, due: null, url: "", near: false, loading: false, tries: 0, missing: "" };
  item.dataset.task = status.task;
  parts.open.ariaLabel = `Image ${status.task} in full size`;
  parts.progress.ariaLabel = `Progress of image ${status.task}`;
  item.querySelectorAll(".which").forEach((which) => put(which, ` (image ${status.task})`));
  parts.details.addEventListener("toggle", () => render(card));
  const older = [...$("images").children].find((other) => number(other) < status.task);
  $("images").insertBefore(item, older ?? null);
  state.cards.set(status.task, card);
  near.observe(item);
  return card;
}

function remove(card) {
  if (!card) return;
  const { item, url } = card;
  if (item.contains(document.activeElement)) (item.nextElementSibling ?? item.previousElementSibling ?? $("images-title")).focus();
  if (state.viewed === card) $("viewer").close();
  near.unobserve(item);
  item.remove();
  state.cards.delete(card.status.task);
  URL.revokeObjectURL(url);
  showEnd();
}

/** Let the oldest cards go when there are too many. */
function trim() {
  while (state.cards.size > SHOWN) {
    remove(state.cards.get(oldest()));
    state.next = oldest();
  }
  showEnd();
}

function showEnd() {
  const full = state.cards.size >= SHOWN;
  $("nothing").hidden = state.cards.size > 0;
  $("more").hidden = state.next === null || full;
  $("full").hidden = state.next === null || !full;
  put($("full"), `This page shows the newest ${SHOWN} images; the API lists older ones.`);
}

function render({ status, item, parts, due, url, missing }) {
  const final = FINAL.includes(status.state), done = status.state === "done", pictured = done && url !== "";
  item.dataset.state = status.state;
  put(parts.prompt, status.prompt);
  put(parts.words, words(status, due));
  parts.progress.max = status.steps;
  parts.progress.value = status.step ?? 0;
  parts.progress.hidden = final;
  parts.open.hidden = !pictured;
  parts.place.hidden = pictured;
  put(parts.missing, missing || (final && !done ? "No picture" : ""));
  if (pictured && parts.image.src !== url) {
    parts.image.src = url;
    parts.image.alt = status.prompt;
  }
  parts.cancel.hidden = final || status.cancelling;
  parts.retry.hidden = status.state !== "failed" && status.state !== "cancelled";
  parts.download.hidden = !done || missing !== "";
  parts.again.hidden = !final;
  parts.remove.hidden = !final;
  if (parts.details.open) parts.list.replaceChildren(...settingsOf(status).flatMap(([name, value]) => [term("dt", name), term("dd", value)]));
}

/** A task's state in words. `due` is when it should be done, in ms of performance.now(). */
function words({ state: now, cancelling, ahead, step, steps, edge_server, delay_s, error }, due) {
  const left = due === null ? null : (due - performance.now()) / 1000;
  const soon = left === null ? "" : left < 0.5 ? ", any moment now" : `, about ${time(left)}`;
  if (cancelling && !FINAL.includes(now)) return "Stops at its next step";
  if (now === "waiting") return `Waits for a server${soon}`;
  if (now === "queued") return ahead > 0 ? `Waits, ${count(ahead)} before it${soon}` : `Is next${soon}`;
  if (now === "running") return `Step ${count(step ?? 0)} of ${count(steps)}${soon}`;
  if (now === "done") return `Made by server ${edge_server}${delay_s === null ? "" : ` in ${time(delay_s)}`}`;
  return now === "failed" ? `Failed: ${error ?? "the service does not say why"}` : "Cancelled";
}

function settingsOf(status) {
  const rows = [
    ["Prompt", status.prompt], ["Negative prompt", status.negative_prompt], ["Size", `${status.width} x ${status.height} pixels`],
    ["Steps", status.steps], ["Guidance (CFG)", status.cfg_scale], ["Seed", status.seed], ["Ordered", date(status.accepted_at)],
    ["Server", status.edge_server], ["Waited", status.queueing_s == null ? null : time(status.queueing_s)],
    ["Took in all", status.delay_s == null ? null : time(status.delay_s)], ["Image", status.task],
  ];
  return rows.filter(([, value]) => value != null && value !== "");
}

const actions = {
  open: (card) => view(card),
  cancel: (card) => withdraw(card),
  retry: ({ status }) => order(Object.fromEntries(
    ["prompt", "negative_prompt", "steps", "seed", "width", "height", "cfg_scale"].map((name) => [name, status[name] ?? undefined]))),
  download: (card) => download(card),
  again: ({ status }) => again(status),
  remove(card) {
    const { remove, sure } = card.parts; // the first press asks, the second deletes
    if (!sure.hidden) return withdraw(card);
    sure.hidden = false;
    remove.addEventListener("blur", () => { sure.hidden = true; }, { once: true });
  },
};

/** Cancel an unfinished task, remove a finished one. */
async function withdraw(card) {
  try {
    const status = await ask(`api/tasks/${card.status.task}`, { method: "DELETE" });
    if (status.state === "removed" || !FINAL.includes(card.status.state)) show(status); // events may have been faster
  } catch (error) {
    if (error.status === 404) remove(card);
    else put(card.parts.words, `${error.message}.`);
  }
}

// ---- pictures: fetched, because their request must bring the token; only near what is seen

const near = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const card = cardOf(target);
    if (card) card.near = isIntersecting;
  }
  loadPictures();
}, { rootMargin: "300px" });

function loadPictures() {
  const due = (card) => card && card.status.state === "done" && !card.missing && !card.url && !card.loading && card.tries < 5;
  const shown = [...$("images").children].map(cardOf).filter((card) => card.near);
  for (const card of [state.viewed, ...shown]) {
    if (state.loading >= LOADING) return;
    if (due(card)) loadPicture(card);
  }
}

async function loadPicture(card) {
  card.loading = true;
  state.loading += 1;
  try {
    const blob = await ask(`api/tasks/${card.status.task}/image`, {}, (reply) => reply.blob());
    if (state.cards.get(card.status.task) === card) card.url = URL.createObjectURL(blob);
  } catch (error) {
    card.tries += 1;
    if ([404, 410].includes(error.status)) card.missing = error.message;
    else await pause(1000 * card.tries);
  }
  card.loading = false;
  state.loading -= 1;
  if (card.item.isConnected) render(card);
  if (state.viewed === card) showView();
  loadPictures();
}

async function download(card) {
  if (!card.url) await loadPicture(card);
  if (!card.url) return;
  const name = card.status.prompt.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "");
  const link = document.createElement("a");
  link.href = card.url;
  link.download = `${[...name].slice(0, 60).join("") || "image"}-${card.status.task}.png`;
  link.click();
}

// ---- the picture in full size

const viewable = () => [...$("images").children].map(cardOf).filter((card) => card.status.state === "done" && !card.missing);

function view(card) {
  state.viewed = card;
  showView();
  if (!$("viewer").open) $("viewer").showModal();
  loadPictures();
}

function showView() {
  const { status, url, missing } = state.viewed, all = viewable(), at = all.indexOf(state.viewed), image = $("viewer-image");
  put($("viewer-title"), status.prompt);
  put($("viewer-place"), `${at + 1} of ${all.length}`);
  put($("viewer-words"), url ? "" : missing || "Loading");
  image.hidden = !url;
  if (url) Object.assign(image, { src: url, alt: status.prompt });
  image.width = status.width * Math.max(1, Math.floor(512 / Math.max(status.width, status.height)));
  $("viewer-previous").ariaDisabled = String(at <= 0);
  $("viewer-next").ariaDisabled = String(at >= all.length - 1);
}

function turn(by) {
  const all = viewable(), card = all[all.indexOf(state.viewed) + by];
  if (card) view(card);
}

function closed() {
  const card = state.viewed;
  state.viewed = null;
  $("viewer-image").removeAttribute("src");
  (card.item.isConnected ? card.parts.open : $("images-title")).focus();
}

// ---- servers

const SERVERS = 100; // rows at most

function showCluster(cluster) {
  state.cluster = cluster;
  const { servers } = cluster, up = servers.filter((server) => server.up).length;
  put($("totals"), `${count(up)} of ${count(servers.length)} up, ${count(cluster.unfinished)} unfinished, `
    + `${count(cluster.done)} done, ${count(cluster.failed)} failed, ${count(cluster.cancelled ?? 0)} cancelled, ${cluster.scheduler}`);
  $("trouble").hidden = !cluster.trouble;
  put($("trouble"), cluster.trouble ?? "");
  if (!$("cluster").open) return;
  const longest = Math.max(1e-9, ...servers.map((server) => server.backlog_s));
  servers.slice(0, SERVERS).forEach((server, k) => showServer($("servers").rows[k] ?? newRow(), server, longest));
  while ($("servers").rows.length > Math.min(SERVERS, servers.length)) $("servers").deleteRow(-1);
  $("more-servers").hidden = servers.length <= SERVERS;
  put($("more-servers"), `${count(servers.length - SERVERS)} more are not listed here.`);
}

function newRow() {
  const row = $("servers").insertRow(), name = document.createElement("th");
  name.scope = "row";
  row.append(name, ...Array.from({ length: 5 }, () => document.createElement("td")));
  row.cells[3].className = "bar";
  row.cells[3].append(document.createElement("span"), document.createElement("div"));
  return row;
}

function showServer(row, server, longest) {
  const [name, up, tasks, backlog, step, restarts] = row.cells;
  row.className = server.up ? "" : "down";
  name.title = server.machine ?? "";
  put(name, server.edge_server);
  put(up, server.up ? "up" : "down");
  put(tasks, count(server.tasks));
  put(backlog.firstChild, time(server.backlog_s));
  backlog.lastChild.style.width = `${(100 * server.backlog_s) / longest}%`;
  put(step, time(server.seconds_per_step));
  put(restarts, count(server.restarts));
}

// ---- words and small parts

/** Set an element's text, if it is another: screen readers speak what is set in a live region. */
function put(element, text) {
  if (element.textContent !== String(text)) element.textContent = text;
}

const count = (value) => value.toLocaleString("en");
const date = (text) => text && new Date(text).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" });

function time(seconds) {
  if (seconds > 0 && seconds < 1) return `${Number((1000 * seconds).toPrecision(3))} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds), minutes = Math.floor(whole / 60);
  if (whole < 100) return `${whole} s`;
  return minutes < 100 ? `${minutes} min ${whole % 60} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

const term = (tag, text) => Object.assign(document.createElement(tag), { textContent: text, dir: "auto" });

function button(text, press) {
  const made = Object.assign(document.createElement("button"), { type: "button", textContent: text, dir: "auto" });
  made.addEventListener("click", press);
  return made;
}

/** Tell a screen reader what became of a task that was ordered here. */
function announce(status, before) {
  if (!state.own.has(status.task) || status.state === before || !["running", ...FINAL].includes(status.state)) return;
  tell(`Image ${status.task}: ${status.state === "running" ? "is being made" : words(status, null)}`);
  if (FINAL.includes(status.state)) state.own.delete(status.task);
}

/** Put a line into the live region, where it stays for long enough to be read out. */
function tell(text) {
  const line = term("p", text);
  $("news").append(line);
  setTimeout(() => line.remove(), 5000);
}

function keepSettingsOpen() {
  const name = `${STORAGE}settings`;
  $("settings").open = localStorage.getItem(name) === "open";
  $("settings").addEventListener("toggle", () => localStorage.setItem(name, $("settings").open ? "open" : ""));
}

function begin() {
  $("form").addEventListener("submit", submit);
  $("form").addEventListener("input", (event) => {
    if (event.target.hasAttribute("aria-invalid")) complain(event.target, mistake(event.target));
    summarise();
  });
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) submit(event);
  });
  $("images").addEventListener("click", ({ target }) => {
    const part = target.closest("button")?.dataset.part;
    if (part) actions[part](cardOf(target));
  });
  $("filter").addEventListener("change", () => inTurn(refilter).catch(problem));
  $("more").addEventListener("click", () => inTurn(more).catch(problem));
  $("cluster").addEventListener("toggle", () => state.cluster && showCluster(state.cluster));
  $("token-button").addEventListener("click", tokenButton);
  $("viewer").addEventListener("close", closed);
  $("viewer").addEventListener("click", ({ target }) => target === $("viewer") && $("viewer").close());
  $("viewer").addEventListener("keydown", ({ key }) => turn({ ArrowLeft: -1, ArrowRight: 1 }[key] ?? 0));
  $("viewer-close").addEventListener("click", () => $("viewer").close());
  $("viewer-previous").addEventListener("click", () => turn(-1));
  $("viewer-next").addEventListener("click", () => turn(1));
  $("viewer-download").addEventListener("click", () => download(state.viewed));
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) setTimeout(() => document.hidden && state.stream?.abort(), HIDDEN);
  });
  setInterval(() => {
    if (!document.hidden) state.cards.forEach(({ status, parts, due }) => FINAL.includes(status.state) || put(parts.words, words(status, due)));
  }, 1000);
  keepSettingsOpen();
  showTokenButton();
  follow();
}

begin();
