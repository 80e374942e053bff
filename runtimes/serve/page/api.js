// Talking to the cart's server: the token, errors in plain words, server-sent events over fetch.

import { byId, sleep } from "./dom.js";
import { hasText, t } from "./texts.js";

const TOKEN = "pulse-edge-token";

// What the server, or the lack of one, answered. `status` is 0 without a connection, -1 if it broke off.
export class ApiError extends Error {
  constructor(status, body = {}, retryAfter = null) {
    const error = body !== null && typeof body === "object" && typeof body.error === "object" ? body.error : {};
    super(typeof error?.message === "string" ? error.message : "");
    this.status = status;
    this.code = typeof error?.code === "string" ? error.code : String(status);
    this.details = error ?? {};
    this.retryAfter = retryAfter;
  }

  get title() {
    if (this.status === 0) return t("problem.offline");
    if (this.status === -1) return t("problem.broken");
    return t(hasText(`problem.${this.status}`) ? `problem.${this.status}` : "problem.other");
  }

  get text() {
    if (this.status === 0) return t("problem.offlineText");
    if (this.status === -1) return t("problem.brokenText");
    return this.message || t("problem.noText", { code: this.code });
  }
}

let asking = null; // one dialog for all requests that wait for the token

function askForToken(wasWrong) {
  asking ??= new Promise((resolve) => {
    const dialog = byId("token");
    const field = byId("token-field");
    field.value = "";
    byId("token-text").textContent = t(wasWrong ? "token.wrong" : "token.text");
    dialog.addEventListener("close", () => {
      asking = null;
      if (field.value.trim()) sessionStorage.setItem(TOKEN, field.value.trim());
      field.value = "";
      resolve();
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

// Fetch; asks for the token where one is needed. Throws ApiError, or AbortError when `signal` says so.
export async function request(path, options = {}) {
  for (;;) {
    const token = sessionStorage.getItem(TOKEN);
    const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
    let response;
    try {
      response = await fetch(path, { cache: "no-store", ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0);
    }
    if (response.status === 401) {
      if (sessionStorage.getItem(TOKEN) === token) {
        sessionStorage.removeItem(TOKEN);
        await askForToken(token !== null);
      }
      continue;
    }
    if (response.ok) return response;
    throw new ApiError(response.status, await jsonOf(response), retryAfter(response));
  }
}

async function jsonOf(response) {
  try {
    return await response.json();
  } catch {
    return {};
  }
}

function retryAfter(response) {
  const seconds = Number(response.headers.get("Retry-After"));
  return Number.isFinite(seconds) && seconds > 0 ? Math.min(seconds, 120) : null;
}

export async function requestJson(path, options = {}) {
  return jsonOf(await request(path, { ...options, headers: { Accept: "application/json", ...options.headers } }));
}

// The address of a picture that can be shown, fetched with the token. Revoke it when it is not shown any more.
export async function pictureUrl(path, signal) {
  const response = await request(path, { signal });
  return URL.createObjectURL(await response.blob());
}

// Send, wait where the queue is full, and yield {event, data} of the answer's stream.
// `onWait(seconds, now)` is called each second of waiting; calling `now` ends it.
export async function* stream(path, options, onWait) {
  const headers = { ...options.headers, Accept: "text/event-stream" };
  for (;;) {
    let response;
    try {
      response = await request(path, { ...options, headers });
    } catch (error) {
      if (error.status !== 429) throw error;
      await waitFor(error.retryAfter ?? 5, options.signal, onWait);
      continue;
    }
    yield* checked(events(response.body, options.signal));
    return;
  }
}

async function waitFor(seconds, signal, onWait) {
  const hurry = new AbortController();
  for (let left = Math.ceil(seconds); left > 0 && !hurry.signal.aborted; left -= 1) {
    onWait(left, () => hurry.abort());
    await Promise.race([sleep(1000, signal), new Promise((done) => hurry.signal.addEventListener("abort", done))]);
  }
}

// An `error` event becomes an exception, and so does a stream that ends before `done`.
async function* checked(stream) {
  for await (const item of stream) {
    if (item.event === "error") {
      const status = Number(item.data?.error?.status) || (item.data?.error?.code === "photo_refused" ? 422 : 500);
      throw new ApiError(status, item.data);
    }
    yield item;
    if (item.event === "done") return;
  }
  throw new ApiError(-1);
}

// Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html) whose data is JSON.
export async function* events(body, signal) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      buffer = (buffer + value).replace(/\r\n/g, "\n");
      let end;
      while ((end = buffer.indexOf("\n\n")) >= 0) {
        const item = parseEvent(buffer.slice(0, end));
        buffer = buffer.slice(end + 2);
        if (item) yield item;
      }
    }
  } catch (error) {
    if (signal?.aborted || error instanceof ApiError) throw error;
    throw new ApiError(-1);
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parseEvent(block) {
  let event = "message";
  const data = [];
  for (const line of block.split("\n")) {
    const [, field, value] = /^([^:]*):? ?(.*)$/.exec(line);
    if (field === "event") event = value;
    if (field === "data") data.push(value);
  }
  if (!data.length) return null; // a comment keeps the connection open
  try {
    return { event, data: JSON.parse(data.join("\n")) };
  } catch {
    throw new ApiError(-1);
  }
}
