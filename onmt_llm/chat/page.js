// The part of the chat page that lives in the browser: it stores conversations, lists them, and puts buttons beside
// messages. Gradio runs it once, with the component `store`: `props.value` is {conversation, busy}, and
// `trigger("submit", event)` starts an action of the server (actions.py). All texts are inserted as text, never as HTML.
const PREFIX = "onmt_llm.conversation.", CURRENT = "onmt_llm.current", SAVE_MS = 1000;
const ICONS = {
  copy: "M8 8h12v12H8zM16 8V4H4v12h4",
  edit: "M4 20h4L20 8l-4-4L4 16zM14 6l4 4",
  retry: "M20 12a8 8 0 1 1-2.5-5.8M20 4v5h-5",
  delete: "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13",
  continue: "M5 5l7 7-7 7M13 5l7 7-7 7",
};
const LABELS = {
  copy: "Copy message", edit: "Edit message", retry: "Answer again", delete: "Delete question and answer",
  continue: "Continue the answer",
};
// Gradio's element of the page
const root = document.querySelector(".gradio-container") || document.body;
let savedAt = 0, shownList = "";

// the store: a conversation is an entry of localStorage, so that two tabs do not overwrite each other's

function load(id) {
  try { return JSON.parse(localStorage.getItem(PREFIX + id)); } catch { return null; }
}

function all() {
  const found = [];
  for (let i = 0; i < localStorage.length; i++) {
    const key = localStorage.key(i);
    if (key.startsWith(PREFIX)) found.push(load(key.slice(PREFIX.length)));
  }
  return found.filter(each => each && each.id).sort((one, other) => other.changed - one.changed);
}

function save(conversation) {
  try {
    localStorage.setItem(PREFIX + conversation.id, JSON.stringify({ ...conversation, changed: Date.now() }));
  } catch {
    announce("The browser's store is full: export and delete conversations.", true);
  }
}

const length = conversation => conversation.columns[0].length;

function keep() {
  const { conversation, busy, imported = [] } = props.value;
  imported.forEach(save);
  if (imported.length) announce(`${imported.length} imported`);
  if (!conversation.id) return;
  if (!length(conversation)) return forget(conversation.id);
  remember(conversation.id);
  if (busy && Date.now() - savedAt < SAVE_MS) return;
  savedAt = Date.now();
  const { changed, ...stored } = load(conversation.id) || {};
  if (JSON.stringify(stored) !== JSON.stringify(conversation)) save(conversation);
}

// a tab keeps its conversation when it is loaded again; a new tab starts with the one that was used last
function remember(id) {
  sessionStorage.setItem(CURRENT, id);
  localStorage.setItem(CURRENT, id);
}

function forget(id) {
  localStorage.removeItem(PREFIX + id);
}

function open(conversation) {
  // at once, since the next question may be sent before the server has shown the conversation
  props.value = { ...props.value, conversation, busy: false };
  trigger("submit", { action: "open", conversation });
}

const blank = () => ({ id: "", title: "", system: props.value.conversation.system, columns: [[]] });

// small parts of the page

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function icon(kind) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", ICONS[kind]);
  svg.append(path);
  return svg;
}

function button(kind, label, action) {
  const made = element("button", { type: "button", className: "icon", title: label, onclick: action }, icon(kind));
  made.setAttribute("aria-label", label);
  made.dataset.kind = kind;
  return made;
}

function announce(text, isError = false) {
  let place = document.getElementById("announcer");
  if (!place) {
    place = element("div", { id: "announcer" });
    place.setAttribute("role", "status");
    root.append(place);
  }
  place.textContent = text;
  place.classList.toggle("error", isError);
  clearTimeout(announce.timer);
  announce.timer = setTimeout(() => { place.textContent = ""; }, isError ? 10000 : 3000);
}

