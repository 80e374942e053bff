// One ECG on the screen: its page, findings, report and questions.

import { pictureUrl, request, requestJson, stream } from "./api.js";
import { announce, byId, el } from "./dom.js";
import { showCalibration, showFindings, showQuality } from "./findings.js";
import { dateText, hasText, t } from "./texts.js";

export class StudyView {
  constructor(viewer, onRemove) {
    this.viewer = viewer;
    this.urls = { page: null, photo: null };
    this.study = null;
    this.leaving = new AbortController(); // aborts what runs for the ECG on the screen
    byId("swap").addEventListener("click", () => this.swap());
    byId("print").addEventListener("click", () => this.print());
    byId("save").addEventListener("click", () => this.save());
    byId("remove").addEventListener("click", () => onRemove(this.study));
    byId("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      this.ask(byId("question").value.trim());
    });
    this.suggest();
  }

  suggest() {
    const buttons = [];
    for (let k = 1; hasText(`ask.suggestion.${k}`); k += 1) {
      const text = t(`ask.suggestion.${k}`);
      buttons.push(el("button", { type: "button", text, onclick: () => this.ask(text) }));
    }
    byId("suggestions").replaceChildren(...buttons);
  }

  // Empty the view and end what runs for the ECG before; returns the signal of the new one.
  clear() {
    this.leaving.abort();
    this.leaving = new AbortController();
    this.study = null;
    for (const url of Object.values(this.urls)) if (url) URL.revokeObjectURL(url);
    this.urls = { page: null, photo: null };
    this.viewer.clear();
    for (const id of ["progress", "problem", "quality", "findings-box", "ask", "study-actions", "swap"]) {
      byId(id).hidden = true;
    }
    for (const id of ["answers", "paper"]) byId(id).replaceChildren();
    for (const id of ["study-facts", "ask-problem", "calibration"]) byId(id).textContent = "";
    byId("question").value = "";
    return this.leaving.signal;
  }

  // Show a stored study.
  async open(id) {
    const { signal } = this.leaving;
    this.working(t("study.opening"));
    const study = await requestJson(`/v1/studies/${encodeURIComponent(id)}`, { signal });
    this.showStudy(study);
    await this.showPage(study.page, signal);
    await this.addPhoto(study.photo, signal);
    this.idle();
  }

  // Everything of a study but its pictures.
  showStudy(study) {
    this.study = study;
    const created = dateText(study.created);
    const key = study.reference ? "study.factsReference" : "study.facts";
    byId("study-title").textContent = t("study.title");
    byId("study-facts").textContent = t(key, { created, reference: study.reference });
    showQuality(study.quality);
    showFindings(study.findings);
    showCalibration(study.model?.calibrated);
    byId("answers").replaceChildren(...(study.answers ?? []).map((answer, k) => answerBox(answer, k === 0).box));
    byId("ask").hidden = false;
    byId("study-actions").hidden = false;
    this.fillPaper();
  }

  async showPage(path, signal) {
    const url = await pictureUrl(path, signal);
    this.urls.page = url;
    byId("swap").setAttribute("aria-pressed", "false");
    this.viewer.show(url, t("viewer.page"));
  }

  async addPhoto(path, signal) {
    this.urls.photo ??= await pictureUrl(path, signal);
    byId("swap").hidden = false;
  }

  // The photo as it was taken, before there is a page, or beside it.
  showPhoto(blob) {
    this.urls.photo = URL.createObjectURL(blob);
    this.viewer.show(this.urls.photo, t("viewer.isPhoto"));
  }

  swap() {
    const isPhoto = byId("swap").getAttribute("aria-pressed") === "true";
    byId("swap").setAttribute("aria-pressed", String(!isPhoto));
    this.viewer.show(isPhoto ? this.urls.page : this.urls.photo, t(isPhoto ? "viewer.page" : "viewer.isPhoto"));
  }

  working(text) {
    byId("progress").hidden = false;
    byId("progress-text").textContent = text;
    byId("now").hidden = true;
  }

  idle() {
    byId("progress").hidden = true;
  }

  // Say what went wrong, with a way out; what was shown of the ECG so far stays.
  fail(error) {
    this.explain(error.title, error.status === 404 ? t("study.gone") : error.text);
  }

  stopped() {
    this.explain(t("study.stopped"), t("study.stoppedText"));
  }

  explain(title, text) {
    this.idle();
    byId("problem-title").textContent = title;
    byId("problem-text").textContent = text;
    byId("problem").hidden = false;
    byId("retry").focus();
  }

  // A question about the ECG on the screen, its answer streamed below the others.
  async ask(question) {
    if (!question || byId("answers").getAttribute("aria-busy") === "true") return;
    const running = new AbortController();
    this.leaving.signal.addEventListener("abort", () => running.abort());
    byId("ask-problem").textContent = "";
    const writer = this.write({ question, text: "" }, false);
    this.busy(true, () => running.abort());
    this.working(t("study.answering"));
    const { study } = this;
    try {
      const body = JSON.stringify({ question });
      const options = { method: "POST", body, headers: { "Content-Type": "application/json" }, signal: running.signal };
      for await (const { event, data } of stream(`/v1/studies/${encodeURIComponent(study.id)}/ask`, options, waiting)) {
        if (event === "text") writer.add(data.delta);
        if (event === "done") this.finishAnswer(writer, data, study);
      }
      byId("question").value = "";
    } catch (error) {
      if (this.study !== study) return;
      if (running.signal.aborted) writer.stop();
      else this.askFailed(writer, error, question);
    } finally {
      if (this.study === study) {
        this.busy(false);
        this.idle();
      }
    }
  }

  finishAnswer(writer, data, study) {
    writer.finish(data);
    study.answers = [...(study.answers ?? []), data];
    announce(data.text);
  }

  askFailed(writer, error, question) {
    if (writer.isEmpty) writer.box.remove();
    else writer.stop();
    byId("ask-problem").textContent = `${error.title}. ${error.text}`;
    byId("question").value = question;
  }

  // Begin an answer on the screen; `isReport` for the first.
  write(answer, isReport) {
    const box = answerBox(answer, isReport);
    byId("answers").append(box.box);
    return box;
  }

  busy(isBusy, onCancel = null) {
    byId("answers").setAttribute("aria-busy", String(isBusy));
    byId("cancel").onclick = onCancel;
    for (const node of byId("ask").querySelectorAll("button")) node.disabled = isBusy;
  }

  print() {
    this.fillPaper();
    window.print();
  }

  // What only the print-out shows: which model, which bundle, when, and what it is not.
  fillPaper() {
    const { id, model = {} } = this.study;
    const calibration = t(model.calibrated ? "paper.calibrated" : "paper.uncalibrated");
    const bundle = String(model.bundle_sha256 ?? "").slice(0, 16);
    byId("paper").replaceChildren(
      el("p", { text: t("paper.title") }),
      el("p", { text: t("paper.model", { name: model.name, bundle, calibration }) }),
      el("p", { text: t("paper.printed", { time: dateText(new Date().toISOString()), id }) }),
    );
  }

  async save() {
    try {
      const path = `/v1/studies/${encodeURIComponent(this.study.id)}/export`;
      const url = URL.createObjectURL(await (await request(path, { signal: this.leaving.signal })).blob());
      el("a", { href: url, download: `ecg-${this.study.id}.zip` }).click();
      setTimeout(() => URL.revokeObjectURL(url), 60_000);
      announce(t("study.saved"));
    } catch (error) {
      if (error.name !== "AbortError") byId("ask-problem").textContent = `${error.title}. ${error.text}`;
    }
  }
}

// Say that the queue is full, and offer not to wait.
export function waiting(seconds, now) {
  byId("progress-text").textContent = t("problem.waiting", { seconds });
  byId("now").hidden = false;
  byId("now").onclick = now;
}

// Of an answer that ended because it may be no longer: half a sentence must not pass for a whole one.
function cutText(answer) {
  return answer.finish === "length" ? t("answer.cut") : "";
}

function answerBox(answer, isReport) {
  const text = el("p", { class: "text", text: answer.text || "" });
  const note = el("p", { class: "cut", text: cutText(answer) });
  const title = isReport ? t("answer.report") : answer.question;
  const box = el("article", { class: "answer-box" }, el("h2", { text: title }), text, note);
  return {
    box,
    get isEmpty() {
      return text.textContent === "";
    },
    add(delta) {
      text.append(String(delta));
    },
    finish(whole) {
      text.textContent = String(whole.text ?? text.textContent) || t("answer.empty");
      note.textContent = cutText(whole);
    },
    stop() {
      note.textContent = t("answer.partial");
    },
  };
}
