// The page of the edge service: a form, a card for each image, and a table of the servers. One stream of events keeps
// all of it up to date, so nothing here asks again and again. Start reading at `follow`.

import { FINAL, state } from "./state.js";
import { $, pause, put, words } from "./words.js";
import { ask, connection, eventsOf, NO_ANSWER, Refusal, showTokenButton, tokenButton } from "./requests.js";
import { catchUp, inTurn, more, refilter } from "./history.js";
import { complain, keepSettingsOpen, loadModel, mistake, problem, submit, summarise } from "./form.js";
import { actions, cardOf, download, loadPictures, remove, takeTask } from "./cards.js";
import { putAway, turn } from "./viewer.js";
import { showCluster } from "./servers.js";

const SILENCE = 40_000; // ms without a byte, after which the stream is taken for dead: the service sends one every 15 s
const HIDDEN = 20_000; // ms after which a tab that nobody sees gives its connection back

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

function begin() {
  $("form").addEventListener("submit", submit);
  $("make").disabled = false; // until now the browser itself would have sent the form away
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
  $("viewer").addEventListener("close", putAway);
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
    if (document.hidden) return;
    for (const { status, parts, due } of state.cards.values()) {
      if (!FINAL.includes(status.state)) put(parts.words, words(status, due));
    }
  }, 1000);
  keepSettingsOpen();
  showTokenButton();
  follow();
}

begin();
