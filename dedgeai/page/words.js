// Texts, numbers with units, and elements that hold them.

import { FINAL } from "./state.js";

export const $ = (id) => document.getElementById(id);
export const pause = (ms) => new Promise((done) => setTimeout(done, ms));

/** A task's state in words. `due` is when it should be done, in ms of performance.now(). */
export function words({ state: now, cancelling, ahead, step, steps, edge_server, delay_s, error }, due) {
  const left = due === null ? null : (due - performance.now()) / 1000;
  const soon = left === null ? "" : left < 0.5 ? ", any moment now" : `, about ${time(left)}`;
  if (cancelling && !FINAL.includes(now)) return "Stops at its next step";
  if (now === "waiting") return `Waits for a server${soon}`;
  if (now === "queued" && ahead === 0) return `Is next${soon}`;
  if (now === "queued") return `Waits${ahead === null ? "" : `, ${count(ahead)} before it`}${soon}`;
  if (now === "running") return `Step ${count(step ?? 0)} of ${count(steps)}${soon}`;
  if (now === "done") return `Made by server ${edge_server}${delay_s === null ? "" : ` in ${time(delay_s)}`}`;
  return now === "failed" ? `Failed: ${error ?? "the service does not say why"}` : "Cancelled";
}

export function settingsOf(status) {
  const rows = [
    ["Prompt", status.prompt], ["Model", status.model], ["Negative prompt", status.negative_prompt],
    ["Size", `${status.width} x ${status.height} pixels`], ["Steps", status.steps],
    ["Guidance (CFG)", status.cfg_scale], ["Seed", status.seed], ["Ordered", date(status.accepted_at)],
    ["Server", status.edge_server], ["Waited", status.queueing_s == null ? null : time(status.queueing_s)],
    ["Took in all", status.delay_s == null ? null : time(status.delay_s)], ["Image", status.task],
  ];
  return rows.filter(([, value]) => value != null && value !== "");
}

/** Set an element's text, if it is another: screen readers speak what is set in a live region. */
export function put(element, text) {
  if (element.textContent !== String(text)) element.textContent = text;
}

export const count = (value) => value.toLocaleString("en");
const date = (text) => text && new Date(text).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" });

export function time(seconds) {
  if (seconds > 0 && seconds < 1) return `${Number((1000 * seconds).toPrecision(3))} ms`;
  if (seconds === 0) return "0 s";
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds), minutes = Math.floor(whole / 60);
  if (whole < 100) return `${whole} s`;
  return minutes < 100 ? `${minutes} min ${whole % 60} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export const term = (tag, text) => Object.assign(document.createElement(tag), { textContent: text, dir: "auto" });

export function button(text, press) {
  const made = Object.assign(document.createElement("button"), { type: "button", textContent: text, dir: "auto" });
  made.addEventListener("click", press);
  return made;
}

/** Put a line into the live region, where it stays for long enough to be read out. */
export function tell(text) {
  const line = term("p", text);
  $("news").append(line);
  setTimeout(() => line.remove(), 5000);
}
