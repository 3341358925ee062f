// Tasks from the service: the newest, older ones, and all that are shown anew. Start reading at `catchUp`.

import { state } from "./state.js";
import { $ } from "./words.js";
import { ask } from "./requests.js";
import { loadPictures, oldest, remove, show, trim } from "./cards.js";
import { showCluster } from "./servers.js";

const PAGE = 50; // tasks of the history that are asked for at once

export function inTurn(work) {
  const done = state.turn.then(work);
  state.turn = done.catch(() => {});
  return done;
}

/** Ask for what is shown, and no less than the newest page; what is not there any more goes. */
export async function catchUp() {
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

export async function more() {
  const page = await list(state.next);
  state.next = page.next;
  page.tasks.forEach(show);
  trim();
  (state.cards.get(page.tasks[0]?.task)?.item ?? $("images-title")).focus();
}

export function refilter() {
  state.cards.forEach(remove);
  return catchUp();
}
