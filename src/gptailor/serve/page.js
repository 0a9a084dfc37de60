"use strict";
const $ = (id) => document.getElementById(id);
const PAUSE = 300, SETTLED = 1800, SHOWN = 8, KEPT = 8;
const state = { key: "", models: [], asking: null, timer: 0, keeper: 0, result: null, text: "", all: false, past: [] };

function percent(share) {
  if (share > 0 && share < 0.001) return "< 0.1 %";
  if (share < 1 && share > 0.999) return "> 99.9 %";
  return (100 * share).toFixed(1) + " %";
}

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function note(id, text) {
  $(id).textContent = text;
  $(id).hidden = !text;
}

// What is said aloud stands apart, so that a countdown is read once and not every second.
function notice(text, aloud = true) {
  note("notice", text);
  if (text && aloud) $("spoken").textContent = text;
}

// One request, patient: waits where the server says so, asks for the key, tries again when offline.
async function request(path, options, signal) {
  for (let attempt = 0; ; attempt += 1) {
    let response = null;
    try {
      const headers = { ...options.headers };
      if (state.key) headers.Authorization = "Bearer " + encodeKey(state.key);
      response = await fetch(path, { ...options, headers, signal, cache: "no-store" });
    } catch (error) {
      if (signal.aborted) throw error;
    }
    if (!response) {
      await countDown("Can't reach the server.", Math.min(2 + attempt * 2, 15), signal);
    } else if (response.status === 429 || response.status === 503) {
      const said = Number(response.headers.get("retry-after"));
      const words = response.status === 429 ? "The server is busy." : "The server can't answer right now.";
      await countDown(words, Number.isFinite(said) && said > 0 ? said : 2, signal);
    } else {
      notice("");
      return response;
    }
  }
}

// A header carries bytes, so letters beyond ASCII go as UTF-8.
function encodeKey(key) {
  return String.fromCharCode(...new TextEncoder().encode(key));
}

async function countDown(words, seconds, signal) {
  const all = Math.ceil(seconds);
  for (let left = all; left > 0; left -= 1) {
    notice(`${words} Trying again in ${left}\u00a0s.`, left === all);
    await new Promise((resolve, reject) => {
      const done = () => { clearTimeout(timer); window.removeEventListener("online", done); resolve(); };
      const timer = setTimeout(done, 1000);
      window.addEventListener("online", done);
      signal.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
    });
  }
}

function askForKey() {
  const again = state.key !== "";
  state.key = "";
  $("key-form").hidden = false;
  notice(again ? "That key isn't right." : "");
  $("key").focus();
}

async function loadModels() {
  const signal = new AbortController().signal;
  const response = await request("/v1/models", {}, signal);
  if (response.status === 401) return askForKey();
  $("key-form").hidden = true;
  state.models = (await response.json()).data;
  $("model").replaceChildren(...state.models.map((model) => new Option(model.id, model.id)));
  $("picker").hidden = state.models.length < 2;
  if (state.models.length === 1) $("title").textContent = `Try ${state.models[0].id}`;
  showModel();
}

// A model that writes has parts of the page of its own: see writing.js.
function classifies() {
  const model = currentModel();
  return !model || model.task === "classification";
}

function showModel() {
  const classifying = classifies();
  $("answer").hidden = !classifying;
  showWriter(classifying ? null : currentModel());
  showHistory();
  if (!classifying) return show(null);
  showLabels();
  if ($("text").value.trim()) ask();
}

function currentModel() {
  return state.models.find((model) => model.id === $("model").value) || state.models[0];
}

async function ask() {
  clearTimeout(state.timer);
  clearTimeout(state.keeper);
  if (state.asking) state.asking.abort();
  const text = $("text").value;
  if (!text.trim() || !state.models.length) {
    notice("");
    if (!text.trim()) show(null);
    return;
  }
  const asking = state.asking = new AbortController();
  $("shown").classList.add("stale");
  $("answer").setAttribute("aria-busy", "true");
  try {
    const model = currentModel();
    const whole = text.toWellFormed ? text.toWellFormed() : text;
    const options = {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ model: model.id, input: whole }),
    };
    const response = await request("/classify", options, asking.signal);
    const content = await response.json();
    if (response.status === 401) return askForKey();
    if (!response.ok) {
      show(null);
      return notice(content.error.message);
    }
    state.text = text;
    show(content.data[0], model);
    state.keeper = setTimeout(keep, SETTLED);
    return true;
  } catch (error) {
    if (!asking.signal.aborted) { show(null); notice("The answer could not be read."); }
  } finally {
    if (state.asking === asking) {
      $("shown").classList.remove("stale");
      $("answer").removeAttribute("aria-busy");
    }
  }
}

