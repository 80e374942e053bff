// A picture from a file: chosen, dropped or pasted.

import { byId } from "./dom.js";
import { t } from "./texts.js";

const KINDS = /\.(jpe?g|png|hei[cf]|tiff?|webp|bmp)$/i; // browsers do not know the type of all of them

// `onPhoto(file)` gets the picture; `say(text)` what was wrong with another thing.
export function acceptFiles(onPhoto, say) {
  const take = (files) => {
    if (files.length > 1) return say(t("take.onePicture"));
    const [file] = files;
    if (!file) return undefined;
    if (!file.type.startsWith("image/") && !KINDS.test(file.name)) return say(t("take.notPicture"));
    return onPhoto(file);
  };
  byId("pick").addEventListener("click", () => byId("file").click());
  byId("file").addEventListener("change", (event) => {
    take([...event.target.files]);
    event.target.value = ""; // the same file may be chosen again
  });
  acceptDrops(take);
  document.addEventListener("paste", (event) => {
    if (!byId("view-take").hidden && event.clipboardData.files.length) take([...event.clipboardData.files]);
  });
}

function acceptDrops(take) {
  const place = byId("drop");
  const isOpen = () => !byId("view-take").hidden;
  window.addEventListener("dragover", (event) => {
    event.preventDefault(); // wherever it is dropped, the browser must not leave the page for the picture
    if (isOpen()) place.dataset.dropping = "true";
  });
  window.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) delete place.dataset.dropping;
  });
  window.addEventListener("drop", (event) => {
    event.preventDefault();
    delete place.dataset.dropping;
    if (isOpen()) take([...event.dataTransfer.files]);
  });
}
