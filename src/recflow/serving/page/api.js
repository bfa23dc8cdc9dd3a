// Calls of the endpoint: JSON in, JSON out; what goes wrong is an ApiError with the problem's own sentence.

export class ApiError extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

let key = sessionStorage.getItem("key"); // of this tab only

export function useKey(value) {
  key = value;
  sessionStorage.setItem("key", value);
}

async function ask(method, path, body) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (key) headers.Authorization = `Bearer ${key}`;
  let answer;
  try {
    answer = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch {
    throw new ApiError(0, "The endpoint can't be reached.");
  }
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) {
    const wait = Number(answer.headers.get("Retry-After")) || 0;
    throw new ApiError(answer.status, content.detail || `The endpoint answered ${answer.status}.`, wait);
  }
  return content;
}

const post = (call, body) => ask("POST", `/v1/${call}`, body);
const id = encodeURIComponent;

export const recommend = (body) => post("recommend", body);
export const similar = (body) => post("similar", body);
export const alsoBought = (body) => post("also_bought", body);
export const basket = (body) => post("basket", body);
export const trending = (body) => post("trending", body);
export const search = (body) => post("search", body);
export const suggest = (body) => post("suggest", body);
export const sendEvents = (events) => post("events", { events });
export const profile = (userId) => ask("GET", `/v1/profile/${id(userId)}`);
export const item = (itemId) => ask("GET", `/v1/items/${id(itemId)}`);
export const model = () => ask("GET", "/v1/model");
export const versions = () => ask("GET", "/v1/models");
export const switchTo = (version) => post("models/switch", { model_version: version });