function show(result, model) {
  state.result = result && { ...result, model };
  $("shown").hidden = !result;
  $("empty").hidden = Boolean(result);
  $("answer").classList.toggle("unsure", Boolean(result && result.abstained));
  if (!result) { $("spoken").textContent = ""; return showLabels(); }
  const name = named(result), top = share(result);
  $("label").textContent = result.abstained ? "Not sure" : name;
  $("top").textContent = result.abstained ? "" : top;
  const bound = model.threshold === null ? "" : ` This model needs ${percent(model.threshold)} to be sure.`;
  note("unsure", result.abstained ? `The best guess is ${name}, at ${top}.${bound}` : "");
  $("cut").hidden = !result.truncated;
  const said = top ? `${name}, ${top}` : name;
  $("spoken").textContent = result.abstained ? `Not sure. Best guess ${said}` : said;
  showBars();
}

// A label, several labels, or a number; only one label alone has one probability.
function named(result) {
  if (result.value !== null) return result.label;
  return result.labels.length ? result.labels.join(", ") : "No label";
}

function share(result) {
  return result.labels.length === 1 ? percent(result.label_probs[result.labels[0]]) : "";
}

function showLabels() {
  if (!state.models.length || !classifies()) return;
  if (currentModel().answer === "score") { $("empty").textContent = "The model answers with a number."; return; }
  const names = currentModel().label_names, first = names.slice(0, SHOWN).join(", ");
  const rest = names.length > SHOWN ? `, and ${names.length - SHOWN} more` : "";
  $("empty").textContent = `The model knows ${names.length} labels: ${first}${rest}.`;
}

function showBars() {
  const ranked = Object.entries(state.result.label_probs).sort((a, b) => b[1] - a[1]);
  const visible = state.all ? ranked : ranked.slice(0, SHOWN);
  const bars = $("bars");
  while (bars.children.length > visible.length) bars.lastChild.remove();
  visible.forEach(([name, probability], place) => {
    const row = bars.children[place] || bars.appendChild(newBar());
    row.className = state.result.labels.includes(name) ? "first" : "";
    row.querySelector(".name").textContent = name;
    row.querySelector(".share").textContent = percent(probability);
    row.title = String(probability);
    const bar = row.querySelector(".bar");
    requestAnimationFrame(() => { bar.style.width = 100 * probability + "%"; });
  });
  $("more").hidden = ranked.length <= SHOWN;
  $("more").textContent = state.all ? "Show fewer" : `Show all ${ranked.length} labels`;
  $("more").setAttribute("aria-expanded", String(state.all));
}

function newBar() {
  const row = element("li"), track = element("div", "track");
  track.setAttribute("aria-hidden", "true");
  track.append(element("div", "bar"));
  row.append(element("span", "name"), element("span", "share"), track);
  return row;
}

// Keeps the answer on the page in the list; a text that grew out of the newest entry takes its place.
function keep() {
  const { result, text } = state;
  if (!result) return;
  const got = result.abstained ? "Not sure" : [named(result), share(result)].filter(Boolean).join(" · ");
  keepEntry({ text, model: result.model.id, got });
}

function keepEntry(entry) {
  const text = entry.text;
  const newest = state.past[0];
  if (newest && newest.model === entry.model && text.startsWith(newest.text)) state.past.shift();
  state.past = [entry, ...state.past.filter((old) => old.text !== text || old.model !== entry.model)].slice(0, KEPT);
  $("past").replaceChildren(...state.past.map(pastRow));
  showHistory();
}

function showHistory() {
  $("history").hidden = !state.past.length || Boolean(writing.model && writing.model.chat);
}

function pastRow(entry) {
  const row = element("li"), button = element("button");
  button.type = "button";
  const got = entry.got;
  button.append(element("span", "said", entry.text), element("span", "got", got));
  button.setAttribute("aria-label", `${entry.text}: ${got}. Put this text back`);
  button.addEventListener("click", () => {
    $("model").value = entry.model;
    showModel();
    $("text").value = entry.text;
    $("text").focus();
    if (classifies()) ask(); else putBack(entry);
  });
  row.append(button);
  return row;
}

async function askAndKeep() {
  if (!classifies()) return write();
  if (await ask()) { clearTimeout(state.keeper); keep(); }
}

$("text").addEventListener("input", () => {
  clearTimeout(state.timer);
  clearTimeout(state.keeper);
  if (classifies()) state.timer = setTimeout(ask, PAUSE);
});
$("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  askAndKeep();
});
$("text-form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (writing.asking) stop(); else askAndKeep();
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.key = $("key").value.trim();
  $("key").value = "";
  loadModels().then(() => { if (state.models.length) $("text").focus(); });
});
$("model").addEventListener("change", showModel);
$("more").addEventListener("click", () => { state.all = !state.all; showBars(); });
window.addEventListener("DOMContentLoaded", loadModels);
