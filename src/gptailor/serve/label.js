"use strict";
const $ = (id) => document.getElementById(id);
const MANY = 20;
const UNREAD = 200; // milliseconds in which nobody reads a row: a second press is the first one's echo
let state = null, busy = false;

// A path as a shell takes it.
function quoted(path) {
  return /^[\w@%+=:,./-]+$/.test(path) ? path : `'${path.replaceAll("'", `'"'"'`)}'`;
}

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function setBusy(now) {
  busy = now;
  document.body.ariaBusy = String(now);
}

// One action at a time: a second key pressed too early would answer a row nobody has read.
async function act(path, body) {
  if (busy) return;
  setBusy(true);
  try {
    const response = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body || {}),
    });
    const content = await response.json();
    notice(content.error ? content.error.message : "");
    if (content.state || !content.error) show(content.state || content);
    else showLabels();
  } catch {
    notice("The server doesn't answer. All answers before this one are saved; start gptailor label again to go on.");
    showLabels();
  } finally {
    setTimeout(setBusy, UNREAD, false);
  }
}

function choose(name, button) {
  if (!state.row || busy) return;
  if (button) button.classList.add("taken");
  $("filter").value = "";
  act("/label", { place: state.row.place, label: name });
}

function show(next) {
  state = next;
  const { row, done, total, last } = state;
  $("count").textContent = `${done.toLocaleString("en")} of ${total.toLocaleString("en")} labelled`;
  $("progress").max = total;
  $("progress").value = done;
  $("row").hidden = !row;
  $("finished").hidden = Boolean(row);
  $("labels").hidden = !row;
  $("filter").hidden = !row || state.labels.length <= MANY;
  $("text").textContent = row ? row.text : "";
  $("text").scrollTop = 0;
  $("where").textContent = row ? `${row.source}, row ${row.row}` : "";
  for (const place of document.querySelectorAll(".out")) place.textContent = state.out;
  $("next").textContent = `gptailor fit ${quoted(state.out)} --text text --label label`;
  $("skip").disabled = !row || total - done < 2;
  $("undo").disabled = !last;
  showLast(last);
  showLabels();
}

function showLast(last) {
  $("last").replaceChildren();
  if (!last) return;
  if (last.what === "skip") $("last").append("Skipped: ");
  else $("last").append(element("b", "", last.label), ": ");
  $("last").append(last.text);
}

function showLabels() {
  const wanted = $("filter").value.trim().toLowerCase();
  const shown = state.labels.filter((label) => label.name.toLowerCase().includes(wanted));
  $("labels").replaceChildren(...shown.map((label) => {
    const button = element("button");
    button.type = "button";
    if (label.key) {
      const key = element("kbd", "", label.key);
      key.setAttribute("aria-hidden", "true");
      button.append(key);
      button.setAttribute("aria-keyshortcuts", label.key);
    }
    button.append(element("span", "name", label.name));
    if (label.count) button.append(element("span", "many", String(label.count)));
    button.addEventListener("click", () => choose(label.name, button));
    return button;
  }));
  return shown;
}

document.addEventListener("keydown", (event) => {
  if (!state || event.ctrlKey || event.altKey || event.metaKey || event.isComposing || event.repeat) return;
  if (event.target === $("filter")) {
    const first = showLabels()[0];
    if (event.key === "Enter" && first) { $("filter").blur(); choose(first.name); }
    if (event.key === "Escape") { $("filter").value = ""; $("filter").blur(); showLabels(); }
    return;
  }
  const key = event.key.toLowerCase();
  if (key === "/" && !$("filter").hidden) { event.preventDefault(); $("filter").focus(); return; }
  if (key === "u" || key === "backspace") { event.preventDefault(); $("undo").click(); return; }
  if (key === "s") { $("skip").click(); return; }
  const label = state.labels.find((one) => one.key && one.key === key);
  if (label) {
    const place = [...$("labels").children].find((one) => one.querySelector(".name").textContent === label.name);
    choose(label.name, place);
  }
});
$("filter").addEventListener("input", showLabels);
$("undo").addEventListener("click", () => act("/undo"));
$("skip").addEventListener("click", () => { if (state.row) act("/skip", { place: state.row.place }); });
fetch("/state").then((response) => response.json()).then(show, () => notice("The server can't be reached."));
