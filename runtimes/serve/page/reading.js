// From a picture to a study: send it, show what comes back as it comes, or why it was refused.

import { stream } from "./api.js";
import { announce, byId, setHidden, showView } from "./dom.js";
import { reasonItems, showFindings, showQuality } from "./findings.js";
import { waiting } from "./study.js";
import { t } from "./texts.js";

export class Reading {
  constructor(view) {
    this.view = view;
    this.pending = null; // {photo, name, reference, accept}
    this.refusal = null;
    this.retaken = ""; // the reference of an ECG that is photographed again
    byId("refused-again").addEventListener("click", () => {
      this.retaken = this.pending.reference;
      location.hash = "#/";
    });
    byId("refused-accept").addEventListener("click", () => {
      this.begin({ ...this.pending, accept: true });
    });
    byId("retry").addEventListener("click", () => this.retry());
  }

  // The reference to begin a photo with: that of one ECG must not go along with the next.
  takeReference() {
    const reference = this.retaken;
    this.retaken = "";
    return reference;
  }

  begin(pending) {
    this.pending = pending;
    location.hash = "#/reading";
  }

  // Read the picture that is pending.
  async read() {
    const { view, pending } = this;
    const leaving = view.clear();
    const running = new AbortController();
    leaving.addEventListener("abort", () => running.abort());
    byId("study-title").textContent = t("study.reading");
    showView("study", t("study.reading"));
    view.showPhoto(pending.photo);
    view.working(t("study.sending"));
    view.busy(true, () => running.abort());
    this.retry = () => this.read();
    try {
      await this.follow(pending, running.signal);
    } catch (error) {
      if (leaving.aborted) return;
      if (error.status === 422 && error.code === "photo_refused") this.refuse(error.details);
      else if (running.signal.aborted) view.stopped();
      else view.fail(error);
    } finally {
      if (!leaving.aborted) {
        view.busy(false);
        view.idle();
      }
    }
  }

  async follow(pending, signal) {
    const { view } = this;
    const body = new FormData();
    body.append("image", pending.photo, pending.name ?? "photo.jpg");
    if (pending.reference) body.append("reference", pending.reference);
    if (pending.accept) body.append("accept", "true");
    let writer = null;
    for await (const { event, data } of stream("/v1/ecg", { method: "POST", body, signal }, waiting)) {
      if (event === "quality") {
        showQuality(data);
        view.working(t("study.flat"));
      } else if (event === "page") {
        await view.showPage(data.page, signal);
        setHidden("swap", false);
      } else if (event === "findings") {
        showFindings(data);
        view.working(t("study.writing"));
      } else if (event === "text") {
        writer ??= view.write({ text: "" }, true);
        writer.add(data.delta);
      } else if (event === "done") {
        this.finish(data);
      }
    }
  }

  finish(study) {
    this.pending = null;
    this.view.showStudy(study);
    history.replaceState(null, "", `#/study/${encodeURIComponent(study.id)}`);
    byId("study-title").textContent = document.title = t("study.title");
    announce(`${t("study.finished")} ${study.answers?.[0]?.text ?? ""}`);
  }

  refuse(details) {
    this.refusal = { reasons: details.quality?.reasons ?? [], acceptable: details.acceptable !== false };
    location.replace("#/refused");
  }

  showRefused() {
    const { reasons, acceptable } = this.refusal;
    const items = reasonItems(reasons.length ? reasons : [t("refused.noReason")]);
    const mayAccept = acceptable && !this.pending.accept;
    byId("refused-reasons").replaceChildren(...items);
    setHidden("refused-accept", !mayAccept);
    setHidden("refused-warning", !mayAccept);
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = URL.createObjectURL(this.pending.photo);
    byId("refused-photo").src = this.url;
    showView("refused", t("refused.title"));
    announce(reasons.join(" "));
  }
}
