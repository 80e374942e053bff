// Findings and the grade of the picture, in words: never by colour alone.

import { byId, el } from "./dom.js";
import { t } from "./texts.js";

const ANSWERS = ["yes", "no", "uncertain"];

export function percentText(probability) {
  const percent = 100 * probability;
  if (!Number.isFinite(percent)) return "";
  if (percent < 1) return t("findings.least");
  if (percent > 99) return t("findings.most");
  return t("findings.percent", { percent: Math.round(percent) });
}

export function answerText(finding) {
  return t(`findings.${ANSWERS.includes(finding.answer) ? finding.answer : "uncertain"}`);
}

export function sentence(phrase) {
  const text = String(phrase);
  return text.charAt(0).toUpperCase() + text.slice(1);
}

// {NAME: {phrase, probability, answer}} -> rows with a word, a figure and a bar.
export function showFindings(findings) {
  const rows = Object.values(findings ?? {}).map((finding) => {
    const bar = el("span", { class: "fill" });
    bar.style.width = `${Math.min(100, Math.max(0, 100 * Number(finding.probability) || 0))}%`;
    return el(
      "li",
      { "data-answer": ANSWERS.includes(finding.answer) ? finding.answer : "uncertain" },
      el("span", { class: "phrase", text: sentence(finding.phrase) }),
      el("strong", { class: "answer", text: answerText(finding) }),
      el("span", { class: "bar", "aria-hidden": "true" }, bar),
      el("span", { class: "percent", text: percentText(Number(finding.probability)) }),
    );
  });
  byId("findings").replaceChildren(...rows);
  byId("findings-box").hidden = rows.length === 0;
}

export function showCalibration(isCalibrated) {
  const place = byId("calibration");
  place.textContent = isCalibrated === undefined ? "" : t(isCalibrated ? "findings.calibrated" : "findings.uncalibrated");
}

// What was wrong with a picture that was read all the same; nothing for a good one.
export function showQuality(quality) {
  const grade = quality?.grade;
  const isFine = grade !== "usable" && grade !== "refuse";
  byId("quality").hidden = isFine;
  if (isFine) return;
  byId("quality").dataset.grade = grade;
  byId("quality-title").textContent = t(`quality.${grade}`);
  byId("quality-reasons").replaceChildren(...reasonItems(quality.reasons));
}

export function reasonItems(reasons) {
  return (Array.isArray(reasons) ? reasons : []).map((reason) => el("li", { text: String(reason) }));
}
