// The list of messages: each entry once, in the room's order, in its newest revision.

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const TOGETHER = 5 * 60 * 1000; // ms within which messages of one person stand without a name of their own
const LONGEST = 500;

export class Log {
  me = "";
  #list;
  #waiting; // a list of its own below the log: a reader's voice says each message once, when it has arrived
  #scroll;
  #empty;
  #newer;
  #items = new Map(); // id -> { entry, element }
  #pending = new Map(); // key -> element
  #top = 0;
  #following = true;

  constructor({ list, waiting, scroll, empty, newer }) {
    this.#list = list;
    this.#waiting = waiting;
    this.#scroll = scroll;
    this.#empty = empty;
    this.#newer = newer;
    newer.addEventListener("click", () => this.#toEnd());
    scroll.addEventListener("scroll", () => this.#atEnd() && (newer.hidden = true), { passive: true });
    new ResizeObserver(() => this.#following && this.#toEnd()).observe(scroll);
    scroll.addEventListener("scroll", () => (this.#following = this.#atEnd()), { passive: true });
  }

  // Returns the entries that were not known before.
  add(entries) {
    const follow = this.#following;
    const fresh = entries.filter((entry) => this.#put(entry));
    this.#trim();
    if (follow) this.#toEnd();
    else if (fresh.length) this.#newer.hidden = false;
    return fresh;
  }

  addPending(key, text) {
    const element = this.#draw({ id: key, kind: "text", name: this.me, text, at: Date.now(), order: 0 });
    element.classList.add("pending", "follows");
    element.append(make("p", "fate", "Sending…"));
    this.#pending.set(key, element);
    this.#waiting.append(element);
    this.#empty.hidden = true;
    this.#toEnd();
  }

  // What the messages that have not arrived yet wait for.
  setFate(text) {
    for (const element of this.#pending.values()) element.querySelector(".fate").textContent = text;
  }

  dropPending(key) {
    this.#pending.get(key)?.remove();
    this.#pending.delete(key);
  }

  notice(text) {
    const follow = this.#following;
    const element = make("li", "notice", text);
    element.place = { order: this.#top, id: "~" };
    this.#list.append(element);
    this.#empty.hidden = true;
    if (follow) this.#toEnd();
  }

  #put(entry) {
    const known = this.#items.get(entry.id);
    if (known && known.entry.revision >= entry.revision) return false;
    this.#top = Math.max(this.#top, entry.order);
    if (known) {
      known.entry = entry;
      if (entry.kind === "job") drawJob(known.element, entry);
      return false;
    }
    this.dropPending(entry.id);
    const element = this.#draw(entry);
    this.#items.set(entry.id, { entry, element });
    this.#insert(element);
    this.#group(element);
    if (element.nextElementSibling) this.#group(element.nextElementSibling);
    this.#empty.hidden = true;
    return true;
  }

  // Nearly always at the end; further up when something that was missed comes later.
  #insert(element) {
    let before = null;
    let previous = this.#list.lastElementChild;
    while (previous && isAfter(previous.place, element.place)) {
      before = previous;
      previous = previous.previousElementSibling;
    }
    this.#list.insertBefore(element, before);
  }

  #draw(entry) {
    const element = make("li", "entry");
    element.place = { order: entry.order, id: entry.id };
    element.dataset.id = entry.id;
    element.dataset.name = entry.name;
    element.dataset.at = entry.at;
    element.classList.toggle("mine", entry.name === this.me);
    element.style.setProperty("--hue", hue(entry.name));
    const head = make("p", "head");
    const time = make("time", "", clock.format(entry.at));
    time.dateTime = new Date(entry.at).toISOString();
    head.append(make("span", "avatar", initial(entry.name)), make("b", "", entry.name), " ", time);
    head.firstChild.setAttribute("aria-hidden", "true");
    element.append(head, make("p", "text", entry.text));
    if (entry.kind === "job") drawJob(element, entry);
    return element;
  }

  // Messages that follow each other closely share one name.
  #group(element) {
    const previous = element.previousElementSibling;
    const together =
      element.dataset.name !== undefined &&
      element.dataset.name === previous?.dataset.name &&
      Math.abs(element.dataset.at - previous.dataset.at) < TOGETHER;
    element.classList.toggle("follows", together);
  }

  #trim() {
    // An entry stays known without its element, so that an old one is not put at the end again.
    while (this.#list.childElementCount > LONGEST) this.#list.firstElementChild.remove();
  }

  #atEnd() {
    return this.#scroll.scrollHeight - this.#scroll.scrollTop - this.#scroll.clientHeight < 48;
  }

  #toEnd() {
    this.#scroll.scrollTop = this.#scroll.scrollHeight;
    this.#following = true;
    this.#newer.hidden = true;
  }
}

function drawJob(element, entry) {
  let job = element.querySelector(".job");
  if (!job) {
    job = make("div", "job");
    const bar = make("progress");
    bar.setAttribute("aria-label", "Progress of the job");
    job.append(bar, make("p", "result"));
    element.append(job);
  }
  const bar = job.querySelector("progress");
  bar.value = entry.done;
  bar.hidden = entry.done >= 1;
  job.classList.toggle("done", entry.done >= 1);
  job.querySelector(".result").textContent = entry.result || "Waiting for a worker…";
}

function isAfter(place, other) {
  return place.order > other.order || (place.order === other.order && place.id > other.id && place.id !== "~");
}

export function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

export function initial(name) {
  return [...name][0]?.toUpperCase() ?? "?";
}

// A person's colour: the same on every page, and far from that of a similar name.
export function hue(name) {
  let sum = 7;
  for (const char of name) sum = (sum * 33 + char.codePointAt(0)) % 9973;
  return (sum * 137) % 360;
}
