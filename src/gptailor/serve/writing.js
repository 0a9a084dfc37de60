"use strict";
// Models that write: conversations turn by turn, and prompts with how the model goes on.
const writing = { asking: null, turns: new Map(), drafts: new Map(), model: null };

function turnsOf(model) {
  if (!writing.turns.has(model.id)) writing.turns.set(model.id, []);
  return writing.turns.get(model.id);
}

// The parts of the page for one model; null puts them all away.
function showWriter(model) {
  if (writing.asking) stop();
  const before = writing.model;
  writing.model = model;
  if (model !== before) {  // what stands in the box is meant for one model; all classifiers share theirs
    writing.drafts.set(before && before.id, $("text").value);
    $("text").value = writing.drafts.get(model && model.id) || "";
  }
  const chat = Boolean(model && model.chat), several = Boolean(model && model.columns.length > 1);
  $("settings").hidden = !model;
  $("turns").hidden = !chat;
  $("anew").hidden = !chat || !turnsOf(model).length;
  $("written").hidden = !model || chat;
  $("system-label").hidden = !chat;
  $("columns").hidden = !several;
  $("text").hidden = $("text-label").hidden = several;
  $("go").textContent = model ? (chat ? "Send" : "Write") : "Classify";
  $("text-label").textContent = chat ? "Your message" : model ? (model.columns[0] || "Your text") : "Your text";
  $("text").placeholder = chat ? "Say something." : model ? "Type or paste what the model shall go on from." : "Type or paste a text. The answer follows as you write.";
  $("how").replaceChildren(...keysOf(model));
  if (!model || model === before) return;
  $("temperature").value = model.task === "completion" ? 0 : 0.8;
  $("length").value = model.max_tokens;
  $("length").max = model.context;
  $("length-help").textContent = `This model reads prompts of up to ${model.max_prompt_tokens.toLocaleString("en")} tokens; with their answer they have up to ${model.context.toLocaleString("en")}.`;
  $("columns").replaceChildren(...(several ? model.columns.map(columnField) : []));
  if (chat) showTurns(model);
  else showWritten("", "");
  ($("columns").querySelector("textarea") || $("text")).focus();
}

function keysOf(model) {
  const line = element("span", "keys"), key = (name) => element("kbd", "", name);
  line.append(key("Enter"), model ? (model.chat ? " sends, " : " writes, ") : " answers at once, ", key("Shift"), " + ", key("Enter"), " starts a new line");
  if (model) line.append(", ", key("Esc"), " stops");
  line.append(".");
  return [line];
}

function columnField(name) {
  const field = element("div", "column"), label = element("label", "for-text", name), text = element("textarea");
  text.id = `column-${name}`;
  text.name = name;
  label.htmlFor = text.id;
  text.addEventListener("keydown", onKey);
  field.append(label, text);
  return field;
}

function numberIn(id) {
  const value = $(id).valueAsNumber;
  return Number.isFinite(value) ? value : null;
}

// The pieces of a stream of server-sent events.
async function* piecesOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("The connection broke off.");
    const lines = (rest + value).split("\n\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue; // a comment: the answer goes on
      const data = line.slice("data: ".length);
      if (data === "[DONE]") return;
      const piece = JSON.parse(data);
      if (piece.error) throw new Error(piece.error.message);
      yield piece;
    }
  }
}

// Asks and hands over the text as it comes. Gives the last word on it, or null where nothing was written.
async function stream(path, body, onText) {
  const asking = writing.asking = new AbortController();
  $("go").textContent = "Stop";
  let text = "", reason = "", tokens = 0, truncated = false;
  try {
    const settings = { model: writing.model.id, temperature: numberIn("temperature"), max_tokens: numberIn("length") };
    const options = {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ ...settings, ...body, stream: true, stream_options: { include_usage: true } }),
    };
    const response = await request(path, options, asking.signal);
    if (!response.ok) {
      const content = await response.json();
      if (response.status === 401) askForKey(); else notice(content.error.message);
      return null;
    }
    for await (const piece of piecesOf(response)) {
      if (piece.usage) tokens = piece.usage.completion_tokens;
      const choice = piece.choices[0];
      if (!choice) continue;
      reason = choice.finish_reason || reason;
      truncated = choice.truncated || truncated;
      const more = choice.delta ? choice.delta.content : choice.text;
      if (more) onText(text += more);
    }
  } catch (error) {
    if (!asking.signal.aborted) notice(error.message || "The answer could not be read.");
    if (!text) return null;
    reason = asking.signal.aborted ? "stopped" : "broken";
  } finally {
    if (writing.asking === asking) writing.asking = null;
    if (writing.model) $("go").textContent = writing.model.chat ? "Send" : "Write";
  }
  const unit = tokens === 1 ? "1 token" : `${tokens} tokens`;
  const ends = { stop: "", length: `Cut off after ${unit}. Settings let it write more.`, stopped: "You stopped it.", broken: "It broke off here." };
  const ended = reason === "stop" && !text.trim() ? "The model ended at once: it wrote nothing." : ends[reason];
  const about = [ended, truncated ? "Your text is longer than the model reads: part of it was left out." : ""].filter(Boolean).join(" ");
  $("spoken").textContent = [text, about].filter(Boolean).join(" ");
  return { text, about };
}

