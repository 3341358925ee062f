// The form: what may be ordered, what is wrong with an order, and sending it. Start reading at `submit`.

import { state, STORAGE } from "./state.js";
import { $, button, count, put, tell } from "./words.js";
import { ask, Refusal } from "./requests.js";
import { inTurn, refilter } from "./history.js";
import { takeTask } from "./cards.js";

const LARGEST_SEED = 2 ** 31 - 1;

export async function loadModel() {
  const model = (state.model = await ask("api/model"));
  const { limits } = model;
  document.title = `${model.name} - DEdgeAI`;
  put($("model-words"), model.words);
  $("examples").replaceChildren(...model.examples.map((example) => button(example, () => fill({ prompt: example }))));
  $("examples").hidden = !model.examples.length;
  $("images-wanted").max = limits.max_images;
  $("steps").max = limits.max_steps;
  $("seed").max = LARGEST_SEED;
  const names = Object.keys(model.models ?? {}), chosen = $("model").value;
  $("model").replaceChildren(...names.map((name) => new Option(name)));
  if (names.includes(chosen)) $("model").value = chosen;
  $("model-field").hidden = names.length < 2;
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

export function again({ prompt, negative_prompt, steps, seed, width, height, cfg_scale, model }) {
  addSize([width, height]);
  $("settings").open = true;
  fill({ prompt, negative_prompt, steps, seed, size: `${width}x${height}`, cfg_scale, model, images: 1 });
  $("make-title").scrollIntoView();
}

export function summarise() {
  const { size, steps, seed } = $("form").elements;
  const from = seed.value ? `seed ${seed.value}` : "random seed";
  put($("settings-words"), `${size.value.replace("x", " x ")}, ${steps.value} steps, ${from}`);
}

/** What is wrong with a field's value, in words; "" if nothing. */
export function mistake(field) {
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
  if (text === "" && !field.validity.badInput) return ""; // the service's own
  if (field.name === "seed") return whole(0, LARGEST_SEED);
  if (field.name === "cfg_scale") return number >= 0 ? "" : "This must be a number, 0 or more.";
  return "";
}

export function complain(field, words) {
  const id = `${field.id}-wrong`;
  const line = $(id) ?? Object.assign(document.createElement("p"), { id, className: "wrong" });
  if (!line.isConnected) field.after(line);
  put(line, words);
  const described = (field.getAttribute("aria-describedby") ?? "").split(" ").filter((one) => one && one !== id);
  field.setAttribute("aria-describedby", (words ? [...described, id] : described).join(" "));
  if (words) field.setAttribute("aria-invalid", "true");
  else field.removeAttribute("aria-invalid");
}

export async function submit(event) {
  event?.preventDefault();
  if (!state.model) {
    try {
      await loadModel(); // the limits are on their way
    } catch (error) {
      return problem(error);
    }
  }
  const fields = [...$("form").elements].filter((field) => field.name);
  fields.forEach((field) => complain(field, mistake(field)));
  const wrong = fields.find((field) => field.hasAttribute("aria-invalid"));
  if (wrong) {
    if ($("settings").contains(wrong)) $("settings").open = true;
    return wrong.focus();
  }
  const { prompt, negative_prompt, steps, seed, size, cfg_scale, images, model } = $("form").elements;
  const [width, height] = size.value.split("x").map(Number);
  const optional = { seed: seed.value, cfg_scale: cfg_scale.value };
  for (const name in optional) optional[name] = optional[name] === "" ? undefined : Number(optional[name]);
  await order({
    prompt: prompt.value.trim(), negative_prompt: negative_prompt.value.trim(), steps: Number(steps.value),
    width, height, images: Number(images.value), model: model.value || undefined, ...optional,
  });
}

/** Order images. The same order keeps its key until an answer says what became of it, so none is made twice. */
export async function order(wanted) {
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
  tasks.forEach(async (task) => {
    state.own.add(task);
    if (state.cards.has(task)) return;
    const status = task === first.task ? first : await ask(`api/tasks/${task}`).catch(() => null);
    if (status && !state.cards.has(task)) takeTask(status);
  });
  tell(tasks.length > 1 ? `${tasks.length} images are ordered` : `Image ${first.task} is ordered`);
  $("images-title").scrollIntoView({ block: "nearest" });
}

/** crypto.randomUUID exists only with TLS or on the loopback. */
const randomKey = () => crypto.getRandomValues(new Uint32Array(4)).join("-");

export const problem = (error) => put($("problem"), error instanceof Refusal && !error.status
  ? `${error.message}. Nothing is lost; try again in a moment.` : error.message ?? error);

export function keepSettingsOpen() {
  const name = `${STORAGE}settings`;
  $("settings").open = localStorage.getItem(name) === "open";
  $("settings").addEventListener("toggle", () => localStorage.setItem(name, $("settings").open ? "open" : ""));
}
