// A picture in full size, and the ones beside it. Start reading at `view`.

import { state } from "./state.js";
import { $, put } from "./words.js";
import { cardOf, loadPictures } from "./cards.js";

const hasPicture = (card) => card.status.state === "done" && !card.missing;
const viewable = () => [...$("images").children].map(cardOf).filter(hasPicture);

export function view(card) {
  state.viewed = card;
  showView();
  if (!$("viewer").open) $("viewer").showModal();
  loadPictures();
}

export function showView() {
  const { status, url, missing } = state.viewed, image = $("viewer-image");
  const all = viewable(), at = all.indexOf(state.viewed);
  put($("viewer-title"), status.prompt);
  put($("viewer-place"), `${at + 1} of ${all.length}`);
  put($("viewer-words"), url ? "" : missing || "Loading");
  image.hidden = !url;
  if (url) Object.assign(image, { src: url, alt: status.prompt });
  image.width = status.width * Math.max(1, Math.floor(512 / Math.max(status.width, status.height)));
  $("viewer-previous").ariaDisabled = String(at <= 0);
  $("viewer-next").ariaDisabled = String(at >= all.length - 1);
}

export function turn(by) {
  const all = viewable(), card = all[all.indexOf(state.viewed) + by];
  if (card) view(card);
}

export function putAway() {
  const card = state.viewed;
  state.viewed = null;
  $("viewer-image").removeAttribute("src");
  (card.item.isConnected ? card.parts.open : $("images-title")).focus();
}