function stop() {
  if (writing.asking) writing.asking.abort(new Error("stopped"));
}

function whole(text) {
  return text.toWellFormed ? text.toWellFormed() : text;
}

async function write() {
  const model = writing.model;
  if (writing.asking || !model) return;
  if (model.chat) return talk(model);
  const fields = [...$("columns").querySelectorAll("textarea")];
  const text = fields.length ? fields.map((field) => field.value.trim()).filter(Boolean).join(" · ") : whole($("text").value);
  if (!text.trim()) return;
  const values = Object.fromEntries(fields.map((field) => [field.name, whole(field.value)]));
  const given = model.task === "language" ? text : "";
  showWritten(given, "", "", true);
  const got = await stream("/v1/completions", fields.length ? { prompt: "", values } : { prompt: text }, (more) => {
    if (writing.model === model) showWritten(given, more, "", true);
  });
  if (writing.model !== model) return;
  showWritten(given, got ? got.text : "", got ? got.about : "");
  if (got) keepEntry({ text, model: model.id, got: got.text.trim() || "nothing", values: fields.length ? values : null, given, written: got });
}

function showWritten(given, text, about, busy = false) {
  const nothing = !given && !text && !about && !busy;
  $("unwritten").hidden = !nothing;
  $("prose").replaceChildren(element("span", "given", given), given ? text : text.trimStart());
  $("prose").classList.toggle("writing", busy);
  $("written").setAttribute("aria-busy", String(busy));
  note("ended", about || "");
}

// Called when an earlier answer is chosen again.
function putBack(entry) {
  for (const field of $("columns").querySelectorAll("textarea")) field.value = (entry.values || {})[field.name] || "";
  showWritten(entry.given, entry.written.text, entry.written.about);
}

async function talk(model) {
  const said = whole($("text").value);
  if (!said.trim()) return;
  const turns = turnsOf(model), answer = { role: "assistant", content: "", busy: true };
  const before = turns.filter((turn, place) => turn.content.trim() && (turn.role === "assistant" || turns[place + 1].content.trim()));
  const system = whole($("system").value).trim() ? [{ role: "system", content: whole($("system").value) }] : [];
  const messages = [...system, ...before, { role: "user", content: said }].map(({ role, content }) => ({ role, content }));
  turns.push({ role: "user", content: said }, answer);
  $("text").value = "";
  showTurns(model);
  const got = await stream("/v1/chat/completions", { messages }, (more) => { answer.content = more; showTurns(model); });
  answer.busy = false;
  if (got) {
    answer.content = got.text;
    answer.about = got.about;
  } else {
    turns.splice(turns.indexOf(answer) - 1, 2);
    if (writing.model === model && !$("text").value) $("text").value = said;
  }
  showTurns(model);
}

function showTurns(model) {
  if (writing.model !== model) return;
  const turns = turnsOf(model), list = $("turns"), bottom = window.innerHeight + window.scrollY >= document.body.scrollHeight - 120;
  while (list.children.length > turns.length) list.lastChild.remove();
  turns.forEach((turn, place) => {
    const row = list.children[place] || list.appendChild(element("li"));
    row.className = turn.busy ? `${turn.role} writing` : turn.role;
    const who = element("span", "silent", turn.role === "user" ? "You: " : "Model: ");
    row.replaceChildren(who, turn.content, ...(turn.about ? [element("span", "about", turn.about)] : []));
  });
  $("anew").hidden = !turns.length;
  if (bottom && turns.length) window.scrollTo(0, document.body.scrollHeight);
}

function onKey(event) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  write();
}

$("anew").addEventListener("click", () => {
  stop();
  turnsOf(writing.model).length = 0;
  showTurns(writing.model);
  notice("");
  $("text").focus();
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") stop(); });
