// The cart's page: which view is shown, and whether the cart is ready.

import { requestJson } from "./api.js";
import { Camera } from "./camera.js";
import { byId, showView } from "./dom.js";
import { History, removeStudy } from "./history.js";
import { Reading } from "./reading.js";
import { StudyView } from "./study.js";
import { applyTexts, loadTexts, t } from "./texts.js";
import { acceptFiles } from "./upload.js";
import { Viewer } from "./viewer.js";

const HEALTH_MS = 10_000;

await loadTexts(document.documentElement.lang);
applyTexts(document);

const view = new StudyView(new Viewer(), removeOpened);
const reading = new Reading(view);
const studies = new History();
const camera = new Camera((photo) => begin(photo, "photo.jpg"));
acceptFiles((file) => begin(file, file.name), (text) => camera.warn(text));

function begin(photo, name) {
  reading.begin({ photo, name, reference: byId("reference").value.trim(), accept: false });
}

async function removeOpened(study) {
  try {
    if (await removeStudy(study)) location.hash = "#/history";
  } catch (error) {
    byId("ask-problem").textContent = `${error.title}. ${error.text}`;
  }
}

function route() {
  const [, name, id] = location.hash.split("/");
  camera.stop();
  studies.stop();
  view.clear();
  if (name === "reading" && reading.pending) return reading.read();
  if (name === "refused" && reading.refusal && reading.pending) return reading.showRefused();
  if (name === "study" && id) return openStudy(decodeURIComponent(id));
  if (name === "history") return studies.show();
  byId("reference").value = reading.takeReference();
  showView("take", t("nav.take"));
  return camera.start();
}

async function openStudy(id) {
  byId("study-title").textContent = t("study.title");
  showView("study", t("study.title"));
  reading.retry = () => route();
  const leaving = view.leaving.signal;
  try {
    await view.open(id);
  } catch (error) {
    if (!leaving.aborted) view.fail(error);
  }
}

// Say in the header whether the cart can read ECGs, and why not.
async function watchHealth() {
  for (;;) {
    if (!document.hidden) showHealth(await health());
    await new Promise((resolve) => setTimeout(resolve, HEALTH_MS));
  }
}

async function health() {
  try {
    const response = await fetch("/healthz", { cache: "no-store" });
    const body = await response.json().catch(() => ({}));
    const message = typeof body.message === "string" ? body.message : "";
    if (response.ok && (body.state ?? "ok") === "ok") return ["ready", t("state.ready")];
    if (response.ok) return ["busy", t("state.but", { message })];
    return ["busy", message ? t("state.because", { message }) : t("state.busy")];
  } catch {
    return ["offline", t("state.offline")];
  }
}

function showHealth([state, text]) {
  const place = byId("state");
  place.dataset.state = state;
  if (place.textContent !== text) place.textContent = text;
}

async function showModel() {
  const { model, version } = await requestJson("/v1/about");
  byId("model").textContent = t("notice.model", { name: model?.name ?? model, version });
}

window.addEventListener("hashchange", route);
window.addEventListener("online", async () => showHealth(await health()));
window.addEventListener("offline", async () => showHealth(await health()));
document.addEventListener("visibilitychange", async () => document.hidden || showHealth(await health()));
watchHealth();
route();
showModel().catch(() => {}); // the notice itself does not depend on it
