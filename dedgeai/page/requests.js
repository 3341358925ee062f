// Requests to the service, what its streams say, and the token. Start reading at `ask`.

import { state, STORAGE } from "./state.js";
import { $, put } from "./words.js";

export class Refusal extends Error {
  constructor(status, words) {
    super(words);
    this.status = status; // 0: no answer came
  }
}

export const NO_ANSWER = "The service cannot be reached";

/** A header carries bytes, so the token goes as UTF-8. */
function bearer(token) {
  return token ? { Authorization: `Bearer ${String.fromCharCode(...new TextEncoder().encode(token))}` } : {};
}

async function reason(reply) {
  const body = await reply.json().catch(() => null);
  return typeof body?.detail === "string" ? body.detail : `The service answers ${reply.status}`;
}

/** What `read` makes of the reply. Waits while the token is asked for; throws a Refusal, whose message is for
 * people. */
export async function ask(path, options = {}, read = (reply) => reply.json()) {
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
  const problem = reply.status === 401 ? "This is not the right token." : `${NO_ANSWER}; try again.`;
  put($("token-problem"), right ? "" : problem);
  if (right) {
    state.token = token;
    sessionStorage.setItem(STORAGE, token);
  }
  return right;
}

export function showTokenButton() {
  $("token-button").hidden = !state.token && !state.asking;
  put($("token-button"), state.asking ? "Enter the token" : "Forget the token");
}

export function tokenButton() {
  if (state.asking) return askToken();
  sessionStorage.removeItem(STORAGE);
  location.reload(); // nothing that the token showed stays in memory
}

export function connection(words, on = false) {
  put($("connection"), words);
  $("connection").classList.toggle("on", on);
}

/** The events {type, id, data} of a text/event-stream until it ends. */
export async function* eventsOf(body, alive) {
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