// asks for a text, or with `text` null for a confirmation; resolves to null if it is cancelled
function ask(title, text, accept, multiline = false) {
  return new Promise(resolve => {
    const field = text === null ? null : element(multiline ? "textarea" : "input", { value: text });
    const form = element("form", { method: "dialog" }, element("h2", { textContent: title, id: "dialog-title" }));
    if (field) { field.setAttribute("aria-labelledby", "dialog-title"); form.append(field); }
    form.append(element("p", {},
      element("button", { type: "submit", value: "", textContent: "Cancel", formNoValidate: true }),
      element("button", { type: "submit", value: "accept", className: "primary", textContent: accept })));
    const dialog = element("dialog", { className: "chat-dialog" }, form);
    dialog.setAttribute("aria-labelledby", "dialog-title");
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "accept" ? (field ? field.value : "") : null);
    });
    // Enter in a line of text accepts; the first button of a form would otherwise cancel
    if (field && !multiline) field.addEventListener("keydown", event => {
      if (event.key === "Enter") { event.preventDefault(); dialog.close("accept"); }
    });
    root.append(dialog);
    dialog.showModal();
    if (field) { field.focus(); field.select(); }
  });
}

async function copy(text) {
  try { await navigator.clipboard.writeText(text); } catch {
    const field = element("textarea", { value: text });  // a page that is not served over https has no clipboard
    root.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  announce("Copied");
}

function download(name, text) {
  const link = element("a", { href: URL.createObjectURL(new Blob([text])), download: name });
  link.click();
  URL.revokeObjectURL(link.href);
}

function choose(accept, use) {
  const input = element("input", { type: "file", accept });
  input.onchange = async () => {
    const file = input.files[0];
    if (!file) return;
    if (file.size > 4e6) return announce(`${file.name} must be at most 4 MB.`, true);
    try {
      use(new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer()), file.name);
    } catch { announce(`${file.name} must be a text file in UTF-8, but is not.`, true); }
  };
  input.click();
}

// what the buttons do

function act(kind, index, column) {
  const turn = props.value.conversation.columns[column][index];
  if (kind === "copy") return copy(turn.content);
  if (kind === "edit") {
    const accept = index % 2 ? "Save" : "Send";
    return ask("Edit message", turn.content, accept, true).then(text => {
      if (text !== null && text.trim()) trigger("submit", { action: "edit", index, column, text });
    });
  }
  trigger("submit", { action: kind, index, column });
}

