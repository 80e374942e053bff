// Small helpers around the document. Text goes in as text: nothing here, or anywhere on this page, parses HTML.

import { t } from "./texts.js";

export const byId = (id) => document.getElementById(id);

// Make an element. `props`: text, on<event>, and attributes; null and false leave an attribute out.
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "text") node.textContent = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== false));
  return node;
}

export function setHidden(id, hidden) {
  byId(id).hidden = hidden;
}

// Say something to those who listen to the page instead of looking at it.
export function announce(text) {
  byId("announcer").textContent = text;
}

// Show one view; its heading gets the focus, so that keyboard and screen reader start there.
export function showView(name, title) {
  for (const view of document.querySelectorAll("main > section")) view.hidden = view.id !== `view-${name}`;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.id === `nav-${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = t("title.page", { view: title });
  byId("main").scrollTop = 0;
  byId(`view-${name}`).querySelector("h1").focus({ preventScroll: true });
}

// Ask whether to go on; Escape means no.
export function confirmed(text) {
  const dialog = byId("confirm");
  byId("confirm-text").textContent = text;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

export function sleep(ms, signal) {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(signal.reason);
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}
