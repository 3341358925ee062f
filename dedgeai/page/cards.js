// A card for each image, its actions and its picture. Start reading at `show`.

import { FINAL, state } from "./state.js";
import { $, pause, put, settingsOf, tell, term, words } from "./words.js";
import { ask } from "./requests.js";
import { again, order } from "./form.js";
import { showView, view } from "./viewer.js";

const SHOWN = 300; // cards at most, so that a page that is open for days stays small
const LOADING = 4; // pictures fetched at a time: a browser has 6 connections, and the events take one

export function takeTask(status) {
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

export const number = (item) => Number(item.dataset.task);
export const oldest = () => ($("images").lastElementChild ? number($("images").lastElementChild) : Infinity);
export const cardOf = (element) => state.cards.get(number(element.closest("[data-task]")));

function wanted(status) {
  const only = $("filter").value;
  return !only || (only === "finished") === FINAL.includes(status.state);
}

/** Show a task as it is now. */
export function show(status) {
  let card = state.cards.get(status.task);
  const before = card?.status.state;
  if (status.state === "removed" || !wanted(status)) {
    announce(status, before);
    return remove(card);
  }
  const other = card && (card.status.prompt !== status.prompt || card.status.seed !== status.seed);
  if (other) card = remove(card); // of a new record
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
  parts.open.ariaLabel = `Image ${status.task}, larger`;
  parts.progress.ariaLabel = `Progress of image ${status.task}`;
  item.querySelectorAll(".which").forEach((which) => put(which, ` (image ${status.task})`));
  parts.details.addEventListener("toggle", () => render(card));
  const older = [...$("images").children].find((other) => number(other) < status.task);
  $("images").insertBefore(item, older ?? null);
  state.cards.set(status.task, card);
  near.observe(item);
  return card;
}

export function remove(card) {
  if (!card) return;
  const { item, url } = card;
  const beside = item.nextElementSibling ?? item.previousElementSibling ?? $("images-title");
  if (item.contains(document.activeElement)) beside.focus();
  if (state.viewed === card) $("viewer").close();
  near.unobserve(item);
  item.remove();
  state.cards.delete(card.status.task);
  URL.revokeObjectURL(url);
  showEnd();
}

/** Let the oldest cards go when there are too many. */
export function trim() {
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
  if (!parts.details.open) return;
  parts.list.replaceChildren(...settingsOf(status).flatMap(([name, value]) => [term("dt", name), term("dd", value)]));
}

const ORDERED = ["prompt", "negative_prompt", "steps", "seed", "width", "height", "cfg_scale", "model"];

export const actions = {
  open: (card) => view(card),
  cancel: (card) => withdraw(card),
  retry: ({ status }) => order(Object.fromEntries(ORDERED.map((name) => [name, status[name] ?? undefined]))),
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
    const only = FINAL.includes(card.status.state) ? "" : "?unfinished=true"; // it may end at this moment
    const status = await ask(`api/tasks/${card.status.task}${only}`, { method: "DELETE" });
    if (status.state === "removed" || !FINAL.includes(card.status.state)) show(status); // events may have been faster
  } catch (error) {
    if (error.status === 404) remove(card);
    else if (error.status !== 409) put(card.parts.words, `${error.message}.`);
  }
}

const near = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const card = cardOf(target);
    if (card) card.near = isIntersecting;
  }
  loadPictures();
}, { rootMargin: "300px" });

export function loadPictures() {
  const lacks = ({ status, missing, url, loading }) => status.state === "done" && !missing && !url && !loading;
  const shown = [...$("images").children].map(cardOf).filter((card) => card.near);
  for (const card of [state.viewed, ...shown]) {
    if (state.loading >= LOADING) return;
    if (card && lacks(card) && card.tries < 5) loadPicture(card);
  }
}

async function loadPicture(card) {
  card.loading = true;
  state.loading += 1;
  try {
    const blob = await ask(`api/tasks/${card.status.task}/image`, { cache: "no-cache" }, (reply) => reply.blob());
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

export async function download(card) {
  if (!card.url) await loadPicture(card);
  if (!card.url) return;
  const name = card.status.prompt.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "");
  const link = document.createElement("a");
  link.href = card.url;
  link.download = `${[...name].slice(0, 60).join("") || "image"}-${card.status.task}.png`;
  link.click();
}

/** Tell a screen reader what became of a task that was ordered here. */
function announce(status, before) {
  if (!state.own.has(status.task) || status.state === before || !["running", ...FINAL].includes(status.state)) return;
  tell(`Image ${status.task}: ${status.state === "running" ? "is being made" : words(status, null)}`);
  if (FINAL.includes(status.state)) state.own.delete(status.task);
}