const commands = {
  new() { sessionStorage.setItem(CURRENT, ""); open(blank()); focusBox(); closeOnPhone(); },
  open(id) { const found = load(id); if (found) { open(found); focusBox(); closeOnPhone(); } else list(); },
  async rename(id) {
    const found = load(id), title = await ask("Rename conversation", found.title, "Rename");
    if (title === null || !title.trim()) return;
    save({ ...found, title: title.trim() });
    if (id === props.value.conversation.id) {
      props.value = { ...props.value, conversation: { ...props.value.conversation, title: title.trim() } };
    }
    list();
  },
  async delete(id) {
    if (await ask(`Delete “${load(id).title}”?`, null, "Delete") === null) return;
    forget(id);
    if (id === props.value.conversation.id) commands.new();
    list();
  },
  import() { choose(".jsonl", text => trigger("submit", { action: "import", text })); },
  export() {
    const lines = all().flatMap(({ title, system, columns }) => columns.map(column => JSON.stringify({
      title,
      messages: [...(system ? [{ role: "system", content: system }] : []),
                 ...column.map(({ role, content }) => ({ role, content }))],
    })));
    if (lines.length) download("conversations.jsonl", lines.join("\n") + "\n");
    else announce("There is no conversation yet.", true);
  },
  attach() {
    choose("text/*,.md,.csv,.json,.jsonl,.py,.yaml,.yml,.log", (text, name) => {
      const box = document.querySelector("#message textarea");
      const fence = "`".repeat(Math.max(3, ...(text.match(/`+/g) || []).map(ticks => ticks.length + 1)));
      box.value = `${name}:\n${fence}\n${text.replace(/\n$/, "")}\n${fence}\n\n${box.value}`;
      box.dispatchEvent(new Event("input", { bubbles: true }));
      box.focus();
    });
  },
};

const focusBox = () => document.querySelector("#message textarea")?.focus();

// as in page.css: on a narrow window the list covers the page
const isNarrow = () => matchMedia("(max-width: 56rem)").matches;

// Gradio draws the sidebar in its own time, and may undo a click of that time: it is repeated until the list is as wanted
let listWanted = !isNarrow(), clicking = false;
function settleList() {
  const toggle = document.querySelector("#history .toggle-button");
  if (!toggle || toggle.parentElement.classList.contains("open") === listWanted) return;
  clicking = true;
  toggle.click();
  clicking = false;
}

function closeOnPhone() {
  if (!isNarrow()) return;
  listWanted = false;
  settleList();
}

// drawing

function list() {
  const place = document.querySelector("#conversations ul");
  if (!place) return;
  const current = props.value.conversation.id, entries = all();
  const state = JSON.stringify([current, entries.map(({ id, title }) => [id, title])]);
  if (state === shownList && place.childElementCount === entries.length) return;
  shownList = state;
  place.replaceChildren(...entries.map(({ id, title }) => {
    const name = title || "Untitled";
    const opener = element("button", { type: "button", className: "title", textContent: name, title: name });
    opener.onclick = () => commands.open(id);
    if (id === current) opener.setAttribute("aria-current", "true");
    return element("li", {}, opener,
      button("edit", `Rename ${name}`, () => commands.rename(id)),
      button("delete", `Delete ${name}`, () => commands.delete(id)));
  }));
}

function name(selector, label) {
  const toggle = document.querySelector(selector);
  toggle?.setAttribute("aria-label", label);
  toggle?.setAttribute("aria-expanded", toggle.parentElement.classList.contains("open"));
}

function kinds(index, turns) {
  if (index % 2 === 0) return ["copy", "edit", "delete"];
  return ["copy", "edit", "retry", ...(index === turns.length - 1 && turns[index].truncated ? ["continue"] : [])];
}

function decorate() {
  const { conversation, busy } = props.value;
  settleList();
  name("#history .toggle-button", "List of conversations");
  name("#settings .toggle-button", "Settings");
  document.querySelectorAll(".examples[role=list]").forEach(each => {  // its children are buttons
    each.setAttribute("role", "group");
    each.setAttribute("aria-label", "Examples");
  });
  // a screen reader reads an answer when it is complete
  document.querySelectorAll(".conversation [role=log]").forEach(log => log.setAttribute("aria-busy", busy));
  document.querySelectorAll(".conversation").forEach((chat, column) => {
    const turns = conversation.columns[column] || [];
    chat.querySelectorAll(".message-row").forEach((row, index) => {
      const wanted = busy || !turns[index] ? "" : [index, ...kinds(index, turns)].join(" ");
      let bar = row.querySelector(":scope > .actions");
      if ((bar ? bar.dataset.state : "") === wanted) return;
      bar?.remove();
      if (!wanted) return;
      bar = element("div", { className: "actions" },
        ...kinds(index, turns).map(kind => button(kind, LABELS[kind], () => act(kind, index, column))));
      bar.dataset.state = wanted;
      bar.setAttribute("role", "group");
      bar.setAttribute("aria-label", `Message ${index + 1}`);
      row.append(bar);
    });
    // for the keyboard: whatever scrolls sideways can be focused; and a header cell without text is no header
    chat.querySelectorAll("pre:not([tabindex]), table:not([tabindex])").forEach(each => { each.tabIndex = 0; });
    chat.querySelectorAll("th:empty").forEach(cell => cell.replaceWith(document.createElement("td")));
    chat.querySelectorAll(".copy_code_button:not([aria-label])").forEach(each => each.setAttribute("aria-label", "Copy code"));
  });
}

// an update of an earlier answer that arrives after the page of a later action is undone: that page is shown again
let newest = props.value;
function refresh() {
  if (props.value.number < newest.number) {
    const { conversation, busy } = newest;
    if (!busy) trigger("submit", { action: "open", conversation });
    return;
  }
  newest = props.value;
  keep(); list(); decorate();
}

watch("value", refresh);
document.addEventListener("click", event => {
  const command = event.target.closest?.("[data-command]")?.dataset.command;
  if (command) commands[command]();
  if (!clicking && event.target.closest?.("#history .toggle-button")) listWanted = !listWanted;
});
document.addEventListener("keydown", event => {
  const sends = event.key === "Enter" && !event.shiftKey && event.target.matches?.("#message textarea");
  if (sends && props.value.busy) { event.preventDefault(); event.stopPropagation(); }
}, true);
window.addEventListener("storage", list);
window.addEventListener("pagehide", () => { savedAt = 0; keep(); });
let pending = false;
new MutationObserver(() => {
  if (pending) return;
  pending = true;
  requestAnimationFrame(() => { pending = false; list(); decorate(); });
}).observe(root, { childList: true, subtree: true, attributeFilter: ["class"] });

const last = load(sessionStorage.getItem(CURRENT) ?? localStorage.getItem(CURRENT));
if (last && length(last)) open(last);
list();
decorate();
