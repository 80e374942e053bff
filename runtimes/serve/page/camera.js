// The live camera: advice for each frame, and the shutter.

import { request } from "./api.js";
import { byId, sleep } from "./dom.js";
import { t } from "./texts.js";

const FRAME_SIDE = 1920; // pixels of the frames that advice is asked for: its sharpness is measured at this size
const FRAME_QUALITY = 0.8;
const FRAME_BYTES = 1 << 20; // the server takes no larger one
const PHOTO_QUALITY = 0.95;
const PERIOD_MS = 220; // between frames, unless the server hints at another rate
const READY_TIMES = 3; // in a row, before the picture is taken by itself
const TROUBLE_MS = 2000; // pause after a frame that got no advice
const CHOSEN = "pulse-edge-camera";

export class Camera {
  // `onPhoto(blob)` gets the picture, as JPEG in the camera's full size.
  constructor(onPhoto) {
    this.onPhoto = onPhoto;
    this.video = byId("video");
    this.canvas = document.createElement("canvas");
    this.id = crypto.getRandomValues(new Uint32Array(2)).join("-"); // tells this camera's frames from others'
    this.stopped = new AbortController();
    byId("shutter").addEventListener("click", () => this.take());
    byId("camera-again").addEventListener("click", () => this.start());
    byId("cameras").addEventListener("change", (event) => {
      localStorage.setItem(CHOSEN, event.target.value);
      this.start();
    });
  }

  say(text) {
    const place = byId("guidance");
    if (performance.now() > (this.quietUntil ?? 0) && place.textContent !== text) place.textContent = text;
  }

  // What went wrong stays long enough to be read: the camera's own words do not take its place at once.
  warn(text) {
    this.quietUntil = 0;
    this.say(text);
    this.quietUntil = performance.now() + 5000;
  }

  async start() {
    this.stop();
    const { signal } = (this.stopped = new AbortController());
    byId("camera-again").hidden = true;
    this.say(t("take.starting"));
    if (!navigator.mediaDevices?.getUserMedia) {
      this.warn(t("take.insecure"));
      return;
    }
    try {
      const stream = await this.open(localStorage.getItem(CHOSEN));
      signal.addEventListener("abort", () => stream.getTracks().forEach((track) => track.stop()));
      if (signal.aborted) {
        stream.getTracks().forEach((track) => track.stop()); // the person went elsewhere meanwhile
        return;
      }
      stream.getVideoTracks()[0].addEventListener("ended", () => this.fail(t("take.unplugged"), signal));
      this.video.srcObject = stream;
      await this.video.play();
      await this.listCameras(stream);
    } catch (error) {
      const reasons = { NotFoundError: "noCamera", OverconstrainedError: "noCamera", NotAllowedError: "denied" };
      this.fail(t(`take.${reasons[error.name] ?? "cameraBusy"}`), signal);
      return;
    }
    if (signal.aborted) return;
    byId("shutter").disabled = false;
    this.say(t("take.point"));
    this.watch(signal).catch((error) => {
      if (!signal.aborted) throw error;
    });
  }

  open(chosen) {
    const size = { width: { ideal: 3840 }, height: { ideal: 2160 } };
    const which = chosen ? { deviceId: { ideal: chosen } } : { facingMode: { ideal: "environment" } };
    return navigator.mediaDevices.getUserMedia({ audio: false, video: { ...size, ...which } });
  }

  fail(text, signal) {
    if (signal.aborted) return;
    this.stop();
    this.warn(text);
    byId("camera-again").hidden = false;
  }

  async listCameras(stream) {
    const now = stream.getVideoTracks()[0].getSettings().deviceId;
    const all = (await navigator.mediaDevices.enumerateDevices()).filter((device) => device.kind === "videoinput");
    byId("cameras-field").hidden = all.length < 2;
    byId("cameras").replaceChildren(
      ...all.map((device, k) => {
        const name = device.label || t("take.cameraNumber", { n: k + 1 });
        return new Option(name, device.deviceId, false, device.deviceId === now);
      }),
    );
  }

  stop() {
    this.stopped.abort();
    byId("shutter").disabled = true;
    this.video.srcObject = null;
  }

  // Ask for advice on one frame after the other, never two at once.
  async watch(signal) {
    let ready = 0;
    while (!signal.aborted) {
      const begin = performance.now();
      let period = PERIOD_MS;
      if (document.hidden || !this.video.videoWidth) {
        ready = 0;
      } else {
        const advice = await this.advice(signal);
        if (signal.aborted) return;
        ready = advice?.ready ? ready + 1 : 0;
        if (!advice) period = TROUBLE_MS;
        else if (advice.fps_hint > 0) period = Math.max(100, Math.min(2000, 1000 / advice.fps_hint));
        this.say(advice ? String(advice.message) : t("take.noGuidance"));
        byId("drop").dataset.ready = String(ready > 0);
        if (ready >= READY_TIMES && byId("auto").checked) {
          await this.take();
          return;
        }
      }
      await sleep(Math.max(0, period - (performance.now() - begin)), signal);
    }
  }

  async advice(signal) {
    const scale = Math.max(1, Math.max(this.video.videoWidth, this.video.videoHeight) / FRAME_SIDE);
    let frame = await this.grab(FRAME_SIDE, FRAME_QUALITY);
    if (frame.size > FRAME_BYTES) frame = await this.grab(FRAME_SIDE, FRAME_QUALITY / 2);
    try {
      const options = { method: "POST", body: frame, headers: { "Content-Type": "image/jpeg" }, signal };
      return await (await request(`/v1/guidance?camera=${this.id}&scale=${scale}`, options)).json();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      return null;
    }
  }

  // The present frame as JPEG, its long side at most `side` pixels.
  grab(side, quality) {
    const { videoWidth: width, videoHeight: height } = this.video;
    const scale = Math.min(1, side / Math.max(width, height));
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    this.canvas.getContext("2d").drawImage(this.video, 0, 0, this.canvas.width, this.canvas.height);
    return new Promise((resolve) => this.canvas.toBlob(resolve, "image/jpeg", quality));
  }

  async take() {
    if (byId("shutter").disabled) return;
    byId("shutter").disabled = true;
    const photo = await this.grab(Infinity, PHOTO_QUALITY);
    this.say(t("take.taken"));
    this.stop();
    this.onPhoto(photo);
  }
}
