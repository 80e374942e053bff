// The words on the page, all from one file: texts.en.json. Another language is another file of that form.

let texts = {};

export async function loadTexts(language) {
  const response = await fetch(`/page/texts.${language}.json`);
  texts = await response.json();
}

// The text named `key`, with {name} replaced by values. An unknown key is a mistake of ours and shows itself.
export function t(key, values = {}) {
  const text = texts[key];
  if (text === undefined) throw new Error(`no text ${key}`);
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

export function hasText(key) {
  return key in texts;
}

// Put texts where the document's data attributes name them.
export function applyTexts(root) {
  for (const node of root.querySelectorAll("[data-text]")) node.textContent = t(node.dataset.text);
  for (const node of root.querySelectorAll("[data-label]")) node.setAttribute("aria-label", t(node.dataset.label));
  for (const node of root.querySelectorAll("[data-alt]")) node.setAttribute("alt", t(node.dataset.alt));
}

export function dateText(iso) {
  const date = new Date(iso);
  if (Number.isNaN(date.getTime())) return String(iso);
  return date.toLocaleString(document.documentElement.lang, { dateStyle: "medium", timeStyle: "short", hourCycle: "h23" });
}
