// A picture that can be enlarged and moved: wheel, drag, pinch, double tap, buttons, keys.

import { byId } from "./dom.js";
import { t } from "./texts.js";

const MOST = 16; // times the fitted size
const STEP = 1.3;
const NUDGE = 0.1; // of the viewer's width for an arrow key

export class Viewer {
  constructor() {
    this.box = byId("viewer");
    this.image = byId("picture");
    this.fingers = new Map(); // pointer id -> {x, y}, within the box
    this.fit();
    this.image.addEventListener("load", () => this.fit());
    this.image.addEventListener("error", () => (this.image.alt = t("viewer.failed"))); // HEIC, TIFF
    this.box.addEventListener("wheel", (event) => this.onWheel(event), { passive: false });
    this.box.addEventListener("pointerdown", (event) => this.onDown(event));
    this.box.addEventListener("pointermove", (event) => this.onMove(event));
    for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) {
      this.box.addEventListener(name, (event) => this.fingers.delete(event.pointerId));
    }
    this.box.addEventListener("dblclick", (event) => this.zoomAt(this.scale > 1 ? 1 / this.scale : 3, this.at(event)));
    this.box.addEventListener("keydown", (event) => this.onKey(event));
    byId("zoom-in").addEventListener("click", () => this.zoomAt(STEP));
    byId("zoom-out").addEventListener("click", () => this.zoomAt(1 / STEP));
    byId("zoom-fit").addEventListener("click", () => this.fit());
  }

  // Show another picture; `alt` says what it is.
  show(url, alt) {
    this.image.src = url;
    this.image.alt = alt;
  }

  clear() {
    this.image.removeAttribute("src");
    this.image.alt = "";
    this.fit();
  }

  fit() {
    [this.scale, this.x, this.y] = [1, 0, 0];
    this.draw();
  }

  // Enlarge by `factor`; what is at `point` of the box, by default its middle, comes to lie at `to`.
  zoomAt(factor, point = { x: this.box.clientWidth / 2, y: this.box.clientHeight / 2 }, to = point) {
    const scale = Math.min(MOST, Math.max(1, this.scale * factor));
    const ratio = scale / this.scale;
    this.x = to.x - (point.x - this.x) * ratio;
    this.y = to.y - (point.y - this.y) * ratio;
    this.scale = scale;
    this.draw();
  }

  move(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.draw();
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.box;
    this.x = Math.min(0, Math.max(width * (1 - this.scale), this.x)); // the picture never leaves the box
    this.y = Math.min(0, Math.max(height * (1 - this.scale), this.y));
    this.image.style.transform = `translate(${this.x}px, ${this.y}px) scale(${this.scale})`;
    this.box.dataset.zoom = t("viewer.zoom", { percent: Math.round(this.scale * 100) });
  }

  at(event) {
    const box = this.box.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }

  onWheel(event) {
    event.preventDefault();
    const pixels = event.deltaY * [1, 30, 300][event.deltaMode];
    this.zoomAt(Math.exp(-pixels / 500), this.at(event));
  }

  onDown(event) {
    this.box.setPointerCapture(event.pointerId);
    this.fingers.set(event.pointerId, this.at(event));
  }

  onMove(event) {
    const before = this.fingers.get(event.pointerId);
    if (!before) return;
    const now = this.at(event);
    const [other] = [...this.fingers].filter(([id]) => id !== event.pointerId).map(([, point]) => point);
    this.fingers.set(event.pointerId, now);
    if (!other) {
      this.move(now.x - before.x, now.y - before.y);
      return;
    }
    const spread = (point) => Math.hypot(point.x - other.x, point.y - other.y);
    const middle = (point) => ({ x: (point.x + other.x) / 2, y: (point.y + other.y) / 2 });
    this.zoomAt(spread(now) / Math.max(1, spread(before)), middle(before), middle(now));
  }

  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return; // the browser's own zoom
    const far = NUDGE * this.box.clientWidth;
    const keys = {
      "+": () => this.zoomAt(STEP),
      "=": () => this.zoomAt(STEP),
      "-": () => this.zoomAt(1 / STEP),
      "0": () => this.fit(),
      ArrowLeft: () => this.move(far, 0),
      ArrowRight: () => this.move(-far, 0),
      ArrowUp: () => this.move(0, far),
      ArrowDown: () => this.move(0, -far),
    };
    if (!(event.key in keys)) return;
    if (event.key.startsWith("Arrow") && this.scale === 1) return; // nothing to move: let the page scroll
    event.preventDefault();
    keys[event.key]();
  }
}
