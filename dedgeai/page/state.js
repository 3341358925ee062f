// What the page knows: one object that all parts read and change.

export const FINAL = ["done", "failed", "cancelled"];

export const STORAGE = `dedgeai${location.pathname}`; // services below other paths of the same host have their own

export const state = {
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
