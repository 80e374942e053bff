// The ECGs that were read: list, open, delete.

import { request, requestJson } from "./api.js";
import { announce, byId, confirmed, el, setHidden, showView } from "./dom.js";
import { sentence } from "./findings.js";
import { dateText, t } from "./texts.js";

const AT_ONCE = 50;

export class History {
  constructor() {
    this.last = null; // id of the oldest one shown
    this.leaving = new AbortController();
    byId("more").addEventListener("click", () => this.load());
    byId("history-again").addEventListener("click", () => this.load());
  }

  show() {
    this.last = null;
    byId("studies").replaceChildren();
    showView("history", t("history.title"));
    return this.load();
  }

  stop() {
    this.leaving.abort();
  }

  async load() {
    this.leaving.abort();
    const { signal } = (this.leaving = new AbortController());
    byId("history-state").textContent = t("history.loading");
    setHidden("history-again", true);
    const before = this.last === null ? "" : `&before=${encodeURIComponent(this.last)}`;
    try {
      const { studies } = await requestJson(`/v1/studies?limit=${AT_ONCE}${before}`, { signal });
      byId("studies").append(...studies.map((study) => this.row(study)));
      this.last = studies.at(-1)?.id ?? this.last;
      setHidden("more", studies.length < AT_ONCE);
      this.count();
    } catch (error) {
      if (error.name === "AbortError") return;
      byId("history-state").textContent = `${error.title}. ${error.text}`;
      setHidden("history-again", false);
    }
  }

  count() {
    const n = byId("studies").childElementCount;
    const key = byId("more").hidden ? "history.count" : "history.countMore";
    byId("history-state").textContent = n === 0 ? t("history.empty") : n === 1 ? t("history.one") : t(key, { n });
  }

  row(study) {
    const created = dateText(study.created);
    const yes = Object.values(study.findings ?? {}).filter((finding) => finding.answer === "yes");
    const found = yes.map((finding) => sentence(finding.phrase)).join(", ");
    const row = el(
      "li",
      {},
      el(
        "p",
        {},
        el("strong", { text: created }),
        el("span", { text: study.reference || t("history.noReference") }),
        study.quality?.grade === "refuse" && el("strong", { class: "refused", text: t("history.refused") }),
        el("span", { text: yes.length ? t("history.found", { findings: found }) : t("history.foundNone") }),
      ),
      el(
        "div",
        { class: "actions" },
        el("a", {
          class: "button",
          href: `#/study/${encodeURIComponent(study.id)}`,
          text: t("history.open"),
          "aria-label": t("history.openLabel", { created }),
        }),
        el("button", {
          type: "button",
          text: t("history.remove"),
          "aria-label": t("history.removeLabel", { created }),
          onclick: () => this.removeRow(row, study),
        }),
      ),
    );
    return row;
  }

  async removeRow(row, study) {
    const next = row.nextElementSibling ?? row.previousElementSibling;
    try {
      if (!(await removeStudy(study))) return;
    } catch (error) {
      byId("history-state").textContent = `${error.title}. ${error.text}`;
      return;
    }
    row.remove();
    this.count();
    (next?.querySelector("a") ?? byId("view-history").querySelector("h1")).focus();
  }
}

// Delete a study if the person confirms; whether it was. One that is gone already counts as deleted.
export async function removeStudy(study) {
  if (!(await confirmed(t("history.confirm", { created: dateText(study.created) })))) return false;
  try {
    await request(`/v1/studies/${encodeURIComponent(study.id)}`, { method: "DELETE" });
  } catch (error) {
    if (error.status !== 404) throw error;
  }
  announce(t("history.removed"));
  return true;
}
